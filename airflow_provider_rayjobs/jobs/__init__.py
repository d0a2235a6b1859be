"""
A client for the Ray Jobs REST API. It needs httpx, and neither Ray nor its caller's framework.

Only :mod:`.client` does I/O; everything else is pure functions and generators.
"""

from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient, RayJobsClient
from airflow_provider_rayjobs.jobs.models import JobDetails, JobErrorType, JobStatus, JobSubmission, JobType, RayVersion

__all__ = [
    "Access", "AsyncRayJobsClient", "JobDetails", "JobErrorType", "JobStatus", "JobSubmission", "JobType",
    "RayJobsClient", "RayVersion",
]  # fmt: skip
