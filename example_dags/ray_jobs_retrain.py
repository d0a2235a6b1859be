"""
Train a model again when an interactive job of a data scientist has ended.

Airflow did not start that job: a notebook connects to the cluster, and says in the metadata what it is for::

    ray.init("ray://ray-head:10001", job_config=ray.job_config.JobConfig(metadata={"purpose": "labelling"}))
"""

from __future__ import annotations

# START retrain
from typing import Any

import pendulum
from airflow.sdk import Asset, AssetWatcher, dag, task

from airflow_provider_rayjobs.event_triggers import RayJobEventTrigger

labels = Asset(
    "labels",
    watchers=[AssetWatcher(name="labelling_has_ended", trigger=RayJobEventTrigger(metadata={"purpose": "labelling"}))],
)


@dag(schedule=[labels], start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), tags=["ray"], doc_md=__doc__)
def ray_jobs_retrain() -> None:
    @task
    def ended_jobs(triggering_asset_events: Any = None) -> list[str]:
        # Airflow may start one run for several jobs that end at about the same time
        return [event.extra["payload"]["job_id"] for event in triggering_asset_events[labels]]

    @task.ray_job
    def retrain(jobs: Any) -> None:
        print("Training with the labels of", *jobs)

    retrain(ended_jobs())


ray_jobs_retrain()
# END retrain
