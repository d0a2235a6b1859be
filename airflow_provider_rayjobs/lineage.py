"""
Lineage of tasks and their jobs, through Airflow's OpenLineage provider.

The provider is imported if it is installed, and OpenLineage itself only if the provider is on.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import redact

from airflow_provider_rayjobs.jobs.redaction import redact_urls

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

# The variables in which OpenLineage's integrations expect the parent run. The third one takes precedence over them.
# Source: openlineage-integration-common 1.54 ``provider/dbt/utils.py``, ``get_parent_run_metadata``.
PARENT, ROOT, CONTEXT = "OPENLINEAGE_PARENT_ID", "OPENLINEAGE_ROOT_PARENT_ID", "OPENLINEAGE_CONTEXT"


def parent_variables(task_instance: Any, given: Mapping[str, str]) -> dict[str, str]:
    """
    Return the environment variables that make a program's run a child of the task's run; none if lineage is off.

    :param given: the user's variables. If one of them names a parent, it is left alone.
    """
    with suppress(Exception):  # not installed, or misconfigured: lineage must not break a task
        from airflow.providers.openlineage import conf  # noqa: PLC0415

        if conf.is_disabled() or not {PARENT, ROOT, CONTEXT}.isdisjoint(given):
            return {}
        from airflow.providers.openlineage.plugins import macros  # noqa: PLC0415

        return {
            PARENT: macros.lineage_parent_id(task_instance),
            ROOT: macros.lineage_root_parent_id(task_instance),
        }
    return {}


def describe_job(entrypoint: Any, job: tuple[str, str, str] | None) -> OperatorLineage[Any, Any]:
    """
    Return the lineage of a task with a job: the facet ``rayJob`` of its run.

    :param job: the submission id, the address of the cluster, and the address of the job's page.
    """
    import attr  # noqa: PLC0415
    from airflow.providers.openlineage import conf  # noqa: PLC0415
    from airflow.providers.openlineage.extractors import OperatorLineage  # noqa: PLC0415
    from openlineage.client.facet_v2 import RunFacet  # noqa: PLC0415

    # OpenLineage's names are in camel case.
    @attr.define
    class RayJobRunFacet(RunFacet):
        submissionId: str  # noqa: N815
        address: str
        dashboardUrl: str  # noqa: N815
        entrypoint: str | None

    if job is None:
        return OperatorLineage()
    command = entrypoint if isinstance(entrypoint, str) else shlex.join(map(str, entrypoint))
    shown = str(redact(redact_urls(command))) if conf.is_source_enabled() else None
    return OperatorLineage(run_facets={"rayJob": RayJobRunFacet(*job, shown)})
