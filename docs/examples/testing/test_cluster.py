"""What else can happen on a cluster."""

# START cluster
import math

import pytest

from airflow_provider_rayjobs.exceptions import RayApiBusyError
from airflow_provider_rayjobs.hooks import RayJobsHook
from airflow_provider_rayjobs.jobs import RayJobsClient
from airflow_provider_rayjobs.testing import FakeRay, Plan, Reply


def test_job_of_another_user(fake_ray: FakeRay) -> None:
    job = fake_ray.submit("nightly-export", Plan(runs=math.inf))
    fake_ray.stop(job)

    assert RayJobsHook().get_job("nightly-export").status == "STOPPED"


def test_busy_ingress(fake_ray: FakeRay) -> None:
    fake_ray.on_request = lambda method, path: Reply(503)

    client = RayJobsClient(fake_ray.address, retry_timeout=0)
    with client, pytest.raises(RayApiBusyError):
        client.list_jobs()


# END cluster
