"""A whole sweep: one job for each combination of parameters, two at a time, and the best result."""

# START sweep
from typing import Any

import pendulum
from airflow.sdk import dag, task


@dag(schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), tags=["ray"])
def sweep() -> None:
    @task.ray_job(
        # the names of the instances in Airflow, and of their jobs in the Ray dashboard
        map_index_template="rate {{ task.op_kwargs['rate'] }}, depth {{ task.op_kwargs['depth'] }}",
        job_name="sweep rate {{ task.op_kwargs['rate'] }}, depth {{ task.op_kwargs['depth'] }}",
        max_active_tis_per_dagrun=2,  # two jobs at the same time
        entrypoint_num_cpus=1,
        retries=1,
    )
    def train(rate: float, depth: int) -> dict[str, float]:
        loss = (rate - 0.1) ** 2 + 1 / depth  # your training
        return {"rate": rate, "depth": depth, "loss": loss}

    @task
    def best(models: Any) -> dict[str, float]:
        ranked = sorted(models, key=lambda model: float(model["loss"]))
        for model in ranked:
            print(model)
        return dict(ranked[0])

    # expand makes an instance of each combination: four jobs
    best(train.expand(rate=[0.1, 0.5], depth=[2, 4]))


sweep()
# END sweep
