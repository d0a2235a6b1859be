"""The button of a task in Airflow's UI that opens the job's page in the Ray dashboard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperatorLink, XCom

if TYPE_CHECKING:
    from airflow.sdk.types import TaskInstanceKey

# Airflow stores the link under this key when the task ends. The operator pushes the link before it waits, so that
# the button works while the job runs. Airflow runs no code when a user clicks: so it is the worker that replaces the
# link with that of the connection's ``history_url``, when the try ends.
XCOM_KEY = "ray_job_link"


class RayJobLink(BaseOperatorLink):
    """Open the task's job in the Ray dashboard."""

    name = "Ray job"

    @property
    def xcom_key(self) -> str:
        return XCOM_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  (Airflow's form)
        """Return the address that the task pushed; empty before that."""
        return XCom.get_value(key=XCOM_KEY, ti_key=ti_key) or ""
