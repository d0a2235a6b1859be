"""Arguments that do not exist: names of other ways to run Ray jobs, whose errors lead to the migration pages; typos."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

# Where a reader finds the pages. Add the address when [project.urls] of pyproject.toml has "Documentation".
DOCUMENTATION = "the documentation of airflow-provider-rayjobs"


class Origin(NamedTuple):
    """
    Where arguments of a user come from.

    :param name: the package or program.
    :param page: the title of the migration page.
    :param arguments: its names and ours; "" if there is no counterpart.
    """

    name: str
    page: str
    arguments: Mapping[str, str]

    @property
    def where(self) -> str:
        """Say where the page is, at the end of a message."""
        return f'the page "{self.page}" in {DOCUMENTATION}'


# Its ``resources`` is missing: Airflow's operators have that, too.
ASTRO = Origin(
    "astro-provider-ray",
    "From astro-provider-ray",
    {
        "conn_id": "ray_conn_id",
        "num_cpus": "entrypoint_num_cpus",
        "num_gpus": "entrypoint_num_gpus",
        "memory": "entrypoint_memory",
        "job_timeout_seconds": "job_timeout",
        **dict.fromkeys(("config", "xcom_task_key"), ""),
        **dict.fromkeys(("ray_cluster_yaml", "kuberay_version", "update_if_exists", "gpu_device_plugin_yaml"), ""),
    },
)
GOOGLE = Origin(
    "Google's RaySubmitJobOperator",
    "From Google's Ray operators",
    {
        "cluster_address": "ray_conn_id",
        "gcp_conn_id": "ray_conn_id",
        "wait_for_job_done": "wait_for_completion",
        "get_job_logs": "fetch_logs",
        "submit_job_timeout": "job_timeout",
        "impersonation_chain": "",
    },
)
SDK = Origin(
    "Ray's JobSubmissionClient",
    "From PythonOperator with Ray's SDK",
    {**dict.fromkeys(("address", "headers", "cookies", "verify"), "ray_conn_id"), "job_id": "submission_id"},
)
CLI = Origin(
    "ray job submit",
    "From BashOperator with ray job submit",
    {
        "working_dir": 'runtime_env["working_dir"]',
        "runtime_env_json": "runtime_env",
        "metadata_json": "metadata",
        "no_wait": "wait_for_completion",
    },
)
ORIGINS = (ASTRO, GOOGLE, SDK, CLI)
EXTRAS = {
    "address": "host",
    "cookies": "headers",
    **dict.fromkeys(("metadata", "create_cluster_if_needed", "kube_config_path", "kube_config", "namespace"), ""),
    **dict.fromkeys(("cluster_context", "disable_verify_ssl", "disable_tcp_keepalive"), ""),
}


def check_arguments(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise :class:`TypeError` for arguments of another origin, and for those that resemble a known one."""
    near = {name: difflib.get_close_matches(name, known, n=1) for name in given if name not in known}
    names = [name for name, found in near.items() if found or origin_of(name)]
    if names:
        hints = [_describe(origin, names, origin.arguments) for origin in ORIGINS]
        hints += [f"Did you mean {near[name][0]}?" for name in names if not origin_of(name)]
        raise TypeError(f"{owner} has no argument {', '.join(names)}. {' '.join(filter(None, hints))}")


def origin_of(argument: str) -> Origin | None:
    """Return where an argument comes from."""
    return next((origin for origin in ORIGINS if argument in origin.arguments), None)


def describe_extras(given: Iterable[str]) -> str:
    """Describe the extras among the given ones that are astro-provider-ray's. Empty if there are none."""
    return _describe(ASTRO, given, EXTRAS)


def _describe(origin: Origin, given: Iterable[str], names: Mapping[str, str]) -> str:
    found = [name for name in given if name in names]
    if not found:
        return ""
    renamed = ", ".join(f"{name} is {names[name]} here" for name in found if names[name])
    return f"That is from {origin.name}{f': {renamed}' if renamed else ''}. See {origin.where}."
