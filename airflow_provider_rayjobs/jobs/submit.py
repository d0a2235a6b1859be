"""
Submit a job; engines (:mod:`.steps` is their contract).

Local code is packed and uploaded first. Exactly one job comes of a submission, whatever happens to the answers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_rayjobs.exceptions import RayJobExistsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.models import JobDetails, JobSubmission
from airflow_provider_rayjobs.jobs.packages.paths import has_local_code
from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, RunBlocking, raising_unreachable, send
from airflow_provider_rayjobs.jobs.submission import NONCE, SubmissionOptions, build_submission, check_runtime_env_keys


class CodeOptions(SubmissionOptions, total=False):
    """
    What a submission by a client may say.

    ``package_secrets``
        whether files of local code that look like secrets are packed; or patterns, as in a .gitignore, for those that
        are.
    """

    package_secrets: bool | Sequence[str]


def submit_with_code(entrypoint: str | Sequence[str], options: CodeOptions, retry_timeout: float) -> Engine[str]:
    """
    Submit a job, after the local code that its runtime environment names; answered by its submission id.

    What is wrong with the rest of the submission is said before anything is sent.

    :param retry_timeout: seconds for which failures that may pass are borne.
    """
    arguments: dict[str, Any] = dict(options)
    secrets = arguments.pop("package_secrets", False)
    runtime_env: Any = arguments.get("runtime_env")
    if not has_local_code(runtime_env):
        submission = build_submission(entrypoint, **arguments)
    else:
        # here, as few submissions need it, and every DAG file that is read would pay
        from airflow_provider_rayjobs.jobs.packages.local_code import resolve_local_code  # noqa: PLC0415
        from airflow_provider_rayjobs.jobs.packages.upload import upload_packages  # noqa: PLC0415

        check_runtime_env_keys(runtime_env)
        code = yield RunBlocking(lambda: resolve_local_code(runtime_env, secrets=secrets))
        submission = build_submission(entrypoint, **{**arguments, "runtime_env": code.runtime_env})
        yield from upload_packages(code, retry_timeout)
    return (yield from submit_job(submission, retry_timeout)).submission_id


@dataclass(frozen=True)
class SubmitResult:
    """
    A submission that Ray has.

    :param is_confirmed: whether Ray's answer to it was seen. Without, the job is known to exist by its nonce alone; the
        client may have left in the middle of the request, which can leave a record that nothing ever starts
        (ray-project/ray 62766).
    """

    submission_id: str
    is_confirmed: bool


def submit_job(submission: JobSubmission, retry_timeout: float) -> Engine[SubmitResult]:
    """
    Submit, and see to it that exactly one job comes of it whatever happens to the answers.

    A lost answer is followed by the same submission again. If Ray then says that the id is taken, the job's
    own metadata tells whether it was us.

    :param retry_timeout: seconds for which failures that may pass are borne.
    :raises RayJobExistsError: the id belongs to a job that is not this submission's.
    :raises RayApiUnreachableError: the patience is over; the job may exist all the same.
    """
    job = submission.submission_id
    may_exist = f"Ray may have received the submission: look for job {job} on the cluster before you submit another."
    try:
        with raising_unreachable(retry_timeout, may_exist):
            yield from send(endpoints.submit_job(submission), retry_timeout)
    except RayJobExistsError:
        existing: JobDetails = yield from send(endpoints.get_job(job), retry_timeout)
        if existing.metadata.get(NONCE) != submission.metadata[NONCE]:
            raise
        yield from _tell_other_code(submission, existing)
        return SubmitResult(job, is_confirmed=False)
    return SubmitResult(job, is_confirmed=True)


def _tell_other_code(submission: JobSubmission, existing: JobDetails) -> Engine[None]:
    """Warn where an earlier try submitted the same job with other code, which is what runs."""
    if not existing.runtime_env:
        return
    for key in ("working_dir", "py_modules"):
        ours, runs = (submission.runtime_env or {}).get(key) or None, existing.runtime_env.get(key) or None
        if ours != runs:
            yield LogMessage(
                f"Job {submission.submission_id} had arrived before, with other code: its {key} is {runs}, and now it "
                f"would be {ours}. It goes on with the former. Clear the task to have the present code run.",
                logging.WARNING,
            )


def get_session(submission_id: str, retry_timeout: float) -> Engine[str | None]:
    """
    Return the name of the cluster's present life, before a submission to it.

    :param submission_id: of the job that is to be submitted, for the message.
    :param retry_timeout: seconds for which failures that may pass are borne.
    :raises RayApiUnreachableError: the patience is over.
    """
    with raising_unreachable(retry_timeout, f"Job {submission_id} was not submitted.", sent=False):
        version = yield from send(endpoints.get_version(), retry_timeout)
    return version.session_name
