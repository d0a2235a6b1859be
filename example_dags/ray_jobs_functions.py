"""Train a model for each of several parameters on a Ray cluster, pick the best, and publish it: with functions."""

from __future__ import annotations

# START functions
import statistics
from typing import Any

import pendulum
from airflow.sdk import Asset, dag, task

from airflow_provider_rayjobs.in_job import add_asset_extra


@dag(
    schedule=None,
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    params={"alphas": [0.1, 0.5, 0.9]},
    tags=["ray"],
    doc_md=__doc__,
)
def ray_jobs_functions() -> None:
    @task.ray_job(entrypoint_num_cpus=0.5)
    def extract(day: str) -> list[dict[str, Any]]:
        """Runs on the cluster. The value that it returns goes back to Airflow."""
        return [{"day": day, "hour": hour, "trips": 100 + 10 * (hour % 12)} for hour in range(24)]

    @task
    def alphas(params: Any = None) -> list[float]:
        return list(params["alphas"])

    @task.ray_job(
        # an option may be a template, or a function of the context
        job_name="train {{ ti.map_index }}",
        entrypoint_memory=lambda context: 64 * 1024**2 * context["ti"].try_number,
        retries=1,
        map_index_template="alpha {{ task.op_kwargs['alpha'] }}",
    )
    def train(rows: list[dict[str, Any]], alpha: float) -> dict[str, Any]:
        # Ray is imported where it is needed: the workers of Airflow do not have it.
        import ray

        @ray.remote
        def error_at(number: int) -> float:
            smoothed = rows[0]["trips"]
            for row in rows[:number]:
                smoothed += alpha * (row["trips"] - smoothed)
            return abs(float(rows[number]["trips"] - smoothed))

        errors = ray.get([error_at.remote(number) for number in range(1, len(rows))])
        # statistics is imported at the top of this file, and goes to the cluster with the function
        return {"alpha": alpha, "error": statistics.mean(errors)}

    @task
    def best(models: Any) -> dict[str, Any]:
        return min(models, key=lambda model: float(model["error"]))

    @task.ray_job(outlets=[Asset("smoothing_model")])
    def register(model: Any) -> str:
        # appears in the asset's events, with the submission id
        add_asset_extra({"alpha": model["alpha"]})
        print(f"Registered the model with alpha {model['alpha']}.")
        return f"smoothing-{model['alpha']}"

    models = train.partial(rows=extract("{{ ds | default('2026-01-01') }}")).expand(alpha=alphas())
    register(best(models))


ray_jobs_functions()
# END functions
