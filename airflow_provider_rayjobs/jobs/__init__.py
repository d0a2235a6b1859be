"""
A client for the Ray Jobs REST API that needs neither Ray nor Airflow.

Everything that can be known without a socket is a pure function or a generator here; :mod:`.client` is the
one room that does I/O.
"""

from airflow_provider_rayjobs.jobs.access import Access
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient, RayJobsClient
from airflow_provider_rayjobs.jobs.models import (
    JobDetails,
    JobErrorType,
    JobStatus,
    JobSubmission,
    JobType,
    RayVersion,
)

__all__ = [
    "Access",
    "AsyncRayJobsClient",
    "JobDetails",
    "JobErrorType",
    "JobStatus",
    "JobSubmission",
    "JobType",
    "RayJobsClient",
    "RayVersion",
]
