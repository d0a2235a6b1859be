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
_IS_PUSHED = "_ray_job_link_is_pushed"


def push_link(task: Any, task_instance: Any, url: str) -> None:
    """Push the address behind the button, and note that it can be read."""
    task_instance.xcom_push(key=XCOM_KEY, value=url)
    setattr(task, _IS_PUSHED, True)


class RayJobLink(BaseOperatorLink):
    """Open the task's job in the Ray dashboard."""

    name = "Ray job"

    @property
    def xcom_key(self) -> str:
        return XCOM_KEY

    def get_link(self, operator: Any, *, ti_key: TaskInstanceKey) -> str:
        """Return the address that the task pushed; empty before that. Airflow calls this when a process has ended."""
        if not (getattr(operator, _IS_PUSHED, False) or _is_continued(ti_key)):
            return ""  # Airflow would log an error about the XCom that does not exist
        return XCom.get_value(key=XCOM_KEY, ti_key=ti_key) or ""


def _is_continued(task_instance: Any) -> bool:
    """Tell whether another process of this try may have pushed the link: the task was deferred or rescheduled."""
    given = getattr(task_instance, "_ti_context_from_server", None)
    return given is None or bool(given.next_method or given.task_reschedule_count)
