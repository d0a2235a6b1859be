"""The same command and function with this provider."""

from airflow.sdk import dag, task

from airflow_provider_rayjobs.operators import RayJobSubmitOperator


# START tasks
@dag(schedule=None)
def train_and_evaluate() -> None:
    train = RayJobSubmitOperator(
        task_id="train",
        ray_conn_id="ray_jobs_default",
        entrypoint="python nightly.py --day {{ ds }}",
        runtime_env={"working_dir": "./training"},
        entrypoint_num_cpus=1,
        entrypoint_memory="100MB",
        fetch_logs="live",
        job_timeout=3600,
        poll_interval=5,
        deferrable=True,
    )

    @task.ray_job(ray_conn_id="ray_jobs_default", entrypoint_num_cpus=1, poll_interval=5)
    def evaluate(parts: int) -> int:
        import ray

        ray.init()

        @ray.remote
        def square(part: int) -> int:
            return part**2

        return sum(ray.get([square.remote(part) for part in range(parts)]))

    train >> evaluate(3)


train_and_evaluate()
# END tasks
