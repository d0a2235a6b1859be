"""The engine on the triggerer's event loop: one trigger follows one job and yields one event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_rayjobs import exceptions
from airflow_provider_rayjobs.exceptions import RayJobsError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, Cluster, RayJobsHook
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient
from airflow_provider_rayjobs.jobs.models import JobDetails

# Seconds before which no event is fired. Airflow notices only after up to 5 s (``[workers] min_heartbeat_interval``)
# and a scheduler loop that the process of a deferred task has gone; a task that has resumed by then it takes for
# killed, and fails it (apache/airflow issues 66374, 67287, 72716). Seen for 2 of 10 tasks that deferred for 4 s on
# Airflow 3.3.2 without any code of ours, and for none of 12 with this.
SETTLING_TIME = 8.0


class RayJobTrigger(BaseTrigger):
    """
    Follow a job to its end and fire once, with all that the resuming task needs.

    It writes nothing of the job's log: all triggers of a triggerer share one thin pipe for theirs. The worker
    writes it when the task resumes.

    :param submission_id: a submission id, or a Ray Core job id.
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``.
    :param poll_interval: seconds between two looks, once the first quick ones are over.
    :param unreachable_timeout: seconds without a usable answer that are borne in a row.
    :param missing_timeout: seconds for which "no such job" is borne.
    """

    def __init__(
        self,
        submission_id: str,
        ray_conn_id: str = DEFAULT_CONN_ID,
        poll_interval: float = follow.POLL_INTERVAL,
        unreachable_timeout: float = follow.UNREACHABLE_TIMEOUT,
        missing_timeout: float = 0.0,
    ) -> None:
        super().__init__()
        self.submission_id = submission_id
        self.ray_conn_id = ray_conn_id
        self.poll_interval = poll_interval
        self.unreachable_timeout = unreachable_timeout
        self.missing_timeout = missing_timeout

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class's path and the arguments, as Airflow's database keeps them."""
        return (
            "airflow_provider_rayjobs.triggers.RayJobTrigger",
            {
                "submission_id": self.submission_id,
                "ray_conn_id": self.ray_conn_id,
                "poll_interval": self.poll_interval,
                "unreachable_timeout": self.unreachable_timeout,
                "missing_timeout": self.missing_timeout,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yield one event, whatever happens: an error that is raised here loses its class on the way."""
        clock = asyncio.get_running_loop().time
        settled = clock() + SETTLING_TIME
        event = await self._follow()
        await asyncio.sleep(settled - clock())
        yield event

    async def _follow(self) -> TriggerEvent:
        try:
            hook = RayJobsHook(self.ray_conn_id)
            async with shared_client(hook, await hook.aget_cluster()) as client:
                details = await client.follow_job(
                    self.submission_id,
                    poll_interval=self.poll_interval,
                    unreachable_timeout=self.unreachable_timeout,
                    missing_timeout=self.missing_timeout,
                )
            return TriggerEvent(event_of_end(self.submission_id, details))
        except Exception as error:  # noqa: BLE001  (whatever it is, the worker shall say it)
            return TriggerEvent(event_of_error(self.submission_id, error))


def event_of_end(submission_id: str, details: JobDetails) -> dict[str, Any]:
    """Return the event of a job that has ended: plain JSON, and no secret of the job's."""
    return {"submission_id": submission_id, "job": details.to_event()}


def event_of_error(submission_id: str, error: Exception) -> dict[str, Any]:
    """Return the event of a follower that gave up."""
    return {"submission_id": submission_id, "error": type(error).__name__, "message": str(error)}


def details_of_event(event: Mapping[str, Any]) -> JobDetails:
    """
    Return the job that an event tells of.

    :raises RayJobsError: of the class that the follower met, when it gave up.
    """
    if "job" in event:
        return JobDetails.from_json(event["job"])
    kind = getattr(exceptions, str(event.get("error")), None)
    message = str(event.get("message") or f"The trigger of job {event.get('submission_id')} ended without a word.")
    if isinstance(kind, type) and issubclass(kind, RayJobsError):
        raise kind(message)
    raise RayJobsError(f"{event.get('error')}: {message}")


@dataclass
class _Shared:
    client: AsyncRayJobsClient
    users: int = 0


# A client costs 24 ms of the event loop (its TLS context), so triggers of one cluster share one. Clients
# belong to the loop that they were made on; the outer dictionary forgets loops that are gone.
_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Cluster, _Shared]] = WeakKeyDictionary()


@asynccontextmanager
async def shared_client(hook: RayJobsHook, cluster: Cluster) -> AsyncIterator[AsyncRayJobsClient]:
    """Lend the client for a cluster on this event loop; the last one to leave closes it."""
    clients = _shared.setdefault(asyncio.get_running_loop(), {})
    if cluster not in clients:
        clients[cluster] = _Shared(hook.async_client_of(cluster))
    shared = clients[cluster]
    shared.users += 1
    try:
        yield shared.client
    finally:
        shared.users -= 1
        if not shared.users:
            del clients[cluster]
            await shared.client.aclose()
