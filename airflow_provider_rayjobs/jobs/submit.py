"""
Submit a job; engines (see :mod:`.steps`).

Local code is packed and uploaded before the submission. A submission creates exactly one job, even if answers are lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from airflow_provider_rayjobs.exceptions import Delivery, RayJobExistsError, RayJobsError
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.models import JobDetails, JobSubmission
from airflow_provider_rayjobs.jobs.packages.paths import has_local_code
from airflow_provider_rayjobs.jobs.progress import run_in_slices
from airflow_provider_rayjobs.jobs.redaction import redact_urls
from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, Send, Step, map_steps, raising_unreachable, send
from airflow_provider_rayjobs.jobs.submission import NONCE, SubmissionOptions, build_submission, check_runtime_env_keys

# An engine that prepares an attempt to submit a job. Its argument says whether an earlier attempt failed.
BeforeAttempt = Callable[[bool], Engine[None]]


class CodeOptions(SubmissionOptions, total=False):
    """
    The options of a submission that may have local code.

    - ``package_secrets``: whether to pack files that look like secrets; or ``.gitignore`` patterns for those to pack.
    """

    package_secrets: bool | Sequence[str]


def submit_with_code(entrypoint: str | Sequence[str], options: CodeOptions, retry_timeout: float) -> Engine[str]:
    """
    Upload the local code of the runtime environment, submit the job, and return its submission id.

    All options are checked before anything is sent.

    :param retry_timeout: seconds for which a failed request is retried.
    """
    arguments: dict[str, Any] = dict(options)
    secrets = arguments.pop("package_secrets", False)
    runtime_env: Any = arguments.get("runtime_env")
    before_attempt: BeforeAttempt | None = None
    if not has_local_code(runtime_env):
        submission = build_submission(entrypoint, **arguments)
    else:
        # imported late: few submissions need these modules
        from airflow_provider_rayjobs.jobs.packages.local_code import find_packages  # noqa: PLC0415
        from airflow_provider_rayjobs.jobs.packages.upload import upload_packages  # noqa: PLC0415

        check_runtime_env_keys(runtime_env)
        code = yield from run_in_slices(find_packages(runtime_env, secrets=secrets), "Hashing local code")
        submission = build_submission(entrypoint, **{**arguments, "runtime_env": code.runtime_env})
        before_attempt = (yield from upload_packages(code, retry_timeout)).ensure
    yield from submit_job(submission, retry_timeout, before_attempt)
    return submission.submission_id


def submit_job(
    submission: JobSubmission, retry_timeout: float, before_attempt: BeforeAttempt | None = None
) -> Engine[bool]:
    """
    Submit a job exactly once.

    After a lost answer the client sends the same submission again. If Ray then says that the id is taken, the nonce in
    the job's metadata tells whether the job is this submission's.

    :param retry_timeout: seconds for which a failed request is retried.
    :param before_attempt: runs before each attempt to submit. Its errors are those of the attempt.
    :return: whether Ray confirmed the submission. Otherwise the client found the job by its nonce, and Ray may never
        start it (ray-project/ray issue 62766).
    :raises RayJobExistsError: the id belongs to the job of another submission.
    :raises RayApiUnreachableError: ``retry_timeout`` is exceeded; the job may exist.
    :raises RayJobsError: if ``delivery.may_have_effect``, the job may exist.
    """
    job = submission.submission_id
    may_exist = f"Ray may have received the submission: look for job {job} on the cluster before you submit another."
    sending = send(endpoints.submit_job(submission), retry_timeout)
    try:
        with raising_unreachable(retry_timeout, may_exist):
            yield from _before_each_attempt(sending, before_attempt) if before_attempt else sending
    except RayJobExistsError:
        try:
            existing: JobDetails = yield from send(endpoints.get_job(job), retry_timeout)
        except RayJobsError as error:
            error.delivery = Delivery.MAY_HAVE_ARRIVED  # the submission, not this request
            raise
        if existing.metadata.get(NONCE) != submission.metadata[NONCE]:
            raise
        yield from _warn_about_older_code(submission, existing)
        return False
    return True


def _before_each_attempt(sending: Engine[str], before_attempt: BeforeAttempt) -> Engine[str]:
    is_repeated = False

    def perform(step: Step) -> Engine[Any]:
        nonlocal is_repeated
        if isinstance(step, Send):
            was_repeated, is_repeated = is_repeated, True
            try:
                yield from before_attempt(was_repeated)
            except RayJobsError as error:
                if error.delivery is not Delivery.REFUSED:
                    error.delivery = Delivery.NOT_SENT  # the submission was not
                raise
        return (yield step)

    return map_steps(sending, perform)


def _warn_about_older_code(submission: JobSubmission, existing: JobDetails) -> Engine[None]:
    """Warn if this submission's existing job was submitted with other code."""
    if not existing.runtime_env:
        return
    for key in ("working_dir", "py_modules"):
        current, running = (submission.runtime_env or {}).get(key) or None, existing.runtime_env.get(key) or None
        if current != running:
            message = (
                f"Ray job {submission.submission_id} runs older code: it was submitted with {key} {running}, and {key} "
                f"is {current} now. The job is kept. To run the current code, stop the job and submit a new one."
            )
            yield LogMessage(redact_urls(message), logging.WARNING)


def get_session(submission_id: str, retry_timeout: float) -> Engine[str | None]:
    """Return the name of the current Ray session. ``submission_id`` names the job to submit, for the error message."""
    with raising_unreachable(retry_timeout, f"Job {submission_id} was not submitted.", delivery=Delivery.NOT_SENT):
        version = yield from send(endpoints.get_version(), retry_timeout)
    return version.session_name
