"""Operators that submit, stop and delete Ray jobs."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator, conf, context_to_airflow_vars

from airflow_provider_rayjobs import lineage, links, masking, tracing
from airflow_provider_rayjobs.exceptions import RayJobNotFoundError, RayJobNotTerminalError, RayPackageError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, RayJobsHook
from airflow_provider_rayjobs.in_job import NONCE_VARIABLE, stored_name
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.first_contact import FIRST_CONTACT_TIMEOUT
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.models import JobSubmission
from airflow_provider_rayjobs.jobs.packages.paths import has_local_code
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, stop_and_wait
from airflow_provider_rayjobs.jobs.submission import build_submission, check_runtime_env_keys, new_nonce
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.attempts import HAS_STORE, RetryGeneration, owner_of
from airflow_provider_rayjobs.task.boundary import Settings
from airflow_provider_rayjobs.task.execution import Execution
from airflow_provider_rayjobs.task.kill_switch import KillSwitch
from airflow_provider_rayjobs.task.literals import SUBMISSION_CHECKS, Checks, ChecksLiterals
from airflow_provider_rayjobs.task.orphans import DEPLOYMENT, MAY_OUTLIVE_TASK, deployment_name
from airflow_provider_rayjobs.task.outcomes import failing_at_once_for_mistakes, raising_task_errors
from airflow_provider_rayjobs.task.text_templates import RendersText

if TYPE_CHECKING:
    import jinja2
    from airflow.providers.openlineage.extractors import OperatorLineage
    from airflow.sdk import Context, ObjectStoragePath, XComArg

    from airflow_provider_rayjobs.jobs.packages.local_code import GeneratedModule, LocalCode
    from airflow_provider_rayjobs.jobs.steps import Engine
    from airflow_provider_rayjobs.package_storage import Storage
    from airflow_provider_rayjobs.rendered import Rendered

_DEFERRABLE = conf.getboolean("operators", "default_deferrable", fallback=False)


class RayJobSubmitOperator(RendersText, ChecksLiterals, BaseOperator):
    """
    Submit a job to a Ray cluster, follow it, and succeed or fail as it does.

    The job's log goes to the task's log. The submission id is pushed to XCom (key ``submission_id``) before the job is
    submitted, and is the return value. A job that FAILED or was STOPPED fails the try with an error of
    :mod:`airflow_provider_rayjobs.exceptions`.

    Each try has exactly one job, even if a process of Airflow dies. A retry follows the job of the last try if that job
    still runs, and takes its success. It submits a new job if that job failed or the task was cleared
    (:func:`~airflow_provider_rayjobs.task.attempts.decide`). The job is stopped when a user clears or marks the task,
    when the task times out, and when its worker shuts down.

    The driver's environment has Airflow's ``AIRFLOW_CTX_...`` variables, ``RAY_JOB_SUBMISSION_ID`` and
    ``RAY_JOB_NONCE``, which marks the messages of :mod:`~airflow_provider_rayjobs.in_job`. If Airflow's tracing is on,
    it also has ``TRACEPARENT``, unless ``env_vars`` set it; likewise ``OPENLINEAGE_PARENT_ID`` and
    ``OPENLINEAGE_ROOT_PARENT_ID`` with Airflow's OpenLineage provider. The metadata of the job has ``airflow_dag_id``,
    ``airflow_run_id``, ``airflow_task_id``, ``airflow_map_index``, ``airflow_try_number``, ``airflow_max_tries``,
    ``airflow_run_start_date``, ``airflow_clear_number``, ``airflow_logical_date``, and ``airflow_deployment`` and
    ``airflow_may_outlive_task`` for
    :class:`~airflow_provider_rayjobs.cleanup.RayJobCleanupOperator`.

    Every duration in seconds may also be a timedelta. Every templated argument may also be a function that gets the
    context and returns the argument, or the output of another task (``Rendered`` in the types).

    :param entrypoint: a shell command, or a list of arguments. The provider quotes each argument for the shell.
        (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param submission_id: the id of the first submission; later ones append ``-2``, ``-3``. A mapped task appends its
        map index first: ``-m3``. It must be unique on the cluster. The default is made of dag, task, map index and try.
        (templated)
    :param job_name: the name in the Ray dashboard. The default is ``dag_id.task_id``. (templated)
    :param runtime_env: Ray's runtime environment as a dictionary, or the path of a YAML file. Local code in it
        (``working_dir``, ``py_modules``, files for ``pip``, ``uv`` and ``conda``) is packed on the worker and uploaded,
        unless the cluster has it. A relative path is searched next to the DAG file, then in the working directory; one
        in a YAML file next to that file. Files for ``pip``, ``uv`` and ``conda`` may also be in the ``working_dir``.
        (templated, except the contents of a YAML file)
    :param package_secrets: whether to pack local files whose names suggest secrets (``.env``, ``id_rsa`` ...; the guide
        on local code has the list). A list of .gitignore patterns packs only the matching files. The default is
        ``False``. (templated)
    :param package_storage: an object storage path (``s3://conn_id@bucket/prefix``) that the cluster can read, for local
        code of 100 MiB and more, the limit of Ray's HTTP server. The results of functions of more than 1 MiB go there,
        too, if the cluster can write. (templated)
    :param metadata: a dictionary of text, stored with the job. (templated)
    :param entrypoint_num_cpus: CPU cores reserved for the entrypoint command, without its tasks and actors. (templated)
    :param entrypoint_num_gpus: GPUs reserved for the entrypoint command. (templated)
    :param entrypoint_memory: bytes reserved for the entrypoint command, as a number or as text such as ``2GB`` or
        ``1.5GiB``. (templated)
    :param entrypoint_resources: custom resources reserved for the entrypoint command, name to quantity. (templated)
    :param entrypoint_label_selector: labels of the node for the entrypoint command (Ray 2.54 and later). (templated)
    :param wait_for_completion: ``False`` ends the task after the submission. Another task can wait for the job with a
        :class:`~airflow_provider_rayjobs.sensors.RayJobSensor`. (templated)
    :param deferrable: wait in the triggerer. The default is Airflow's setting ``[operators] default_deferrable``.
        (templated)
    :param defer_after: seconds for which a deferrable task follows its job on the worker first. It defers only if the
        job lasts longer. A deferral takes 8 s or more, and a second start of a worker process. The default is 0.
        (templated)
    :param poll_interval: seconds between two polls; the first intervals are shorter. The default is ``[ray_jobs]
        poll_interval`` of Airflow's configuration, or 5: a poll costs the head 4 ms. (templated)
    :param fetch_logs: ``live`` shows the job's log while the job runs, ``on_completion`` at its end, ``never`` not at
        all. While a task is deferred, ``live`` shows the start; the task shows the rest when it resumes. (templated)
    :param log_lines_limit: the maximum number of log lines: half of them from the start of the log, half from its end.
        With ``fetch_logs="on_completion"`` all of them are from the end. The default is no limit. (templated)
    :param log_flush_interval: seconds after which a deferred task resumes if there are new log lines, shows them, and
        defers again. Use it for long logs that must be live; the triggerer then shows nothing. The default is never.
        (templated)
    :param unreachable_timeout: seconds for which an outage is tolerated. The default is ``[ray_jobs]
        unreachable_timeout``, or 600: a restart of the head or of an ingress takes less. (templated)
    :param first_contact_timeout: seconds for which the first connection to the cluster is retried, before a job is
        submitted. The default is ``[ray_jobs] first_contact_timeout``, or 90: an address to which no connection can be
        made is more often wrong than its cluster is away. (templated)
    :param durable: whether a retry follows the job of the last try. The default is ``True``. Airflow before 3.3 has no
        task state store, so there each try submits a new job.
    :param stop_on_kill: whether the job is stopped when the task is cleared, marked or timed out, or when its worker
        shuts down. With ``False``, a Clear leaves the job running and submits another. The default is ``[ray_jobs]
        stop_on_kill``, or ``True``. (templated)
    :param stop_timeout: seconds within which the end of a stopped job must be confirmed. The default is 30: Ray kills a
        job 3 s after SIGTERM, and a busy head answers late. (templated)
    :param pending_timeout: seconds from the submission to the start of the job, by the head's clock. The default is no
        limit. (templated)
    :param job_timeout: seconds from the submission to the end of the job, by the head's clock. The default is no limit.
        Airflow's ``execution_timeout`` limits one try, from the start of the try. (templated)
    :param return_result: whether the task returns what the job's program pushed with
        :func:`~airflow_provider_rayjobs.in_job.push_result`, instead of the submission id. (templated)
    :param fail_on_exit_code: one or more exit codes of the entrypoint that fail the task at once. (templated)
    :param skip_on_exit_code: one or more exit codes of the entrypoint that skip the task. (templated)
    """

    template_fields: Sequence[str] = (
        "entrypoint", "ray_conn_id", "submission_id", "job_name", "runtime_env", "metadata", "entrypoint_num_cpus",
        "entrypoint_num_gpus", "entrypoint_memory", "entrypoint_resources", "entrypoint_label_selector",
        "wait_for_completion", "defer_after", "poll_interval", "fetch_logs", "log_lines_limit", "log_flush_interval",
        "unreachable_timeout", "stop_on_kill", "stop_timeout", "pending_timeout", "job_timeout", "fail_on_exit_code",
        "skip_on_exit_code", "package_secrets", "package_storage", "return_result", "deferrable",
        "first_contact_timeout",
    )  # fmt: skip
    # Empty: Airflow would read an entrypoint that ends in ".yaml" as the name of a template file.
    template_ext: Sequence[str] = ()
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "entrypoint": "bash", "runtime_env": "json", "metadata": "json", "entrypoint_resources": "json",
        "entrypoint_label_selector": "json",
    }  # fmt: skip
    literal_checks: ClassVar[Checks] = SUBMISSION_CHECKS
    operator_extra_links = (links.RayJobLink(),)
    ui_color = "#d8ecfb"

    def __init__(
        self,
        *,
        entrypoint: str | Sequence[str] | Rendered,
        ray_conn_id: str | Rendered = DEFAULT_CONN_ID,
        submission_id: str | Rendered | None = None,
        job_name: str | Rendered | None = None,
        runtime_env: Mapping[str, Any] | str | Rendered | None = None,
        metadata: Mapping[str, str] | Rendered | None = None,
        entrypoint_num_cpus: float | str | Rendered | None = None,
        entrypoint_num_gpus: float | str | Rendered | None = None,
        entrypoint_memory: float | str | Rendered | None = None,
        entrypoint_resources: Mapping[str, float | str] | Rendered | None = None,
        entrypoint_label_selector: Mapping[str, str] | Rendered | None = None,
        wait_for_completion: bool | str | Rendered = True,
        deferrable: bool | str | Rendered = _DEFERRABLE,
        defer_after: float | str | timedelta | Rendered = 0.0,
        poll_interval: float | str | timedelta | Rendered | None = None,
        fetch_logs: str | Rendered = "live",
        log_lines_limit: int | str | Rendered | None = None,
        log_flush_interval: float | str | timedelta | Rendered | None = None,
        unreachable_timeout: float | str | timedelta | Rendered | None = None,
        first_contact_timeout: float | str | timedelta | Rendered | None = None,
        durable: bool | None = None,
        stop_on_kill: bool | str | Rendered | None = None,
        stop_timeout: float | str | timedelta | Rendered = STOP_TIMEOUT,
        pending_timeout: float | str | timedelta | Rendered | None = None,
        job_timeout: float | str | timedelta | Rendered | None = None,
        fail_on_exit_code: int | str | Collection[int | str] | Rendered | None = None,
        skip_on_exit_code: int | str | Collection[int | str] | Rendered | None = None,
        package_secrets: bool | str | Sequence[str] | Rendered = False,
        package_storage: str | ObjectStoragePath | Rendered | None = None,
        return_result: bool | str | Rendered = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entrypoint = entrypoint
        self.ray_conn_id: Any = ray_conn_id  # text when the task runs
        self.submission_id = submission_id
        self.job_name = job_name
        self.runtime_env = runtime_env
        self.metadata = metadata
        self.entrypoint_num_cpus = entrypoint_num_cpus
        self.entrypoint_num_gpus = entrypoint_num_gpus
        self.entrypoint_memory = entrypoint_memory
        self.entrypoint_resources = entrypoint_resources
        self.entrypoint_label_selector = entrypoint_label_selector
        self.wait_for_completion = wait_for_completion
        self.deferrable = deferrable
        self.defer_after = defer_after
        self.poll_interval = poll_interval
        self.fetch_logs = fetch_logs
        self.log_lines_limit = log_lines_limit
        self.log_flush_interval = log_flush_interval
        self.unreachable_timeout = unreachable_timeout
        self.first_contact_timeout = first_contact_timeout
        if durable and not HAS_STORE:
            message = "durable has no effect before Airflow 3.3 (no task state store). Each try submits a new job."
            warnings.warn(message, UserWarning, stacklevel=2)
        self.durable = HAS_STORE and durable is not False
        self.stop_on_kill: Any = stop_on_kill
        self.stop_timeout = stop_timeout
        self.pending_timeout = pending_timeout
        self.job_timeout = job_timeout
        self.fail_on_exit_code = fail_on_exit_code
        self.skip_on_exit_code = skip_on_exit_code
        self.package_secrets = package_secrets
        self.package_storage = package_storage
        self.return_result = return_result
        self._kill_switch = KillSwitch()
        self._job: tuple[str, str, str] | None = None
        self._check_literals()

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: jinja2.Environment,
        seen_oids: set[int],
    ) -> None:
        """
        Call the functions among the arguments, and render the others. Then mask and redact ``env_vars``.

        Airflow calls this method for mapped tasks, too.
        """
        if parent is self:
            called = {field for field in template_fields if callable(getattr(self, field))}
            for field in called:
                setattr(self, field, getattr(self, field)(context))
            # what a function returns is no template
            template_fields = [field for field in template_fields if field not in called]
        super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids)
        if parent is self:
            with suppress(ValueError, RayPackageError):  # ``execute`` reads it again, and raises the same error
                masking.mask_env_vars(template_values.as_runtime_env(self.runtime_env, self._folders()))
            self.runtime_env = masking.redact_env_vars(self.runtime_env)

    def execute(self, context: Context) -> Any:
        """Find or submit the job of this try, follow it if the task waits, and return its id or its result."""
        return Execution(self, context, self._kill_switch).submit_and_wait()

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None, **_later: Any) -> Any:
        """Show the rest of the log after the trigger has fired, and end as the job ended."""
        return Execution(self, context, self._kill_switch, is_resumed=True).resume(event or {})

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Resume as Airflow says. If the trigger has failed, see to the job before the error is raised."""
        resume = partial(super().resume_execution, next_method, next_kwargs, context)
        if next_method == "execute_complete":  # guards itself
            return resume()
        return Execution(self, context, self._kill_switch, is_resumed=True).guard(resume)

    def on_kill(self) -> None:
        """Stop the job within a few seconds. Airflow calls this from a signal handler, in the middle of ``execute``."""
        self._kill_switch.kill()

    def note_job(self, submission_id: str, address: str, url: str) -> None:
        """Note which job a try has seen to, for lineage."""
        self._job = submission_id, address, url

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any]:  # noqa: ARG002
        """Describe the job. The OpenLineage provider calls this after the task has succeeded or failed."""
        return lineage.describe_job(self.entrypoint, self._job)

    def settings(self) -> Settings:
        """
        Return the rendered arguments, checked.

        :raises ValueError: an argument is invalid. The error names the field.
        """
        waits = template_values.as_bool("wait_for_completion", self.wait_for_completion)
        return Settings(
            submission_id=template_values.as_optional_text("submission_id", self.submission_id),
            wait_for_completion=waits,
            deferrable=template_values.as_bool("deferrable", self.deferrable),
            defer_after=template_values.as_seconds("defer_after", self.defer_after),
            logs=template_values.as_log_options(self.fetch_logs, self.log_lines_limit, self.log_flush_interval),
            poll_interval=template_values.as_configured_seconds(
                "poll_interval", self.poll_interval, follow.POLL_INTERVAL
            ),
            unreachable_timeout=template_values.as_configured_seconds(
                "unreachable_timeout", self.unreachable_timeout, follow.UNREACHABLE_TIMEOUT
            ),
            first_contact_timeout=template_values.as_configured_seconds(
                "first_contact_timeout", self.first_contact_timeout, FIRST_CONTACT_TIMEOUT
            ),
            stop_on_kill=template_values.as_stop_on_kill(self.stop_on_kill),
            stop_timeout=template_values.as_seconds("stop_timeout", self.stop_timeout),
            limits=Limits(
                pending_timeout=template_values.as_optional_seconds("pending_timeout", self.pending_timeout),
                job_timeout=template_values.as_optional_seconds("job_timeout", self.job_timeout),
            ),
            fail_on=template_values.as_exit_codes("fail_on_exit_code", self.fail_on_exit_code),
            skip_on=template_values.as_exit_codes("skip_on_exit_code", self.skip_on_exit_code),
            execution_timeout=template_values.as_optional_seconds("execution_timeout", self.execution_timeout),
            return_result=template_values.as_return_result(self.return_result, waits=waits),
        )

    def generated_module(self, context: Context) -> GeneratedModule | None:  # noqa: ARG002  (for subclasses)
        """Return a module that is sent to the cluster with the job, beside the code of the runtime environment."""
        return None

    def resolve_local_code(self, context: Context) -> Engine[LocalCode | None]:
        """
        Find the local code of the job and compute its digests. Return ``None`` if there is none.

        :raises ValueError: the code cannot be packed. The error names the field.
        """
        runtime_env = template_values.as_runtime_env(self.runtime_env, self._folders()) or {}
        generated = self.generated_module(context)
        if not has_local_code(runtime_env) and generated is None:
            return None
        # Imported here, because parsing a DAG file imports this module.
        from airflow_provider_rayjobs.jobs.packages.local_code import find_packages  # noqa: PLC0415
        from airflow_provider_rayjobs.jobs.progress import run_in_slices  # noqa: PLC0415

        check_runtime_env_keys(runtime_env)
        packages = find_packages(
            runtime_env,
            folders=template_values.search_folders(self.runtime_env, self._folders()),
            secrets=template_values.as_package_secrets(self.package_secrets),
            storage=self._storage(),
            generated=generated,
        )
        code = yield from run_in_slices(packages, "Hashing local code")
        masking.mask_env_vars(code.runtime_env)  # requirements files may hold URLs with credentials
        return code

    def read_stored_result(self, nonce: str, limit: int) -> bytes:
        """
        Return the file of a result that is too large for the job's log.

        :raises ValueError: the task has no package storage.
        """
        storage = self._storage()
        if storage is None:
            raise ValueError("this task has no package_storage any more")
        return storage.read(stored_name(nonce), limit)

    def _storage(self) -> Storage | None:
        # Imported here, because parsing a DAG file imports this module.
        from airflow_provider_rayjobs.package_storage import open_storage  # noqa: PLC0415

        return None if template_values.is_unset(self.package_storage) else open_storage(self.package_storage)

    def new_submission(
        self, context: Context, submission_id: str, nonce: str | None = None, *, runtime_env: Any = None
    ) -> JobSubmission:
        """
        Return the submission for the rendered arguments.

        :param nonce: the nonce of a submission that is sent again. The default is a new one.
        :param runtime_env: replaces the rendered one; it has package URIs in place of local code.
        :raises ValueError: an argument is invalid. The error names the field.
        """
        if runtime_env is None:
            runtime_env = template_values.as_runtime_env(self.runtime_env, self._folders()) or {}
        metadata = template_values.as_text_dict("metadata", self.metadata) or {}
        if job_name := template_values.as_optional_text("job_name", self.job_name):
            metadata["job_name"] = job_name
        env_vars = context_to_airflow_vars(context, in_env_var_format=True) | {"RAY_JOB_SUBMISSION_ID": submission_id}
        if traceparent := tracing.traceparent():
            env_vars[tracing.VARIABLE] = traceparent
        nonce = nonce or new_nonce()
        given = runtime_env.get("env_vars") or {}
        env_vars |= lineage.parent_variables(context["ti"], given)
        env_vars |= given
        env_vars[NONCE_VARIABLE] = nonce
        return build_submission(
            template_values.as_entrypoint(self.entrypoint),
            nonce=nonce,
            submission_id=submission_id,
            runtime_env={**runtime_env, "env_vars": env_vars},
            metadata=build_metadata(context, metadata, may_outlive_task=self._may_outlive_task()),
            entrypoint_num_cpus=template_values.as_number("entrypoint_num_cpus", self.entrypoint_num_cpus),
            entrypoint_num_gpus=template_values.as_number("entrypoint_num_gpus", self.entrypoint_num_gpus),
            entrypoint_memory=template_values.as_bytes("entrypoint_memory", self.entrypoint_memory),
            entrypoint_resources=template_values.as_number_dict("entrypoint_resources", self.entrypoint_resources),
            entrypoint_label_selector=template_values.as_text_dict(
                "entrypoint_label_selector", self.entrypoint_label_selector
            ),
        )

    def _may_outlive_task(self) -> bool:
        """Tell whether the job may run on after its task has ended."""
        waits = template_values.as_bool("wait_for_completion", self.wait_for_completion)
        return not (waits and template_values.as_stop_on_kill(self.stop_on_kill))

    def _folders(self) -> list[Path]:
        """Return where a relative path is searched: next to the DAG file, then in the working directory."""
        dag_file = getattr(self.dag, "fileloc", None) if self.has_dag() else None
        return [Path(dag_file).parent, Path.cwd()] if dag_file else [Path.cwd()]


def build_metadata(context: Context, given: Mapping[str, str], *, may_outlive_task: bool) -> dict[str, str]:
    """
    Return a job's metadata: the user's keys and those of the task instance.

    :raises ValueError: the user sets a key of the task instance.
    """
    task_instance = context["ti"]
    logical_date = context.get("logical_date")
    reserved = {
        **owner_of(context),
        **RetryGeneration.of(context).metadata(),
        "airflow_try_number": str(task_instance.try_number),
        "airflow_logical_date": logical_date.isoformat() if logical_date else "",
        DEPLOYMENT: deployment_name(),
        MAY_OUTLIVE_TASK: str(may_outlive_task).lower(),
    }
    if taken := reserved.keys() & given.keys():
        raise ValueError(f"metadata must not contain {', '.join(sorted(taken))}: the provider sets these keys.")
    return {"job_name": f"{task_instance.dag_id}.{task_instance.task_id}"} | dict(given) | reserved


class _ManageJobOperator(RendersText, ChecksLiterals, BaseOperator):
    """Base of the operators for an existing job."""

    template_fields: Sequence[str] = ("submission_id", "ray_conn_id", "missing_ok")
    ui_color = "#d8ecfb"

    def __init__(
        self,
        *,
        submission_id: str | XComArg,
        ray_conn_id: str = DEFAULT_CONN_ID,
        missing_ok: bool | str = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.submission_id = submission_id
        self.ray_conn_id = ray_conn_id
        self.missing_ok = missing_ok
        self._check_literals()


class RayJobStopOperator(_ManageJobOperator):
    """
    Stop a job and wait for its end. Succeed if the job has already ended.

    :param submission_id: the id of the job, often from XCom. (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param stop_timeout: seconds (or a timedelta) within which Ray must confirm the end of the job, or the try fails.
        The default is 30: a busy head answers late. (templated)
    :param missing_ok: whether an unknown job is a success with a warning, or an error. (templated)
    """

    template_fields: Sequence[str] = (*_ManageJobOperator.template_fields, "stop_timeout")
    operator_extra_links = (links.RayJobLink(),)

    def __init__(self, *, stop_timeout: float | str | timedelta = STOP_TIMEOUT, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stop_timeout = stop_timeout
        self._check_literals()

    def execute(self, context: Context) -> None:
        """Stop the job."""
        with failing_at_once_for_mistakes():
            job = template_values.as_submission_id(self.submission_id)
            timeout = template_values.as_seconds("stop_timeout", self.stop_timeout)
            missing_ok = template_values.as_bool("missing_ok", self.missing_ok)
            hook = RayJobsHook(self.ray_conn_id)
            cluster = hook.get_cluster()
        links.push_link(self, context["ti"], cluster.job_url(job))
        with raising_task_errors(self), hook.client_of(cluster) as client:
            stopped = client.run(stop_and_wait(JobRef(cluster.address, job), timeout))
        message = f"{stopped.summary} Cluster: {cluster.address}."
        if not stopped.has_ended:
            raise RayJobNotTerminalError(message)
        if stopped.details is None and not missing_ok:
            raise RayJobNotFoundError(message)
        log = self.log.warning if stopped.details is None else self.log.info
        log("%s", message)


class RayJobDeleteOperator(_ManageJobOperator):
    """
    Delete an ended job from its cluster, with its entry and log in the dashboard.

    Ray writes to a job's entry for up to 5 s after its end, which would undo the deletion. The operator waits for that
    time. A job that has not ended fails the try with a
    :class:`~airflow_provider_rayjobs.exceptions.RayJobNotTerminalError`: stop it first, or retry.

    :param submission_id: the id of the job, often from XCom. (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param missing_ok: whether an unknown job is a success with a warning, or an error. (templated)
    """

    def execute(self, context: Context) -> None:  # noqa: ARG002  (Airflow's signature)
        """Delete the job."""
        with failing_at_once_for_mistakes():
            job = template_values.as_submission_id(self.submission_id)
            missing_ok = template_values.as_bool("missing_ok", self.missing_ok)
            conn = RayJobsHook(self.ray_conn_id).get_conn()
        with raising_task_errors(self), conn as client:
            try:
                client.delete_job(job)
            except RayJobNotFoundError as error:
                if not missing_ok:
                    raise
                self.log.warning("%s There is nothing to delete.", error)
            else:
                self.log.info("Deleted Ray job %s at %s.", job, client.address)
