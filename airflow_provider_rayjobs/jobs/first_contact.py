"""
The first contact with a cluster, before anything is submitted.

If no connection can be made then, the address is more often wrong than the cluster is away for a moment. So the retries
end earlier than those of an outage: no job exists that a client must follow. The first connection ends this phase,
whatever the answer is, as it shows that the address leads to a server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

from airflow_provider_rayjobs.exceptions import Delivery, RayApiConnectionError, RayJobsError
from airflow_provider_rayjobs.jobs.steps import Engine, ReadLog, Send, Step, Upload, map_steps

T = TypeVar("T")

# Seconds. A head that is restarted or a new service needs about a minute until it takes connections.
FIRST_CONTACT_TIMEOUT = 90.0


@dataclass
class FirstContact:
    """
    Whether a connection to a cluster was made yet.

    :param timeout: seconds for which it is retried.
    """

    timeout: float = FIRST_CONTACT_TIMEOUT
    is_made: bool = False

    def limit(self, engine: Engine[T]) -> Engine[T]:
        """Run an engine whose retries end earlier (``error.retry_for``) if no connection was ever made."""

        def note(step: Step) -> Engine[Any]:
            try:
                answer = yield step
            except RayJobsError as error:
                if not isinstance(error, RayApiConnectionError) or error.delivery is not Delivery.NOT_SENT:
                    self.is_made = True
                elif not self.is_made:
                    error.retry_for = self.timeout
                raise
            self.is_made = self.is_made or isinstance(step, Send | ReadLog | Upload)
            return answer

        return map_steps(engine, note)
