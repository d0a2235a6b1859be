"""What a person does with the provider, each task on its own, in both modes."""

from __future__ import annotations

from pathlib import Path

import pendulum
from airflow.sdk import DAG

from airflow_provider_rayjobs.operators import RayJobSubmitOperator
from airflow_provider_rayjobs.sensors import RayJobSensor

QUICK = {"poll_interval": 1}

with DAG(
    "end_to_end",
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    max_active_tasks=6,
    params={"cpus": "0.25", "message": 'it\'s; $(a) "quoted" value'},
):
    for mode, deferrable in (("worker", False), ("deferred", True)):
        RayJobSubmitOperator(
            task_id=f"succeeds_{mode}",
            entrypoint="echo first; sleep 2; printf '  indented\\n\\nafter a blank line\\nno newline at the end'",
            deferrable=deferrable,
            **QUICK,
        )
        RayJobSubmitOperator(
            task_id=f"fails_{mode}",
            entrypoint="echo before the end; exit 3",
            deferrable=deferrable,
            **QUICK,
        )
        RayJobSubmitOperator(
            task_id=f"has_no_environment_{mode}",
            entrypoint="echo never",
            runtime_env={"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"},
            deferrable=deferrable,
            **QUICK,
        )
        RayJobSubmitOperator(
            task_id=f"is_stopped_{mode}",
            entrypoint="echo waiting; sleep 600",
            deferrable=deferrable,
            **QUICK,
        )
    RayJobSubmitOperator(
        task_id="knows_where_it_comes_from",
        entrypoint=[
            "sh",
            "-c",
            'env | sort | grep -E "^(AIRFLOW_CTX|RAY_JOB_SUB|MINE)"; echo "$1"',
            "sh",
            "{{ params.message }}",
        ],
        runtime_env={"env_vars": {"MINE": "{{ task.task_id }}"}},
        metadata={"team": "{{ dag.dag_id }}"},
        entrypoint_num_cpus="{{ params.cpus }}",
        entrypoint_memory="{{ 64 * 1024 * 1024 }}",
        **QUICK,
    )
    RayJobSubmitOperator(
        task_id="reads_its_environment_from_a_file",
        entrypoint='echo "from the file: $FROM_FILE"',
        runtime_env=str(Path("environments") / "runtime_env.yaml"),
        job_name="named by {{ task.task_id }}",
        ray_conn_id="ray_jobs_browser",
        **QUICK,
    )
    RayJobSubmitOperator(task_id="runs_a_file.yaml", entrypoint="echo config.yaml", fetch_logs="never", **QUICK)
    RayJobSubmitOperator.partial(
        task_id="is_mapped_over_environments", entrypoint='echo "mapped: $COLOUR"', **QUICK
    ).expand(runtime_env=[{"env_vars": {"COLOUR": colour}} for colour in ("red", "green")])
    RayJobSubmitOperator(
        task_id="prints_ten_thousand_lines",
        entrypoint=["python", "-c", "for i in range(10_000): print(f'line {i:05d}')"],
        fetch_logs="on_completion",
        **QUICK,
    )
    RayJobSubmitOperator(task_id="refuses_nonsense", entrypoint="echo x", entrypoint_num_cpus="many", **QUICK)
    RayJobSubmitOperator(
        task_id="finds_nobody", entrypoint="echo x", ray_conn_id="ray_jobs_nobody", unreachable_timeout=2, **QUICK
    )

    for ending, command in (
        ("good", "for i in 1 2 3; do echo step $i; sleep 2; done"),
        ("bad", "echo oh; sleep 2; exit 7"),
    ):
        submit = RayJobSubmitOperator(task_id=f"submits_{ending}", entrypoint=command, wait_for_completion=False)
        for mode in ("poke", "reschedule", "deferrable"):
            RayJobSensor(
                task_id=f"waits_{ending}_{mode}",
                submission_id=submit.output,
                poke_interval=2,
                **({"deferrable": True} if mode == "deferrable" else {"mode": mode}),
            )
    by_and_by = "for i in $(seq 45); do echo line $i; sleep 1; done"
    RayJobSubmitOperator(
        task_id="is_flushed", entrypoint=by_and_by, deferrable=True, log_flush_interval="{{ 6 }}", **QUICK
    )
    submit = RayJobSubmitOperator(
        task_id="submits_by_and_by", entrypoint=by_and_by, wait_for_completion=False, priority_weight=10
    )
    RayJobSensor(
        task_id="waits_and_is_flushed",
        submission_id=submit.output,
        poke_interval=1,
        deferrable=True,
        log_flush_interval=6,
        timeout=120,
        priority_weight=10,
    )
    RayJobSensor(task_id="waits_for_nothing", submission_id="no-such-job", poke_interval=1, missing_timeout=3)
    RayJobSensor(
        task_id="waits_for_nothing_deferred",
        submission_id="no-such-job",
        poke_interval=1,
        missing_timeout=3,
        deferrable=True,
        soft_fail=True,
    )
