"""A command and a function with astro-provider-ray."""

from pathlib import Path

import pendulum
from airflow.decorators import dag
from ray_provider.decorators import ray
from ray_provider.operators import SubmitRayJob

FOLDER = Path(__file__).parent


# START tasks
@dag(schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"))
def train_and_evaluate() -> None:
    train = SubmitRayJob(
        task_id="train",
        conn_id="ray_default",
        entrypoint="python nightly.py --day {{ ds }}",
        runtime_env={"working_dir": str(FOLDER / "training")},
        num_cpus=1,
        memory=100_000_000,
        fetch_logs=True,
        job_timeout_seconds=3600,
        poll_interval=5,
    )

    @ray.task(config={"conn_id": "ray_default", "num_cpus": 1, "memory": 0, "poll_interval": 5})
    def evaluate(parts: int) -> None:
        import ray

        ray.init()

        @ray.remote
        def square(part: int) -> int:
            return part**2

        print(sum(ray.get([square.remote(part) for part in range(parts)])))

    train >> evaluate(3)


train_and_evaluate()
# END tasks
