"""A submission with local code: its packages are uploaded first, then the job is submitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_rayjobs.jobs.packages.news import in_turns
from airflow_provider_rayjobs.jobs.packages.places import has_local_code
from airflow_provider_rayjobs.jobs.steps import Engine
from airflow_provider_rayjobs.jobs.submission import (
    SubmissionOptions,
    check_runtime_env_keys,
    plan_submission,
    submit_job,
)


class CodeOptions(SubmissionOptions, total=False):
    """
    The options of a submission by a client.

    ``package_secrets``
        whether files with names of :mod:`.secret_names` are packed; or patterns, as in a ``.gitignore``, for those to
        pack.
    """

    package_secrets: bool | Sequence[str]


def submit_with_code(entrypoint: str | Sequence[str], options: CodeOptions, patience: float) -> Engine[str]:
    """
    Check all arguments, upload the local code, submit the job, and return its submission id.

    :param patience: seconds for which temporary failures are retried.
    """
    arguments: dict[str, Any] = dict(options)
    secrets = arguments.pop("package_secrets", False)
    runtime_env: Any = arguments.get("runtime_env")
    if not has_local_code(runtime_env):
        submission = plan_submission(entrypoint, **arguments)
    else:
        # not at the top: few submissions need these modules, and every parsed DAG file would load them
        from airflow_provider_rayjobs.jobs.packages.local_code import find_packages  # noqa: PLC0415
        from airflow_provider_rayjobs.jobs.packages.upload import provide  # noqa: PLC0415

        check_runtime_env_keys(runtime_env)
        code = yield from in_turns(find_packages(runtime_env, secrets=secrets), "Naming local code")
        submission = plan_submission(entrypoint, **{**arguments, "runtime_env": code.runtime_env})
        yield from provide(code, patience)
    return (yield from submit_job(submission, patience)).submission_id
