"""Functions that run on a cluster, and programs that talk to their task."""

import statistics

import pendulum
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import Asset, dag, task

from airflow_provider_rayjobs.in_job import add_asset_extra, report_progress
from airflow_provider_rayjobs.operators import RayJobSubmitOperator


# START shortest
@dag(schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), tags=["ray"])
def functions() -> None:
    @task
    def extract() -> list[float]:
        return [1.0, 2.0, 4.0]

    @task.ray_job(entrypoint_num_cpus=1, retries=2)
    def train(rows: list[float], alpha: float) -> dict[str, float]:
        import ray  # the workers of Airflow do not have it

        @ray.remote
        def smooth(row: float) -> float:
            return alpha * row

        smoothed = ray.get([smooth.remote(row) for row in rows])
        return {"alpha": alpha, "mean": statistics.mean(smoothed)}

    train.partial(rows=extract()).expand(alpha=[0.1, 1.0])
    # END shortest

    # START context
    @task.ray_job
    def count(day: str, ds: str | None = None) -> str:
        # ds comes from Airflow's context, day from a template
        return f"counted {ds} and {day}"

    count(day="{{ ds }}")
    # END context

    # START progress
    @task.ray_job(poll_interval=2)
    def fit(epochs: int) -> float:
        loss = 1.0
        for epoch in range(1, epochs + 1):
            loss *= 0.8
            report_progress(epoch, epochs, f"loss {loss:.3f}")
        return loss

    fit(5)
    # END progress

    # START skip
    @task.ray_job
    def process(files: list[str]) -> int:
        if not files:
            raise AirflowSkipException("there are no files today")
        return len(files)

    process([])
    # END skip

    # START outlets
    @task.ray_job(outlets=[Asset("trips_model")])
    def publish(version: str) -> None:
        add_asset_extra({"version": version, "rows": 1000})

    publish("2026-11-23")
    # END outlets

    # START result
    RayJobSubmitOperator(
        task_id="result_of_a_program",
        entrypoint=["python", "push_result.py"],
        runtime_env={"working_dir": "./training"},
        return_result=True,
    )
    # END result

    # START shell
    RayJobSubmitOperator(
        task_id="result_of_a_shell",
        entrypoint=r"""
            lines=$(seq 1000 | wc -l)
            echo "##ray_job $RAY_JOB_NONCE progress {\"done\": $lines, \"total\": 1000, \"text\": \"lines\"}"
            echo "##ray_job $RAY_JOB_NONCE result {\"lines\": $lines}"
        """,
        return_result=True,
    )
    # END shell

    # START pickle
    factor = 3

    @task.ray_job(serializer="cloudpickle")
    def multiply(number: int) -> int:
        return number * factor  # a variable from outside of the function

    multiply(2)
    # END pickle


functions()
