"""The button on a task in Airflow's UI that leads to the job's page in the Ray dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

# The link's own XCom key. Airflow asks for a link only when a task ends, and keeps the answer under this key;
# what the operator puts there before it waits makes the link work while the job runs, and stay the same.
XCOM_KEY = "ray_job_link"


class RayJobLink(BaseOperatorLink):
    """Open the task's job in the Ray dashboard."""

    name = "Ray job"

    @property
    def xcom_key(self) -> str:
        return XCOM_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  (Airflow's form)
        """Return the address that the task pushed when it knew its job, nothing before that."""
        return XCom.get_value(key=XCOM_KEY, ti_key=ti_key) or ""
