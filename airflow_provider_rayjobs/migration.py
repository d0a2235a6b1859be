"""Names of astro-provider-ray that a user may still use, for errors that lead to the migration page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PAGE = "docs/MIGRATING.md"
# Its names and ours; "" if there is no counterpart. Its ``resources`` is missing: Airflow's operators have that, too.
ARGUMENTS = {
    "conn_id": "ray_conn_id",
    "num_cpus": "entrypoint_num_cpus",
    "num_gpus": "entrypoint_num_gpus",
    "memory": "entrypoint_memory",
    "job_timeout_seconds": "job_timeout",
    **dict.fromkeys(("config", "xcom_task_key"), ""),
    **dict.fromkeys(("ray_cluster_yaml", "kuberay_version", "update_if_exists", "gpu_device_plugin_yaml"), ""),
}
EXTRAS = {
    "address": "host",
    "cookies": "headers",
    **dict.fromkeys(("metadata", "create_cluster_if_needed", "kube_config_path", "kube_config", "namespace"), ""),
    **dict.fromkeys(("cluster_context", "disable_verify_ssl", "disable_tcp_keepalive"), ""),
}


def check_arguments(operator: str, given: Iterable[str]) -> None:
    """Raise :class:`TypeError` if arguments of astro-provider-ray are among the given ones."""
    if names := [name for name in given if name in ARGUMENTS]:
        raise TypeError(f"{operator} has no argument {', '.join(names)}. {describe_names(names, ARGUMENTS)}")


def describe_names(given: Iterable[str], names: Mapping[str, str]) -> str:
    """Describe the names among the given ones that are astro-provider-ray's. Empty if there are none."""
    found = [name for name in given if name in names]
    if not found:
        return ""
    renamed = ", ".join(f"{name} is {names[name]} here" for name in found if names[name])
    return f"That is from astro-provider-ray{f': {renamed}' if renamed else ''}. See {PAGE} of this provider."
