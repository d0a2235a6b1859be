"""
A Ray cluster in memory, for tests of DAGs: docs/guides/testing.md.

With pytest the fixture ``fake_ray`` is there without an import. Other tests use ``with FakeRay() as fake_ray``.
"""

from airflow_provider_rayjobs.testing.cluster import Job, Plan, Reply
from airflow_provider_rayjobs.testing.fake_ray import FakeRay

__all__ = ["FakeRay", "Job", "Plan", "Reply"]
