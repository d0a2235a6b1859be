"""
Keep secrets out of what Airflow shows: logs, rendered templates.

Airflow masks what it was told of, in the records that reach a task's log (the supervisor does it, for the lines of a
Ray job as well) and in the template view. It knows passwords of connections, and values with telling names. What else
is secret here it has to be told.
"""

from __future__ import annotations

from airflow.providers.common.compat.sdk import mask_secret

from airflow_provider_rayjobs.connection import Cluster


def mask_cluster(cluster: Cluster) -> None:
    """Tell Airflow what of a connection must be seen nowhere. It asks the supervisor: nothing for a signal handler."""
    mask_secret([*cluster.secrets()])


async def amask_cluster(cluster: Cluster) -> None:
    """Do what :func:`mask_cluster` does on the triggerer's event loop."""
    try:
        from airflow.sdk.log import amask_secret  # noqa: PLC0415  (not in the first versions of Airflow 3)
    except ImportError:
        mask_cluster(cluster)
    else:
        await amask_secret([*cluster.secrets()])
