"""A submission whose runtime environment may name local code: packed and sent first, then submitted."""

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
    What a submission by a client may say.

    ``package_secrets``
        whether files of local code whose names are those of secrets (:mod:`.secret_names`) are packed; or patterns, as
        in a .gitignore, for those that are.
    """

    package_secrets: bool | Sequence[str]


def submit_with_code(entrypoint: str | Sequence[str], options: CodeOptions, patience: float) -> Engine[str]:
    """
    Submit a job, after the local code that its runtime environment names; answered by its submission id.

    What is wrong with the rest of the submission is said before anything is sent.

    :param patience: seconds for which failures that may pass are borne.
    """
    arguments: dict[str, Any] = dict(options)
    secrets = arguments.pop("package_secrets", False)
    runtime_env: Any = arguments.get("runtime_env")
    if not has_local_code(runtime_env):
        submission = plan_submission(entrypoint, **arguments)
    else:
        # here, as few submissions need it, and every DAG file that is read would pay
        from airflow_provider_rayjobs.jobs.packages.local_code import find_packages  # noqa: PLC0415
        from airflow_provider_rayjobs.jobs.packages.upload import provide  # noqa: PLC0415

        check_runtime_env_keys(runtime_env)
        code = yield from in_turns(find_packages(runtime_env, secrets=secrets), "Naming local code")
        submission = plan_submission(entrypoint, **{**arguments, "runtime_env": code.runtime_env})
        yield from provide(code, patience)
    return (yield from submit_job(submission, patience)).submission_id
