"""One task per feature of the provider, on the worker and deferred where both are possible."""

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
            task_id=f"fails_runtime_env_setup_{mode}",
            entrypoint="echo never",
            runtime_env={"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"},
            deferrable=deferrable,
            **QUICK,
        )
        RayJobSubmitOperator(
            task_id=f"is_stopped_{mode}",
            entrypoint="echo waiting; sleep 600",
            deferrable=deferrable,
            ray_conn_id="ray_jobs_history",
            **QUICK,
        )
    RayJobSubmitOperator(
        task_id="prints_its_airflow_context",
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
        task_id="takes_runtime_env_from_file",
        entrypoint='echo "from the file: $FROM_FILE"',
        runtime_env=str(Path("environments") / "runtime_env.yaml"),
        job_name="named by {{ task.task_id }}",
        ray_conn_id="ray_jobs_dashboard_url",
        **QUICK,
    )
    RayJobSubmitOperator(task_id="entrypoint_ends_in.yaml", entrypoint="echo config.yaml", fetch_logs="never", **QUICK)
    RayJobSubmitOperator.partial(
        task_id="is_mapped_over_runtime_envs", entrypoint='echo "mapped: $COLOUR"', **QUICK
    ).expand(runtime_env=[{"env_vars": {"COLOUR": colour}} for colour in ("red", "green")])
    RayJobSubmitOperator(
        task_id="prints_ten_thousand_lines",
        entrypoint=["python", "-c", "for i in range(10_000): print(f'line {i:05d}')"],
        fetch_logs="on_completion",
        **QUICK,
    )
    for mode, deferrable in (("worker", False), ("deferred", True)):
        RayJobSubmitOperator(
            task_id=f"rejects_invalid_num_cpus_{mode}",
            entrypoint="echo x",
            entrypoint_num_cpus="{{ 'many' }}",
            deferrable=deferrable,
            retries=2,
            **QUICK,
        )
    RayJobSensor(
        task_id="rejects_invalid_fetch_logs", submission_id="x", fetch_logs="{{ 'often' }}", retries=2, soft_fail=True
    )
    RayJobSubmitOperator(
        task_id="cannot_reach_head",
        entrypoint="echo x",
        ray_conn_id="ray_jobs_unreachable",
        unreachable_timeout=2,
        **QUICK,
    )

    for outcome, command in (
        ("success", "for i in 1 2 3; do echo step $i; sleep 2; done"),
        ("failure", "echo oh; sleep 2; exit 7"),
    ):
        submit = RayJobSubmitOperator(task_id=f"submits_{outcome}", entrypoint=command, wait_for_completion=False)
        for mode in ("poke", "reschedule", "deferrable"):
            RayJobSensor(
                task_id=f"waits_{outcome}_{mode}",
                submission_id=submit.output,
                poke_interval=2,
                **({"deferrable": True} if mode == "deferrable" else {"mode": mode}),
            )
    line_per_second = "for i in $(seq 45); do echo line $i; sleep 1; done"
    RayJobSubmitOperator(
        task_id="flushes_log", entrypoint=line_per_second, deferrable=True, log_flush_interval="{{ 6 }}", **QUICK
    )
    submit = RayJobSubmitOperator(
        task_id="submits_line_per_second", entrypoint=line_per_second, wait_for_completion=False, priority_weight=10
    )
    RayJobSensor(
        task_id="waits_and_flushes_log",
        submission_id=submit.output,
        poke_interval=1,
        deferrable=True,
        log_flush_interval=6,
        timeout=120,
        priority_weight=10,
    )
    RayJobSensor(task_id="waits_for_unknown_job", submission_id="no-such-job", poke_interval=1, missing_timeout=3)
    RayJobSensor(
        task_id="waits_for_unknown_job_deferred",
        submission_id="no-such-job",
        poke_interval=1,
        missing_timeout=3,
        deferrable=True,
        soft_fail=True,
    )
