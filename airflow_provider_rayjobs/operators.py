"""Tasks that run Ray jobs, and tasks that stop them or clear them away."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator, conf, context_to_airflow_vars

from airflow_provider_rayjobs import links, masking
from airflow_provider_rayjobs.exceptions import RayJobNotFoundError, RayJobNotTerminalError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, RayJobsHook
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.models import JobSubmission
from airflow_provider_rayjobs.jobs.packages.paths import has_local_code
from airflow_provider_rayjobs.jobs.stop import STOP_TIMEOUT, delete_ended_job, stop_and_wait
from airflow_provider_rayjobs.jobs.submission import build_submission, check_runtime_env_keys
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.attempts import HAS_STORE, JobRecordStore, RetryGeneration
from airflow_provider_rayjobs.task.execution import Execution, Settings
from airflow_provider_rayjobs.task.kill_switch import KillSwitch
from airflow_provider_rayjobs.task.outcomes import raising_task_errors

if TYPE_CHECKING:
    from airflow.sdk import Context, ObjectStoragePath, XComArg

    from airflow_provider_rayjobs.jobs.packages.local_code import LocalCode
    from airflow_provider_rayjobs.jobs.steps import Engine


class RayJobSubmitOperator(BaseOperator):
    """
    Submit a job to a Ray cluster, follow it to its end, and end as it ends.

    The job's log passes into the task's log. Its submission id is pushed to XCom under ``submission_id``
    before it is sent, and is the return value. A job that ends FAILED or STOPPED fails the task with
    :class:`~airflow_provider_rayjobs.exceptions.RayJobFailedError` (or what is derived from it) or
    :class:`~airflow_provider_rayjobs.exceptions.RayJobStoppedError`.

    Each try has one job, whatever dies in between: a new try follows the job of the last one where that still runs,
    takes its success where nobody has, and submits anew where it failed or a person cleared the task
    (:func:`~airflow_provider_rayjobs.task.attempts.decide`). The job dies with the task: when it is cleared, marked or
    timed out, and when its worker is told to go.

    The driver finds Airflow's ``AIRFLOW_CTX_...`` variables and ``RAY_JOB_SUBMISSION_ID`` in its environment;
    the job's metadata holds ``airflow_dag_id``, ``airflow_run_id``, ``airflow_task_id``,
    ``airflow_map_index``, ``airflow_try_number``, ``airflow_max_tries``, ``airflow_run_start_date`` and
    ``airflow_logical_date``.

    :param entrypoint: a shell command; or a list of its arguments, which is quoted so that no value leaves
        its place. (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param submission_id: unique for the life of the cluster; made of dag, task, map index and try when not
        given. It is used for the first submission; later ones append ``-2``, ``-3``. (templated)
    :param job_name: the name in the Ray dashboard, ``dag_id.task_id`` when not given. (templated)
    :param runtime_env: Ray's runtime environment as a dictionary, or the path of a YAML file. Local code in it
        (``working_dir``, ``py_modules``, files for ``pip``, ``uv`` and ``conda``) is packed on the worker and sent to
        the cluster, unless it is there already. Relative paths, that of a YAML file too, are looked for beside the DAG
        file, then in the working directory; those in a YAML file beside it. (templated; a YAML file's contents are not)
    :param package_secrets: whether files of local code whose names are those of secrets (``.env``, ``id_rsa`` ...; the
        list is in ``docs/USAGE.md``) are packed; or patterns, as in a .gitignore, for those that are. (templated)
    :param package_storage: an object storage path (``s3://conn_id@bucket/prefix``) that the cluster can read, for local
        code of 100 MiB and more, which Ray's HTTP server does not take. (templated)
    :param metadata: text to text, kept with the job. (templated)
    :param entrypoint_num_cpus: cores reserved for the entrypoint command itself; fractions allowed.
        (templated)
    :param entrypoint_num_gpus: GPUs reserved for it; fractions allowed. (templated)
    :param entrypoint_memory: bytes reserved for it. (templated)
    :param entrypoint_resources: custom resources reserved for it, name to quantity. (templated)
    :param entrypoint_label_selector: labels of the node to run it on (Ray 2.54 and later). (templated)
    :param wait_for_completion: ``False`` ends the task with the submission; whether the job then succeeds is
        up to somebody else, such as a :class:`~airflow_provider_rayjobs.sensors.RayJobSensor`. (templated)
    :param deferrable: wait in the triggerer instead of on a worker; Airflow's setting ``[operators]
        default_deferrable`` is the default.
    :param poll_interval: seconds (or a timedelta) between two looks at the job, once the first quick ones are over.
        (templated)
    :param fetch_logs: ``live`` shows the job's log as it comes (if the task is deferred a little of it, and the rest
        when it resumes), ``on_completion`` after the job's end, ``never`` not at all. (templated)
    :param log_lines_limit: lines of the log that are shown at most; no limit when not given. Half of them are shown as
        they come, and the last ones when the job has ended; how many were left out between them is said. With
        ``fetch_logs="on_completion"`` they are the log's last ones. (templated)
    :param log_flush_interval: seconds (or a timedelta) after which a deferred task comes back to a worker, if its job
        has printed something, shows all of it, and is deferred again; the triggerer then shows nothing. For long logs
        that shall be seen live; a task that is not deferred takes no note of it. Never when not given. (templated)
    :param unreachable_timeout: seconds without a usable answer from the cluster that are borne in a row.
        (templated)
    :param durable: whether a new try looks for the job of the last one; ``True`` unless told otherwise. Airflow before
        3.3 has no place to remember it: there each try submits a new job.
    :param stop_on_kill: whether the job is stopped when the task is cleared, marked or timed out, or its worker ends.
        (templated)
    :param stop_timeout: seconds (or a timedelta) in which the end of a job that is stopped has to be confirmed.
        (templated)
    :param pending_timeout: seconds (or a timedelta) from the submission until the job must have started, by the head's
        clock; no limit when not given. (templated)
    :param job_timeout: seconds (or a timedelta) from the submission until the job must have ended, likewise. Airflow's
        ``execution_timeout`` does the same, and also ends a try on a worker that has taken so long. (templated)
    :param fail_on_exit_code: an exit code of the entrypoint, or a list, after which no retry is made. (templated)
    :param skip_on_exit_code: an exit code, or a list, that skips the task instead of failing it. (templated)
    """

    template_fields: Sequence[str] = (
        "entrypoint", "ray_conn_id", "submission_id", "job_name", "runtime_env", "metadata", "entrypoint_num_cpus",
        "entrypoint_num_gpus", "entrypoint_memory", "entrypoint_resources", "entrypoint_label_selector",
        "wait_for_completion", "poll_interval", "fetch_logs", "log_lines_limit", "log_flush_interval",
        "unreachable_timeout", "stop_on_kill", "stop_timeout", "pending_timeout", "job_timeout", "fail_on_exit_code",
        "skip_on_exit_code", "package_secrets", "package_storage",
    )  # fmt: skip
    # Empty, or an entrypoint that ends in ".yaml" would be taken for the name of a template file.
    template_ext: Sequence[str] = ()
    template_fields_renderers: ClassVar[dict[str, str]] = {
        "entrypoint": "bash",
        "runtime_env": "json",
        "metadata": "json",
        "entrypoint_resources": "json",
        "entrypoint_label_selector": "json",
    }
    operator_extra_links = (links.RayJobLink(),)
    ui_color = "#d8ecfb"

    def __init__(
        self,
        *,
        entrypoint: str | Sequence[str],
        ray_conn_id: str = DEFAULT_CONN_ID,
        submission_id: str | None = None,
        job_name: str | None = None,
        runtime_env: Mapping[str, Any] | str | None = None,
        metadata: Mapping[str, str] | None = None,
        entrypoint_num_cpus: float | str | None = None,
        entrypoint_num_gpus: float | str | None = None,
        entrypoint_memory: int | str | None = None,
        entrypoint_resources: Mapping[str, float | str] | None = None,
        entrypoint_label_selector: Mapping[str, str] | None = None,
        wait_for_completion: bool | str = True,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float | str | timedelta = follow.POLL_INTERVAL,
        fetch_logs: str = "live",
        log_lines_limit: int | str | None = None,
        log_flush_interval: float | str | timedelta | None = None,
        unreachable_timeout: float | str | timedelta = follow.UNREACHABLE_TIMEOUT,
        durable: bool | None = None,
        stop_on_kill: bool | str = True,
        stop_timeout: float | str | timedelta = STOP_TIMEOUT,
        pending_timeout: float | str | timedelta | None = None,
        job_timeout: float | str | timedelta | None = None,
        fail_on_exit_code: int | str | Collection[int | str] | None = None,
        skip_on_exit_code: int | str | Collection[int | str] | None = None,
        package_secrets: bool | str | Sequence[str] = False,
        package_storage: str | ObjectStoragePath | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entrypoint = entrypoint
        self.ray_conn_id = ray_conn_id
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
        self.poll_interval = poll_interval
        self.fetch_logs = fetch_logs
        self.log_lines_limit = log_lines_limit
        self.log_flush_interval = log_flush_interval
        self.unreachable_timeout = unreachable_timeout
        if durable and not HAS_STORE:
            warnings.warn(
                "durable has no effect before Airflow 3.3, which brought the task state store: each try submits a new "
                "job.",
                UserWarning,
                stacklevel=2,
            )
        self.durable = HAS_STORE and durable is not False
        self.stop_on_kill = stop_on_kill
        self.stop_timeout = stop_timeout
        self.pending_timeout = pending_timeout
        self.job_timeout = job_timeout
        self.fail_on_exit_code = fail_on_exit_code
        self.skip_on_exit_code = skip_on_exit_code
        self.package_secrets = package_secrets
        self.package_storage = package_storage
        self._kill = KillSwitch()

    def _do_render_template_fields(self, parent: Any, *args: Any, **kwargs: Any) -> None:
        """
        Render, then keep the values of ``env_vars`` out of what Airflow shows of that.

        Airflow calls this for mapped tasks, too, on the task that was made of them.
        """
        super()._do_render_template_fields(parent, *args, **kwargs)
        if parent is self:
            with suppress(ValueError, OSError):  # a mistake in it is execute's to say
                masking.mask_env_vars(template_values.as_runtime_env(self.runtime_env, self._folders()))
            self.runtime_env = masking.redact_env_vars(self.runtime_env)

    def execute(self, context: Context) -> str:
        """Find this try's job or submit one, follow it if asked to, and return its submission id."""
        execution = self._execution(context)
        if not execution.memory.is_durable and context["ti"].max_tries:
            self.log.info("Nothing is remembered from one try to the next: each try submits a new job.")
        return execution.submit_and_wait()

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:
        """Resume after the trigger: write the job's log, and end as the job ended."""
        return self._execution(context, is_resumed=True).resume(event)

    def on_kill(self) -> None:
        """Stop the job, in the few seconds that Airflow gives; called by a signal handler in the midst of the above."""
        self._kill.kill()

    def _execution(self, context: Context, *, is_resumed: bool = False) -> Execution:
        settings = self._settings()
        self._kill.is_enabled = settings.stop_on_kill
        store = context.get("task_state_store") if self.durable else None
        return Execution(self, context, settings, JobRecordStore(store), self._kill, is_resumed=is_resumed)

    def _settings(self) -> Settings:
        return Settings(
            submission_id=template_values.as_optional_text("submission_id", self.submission_id),
            wait_for_completion=template_values.as_bool("wait_for_completion", self.wait_for_completion),
            logs=LogOptions(
                fetch_logs=template_values.as_fetch_logs(self.fetch_logs),
                lines_limit=template_values.as_positive_int("log_lines_limit", self.log_lines_limit),
                flush_interval=template_values.as_optional_seconds("log_flush_interval", self.log_flush_interval),
            ),
            poll_interval=template_values.as_seconds("poll_interval", self.poll_interval),
            unreachable_timeout=template_values.as_seconds("unreachable_timeout", self.unreachable_timeout),
            stop_on_kill=template_values.as_bool("stop_on_kill", self.stop_on_kill),
            stop_timeout=template_values.as_seconds("stop_timeout", self.stop_timeout),
            limits=Limits(
                pending_timeout=template_values.as_optional_seconds("pending_timeout", self.pending_timeout),
                job_timeout=template_values.as_optional_seconds("job_timeout", self.job_timeout),
                execution_timeout=template_values.as_optional_seconds("execution_timeout", self.execution_timeout),
            ),
            fail_on=template_values.as_exit_codes("fail_on_exit_code", self.fail_on_exit_code),
            skip_on=template_values.as_exit_codes("skip_on_exit_code", self.skip_on_exit_code),
        )

    def resolve_local_code(self) -> Engine[LocalCode | None]:
        """
        Find and name the local code of the runtime environment; ``None`` if there is none.

        :raises ValueError: for what can never be packed, naming the field; nothing has been sent.
        """
        runtime_env = template_values.as_runtime_env(self.runtime_env, self._folders())
        if runtime_env is None or not has_local_code(runtime_env):
            return None
        # here, as every DAG file that is read would pay for it
        from airflow_provider_rayjobs.jobs.packages.local_code import find_packages  # noqa: PLC0415
        from airflow_provider_rayjobs.jobs.progress import in_turns  # noqa: PLC0415
        from airflow_provider_rayjobs.package_storage import open_storage  # noqa: PLC0415

        check_runtime_env_keys(runtime_env)
        packages = find_packages(
            runtime_env,
            folders=template_values.as_folders(self.runtime_env, self._folders()),
            secrets=template_values.as_package_secrets(self.package_secrets),
            storage=None if template_values.is_unset(self.package_storage) else open_storage(self.package_storage),
        )
        return (yield from in_turns(packages, "Naming local code"))

    def plan(
        self,
        context: Context,
        submission_id: str,
        nonce: str | None = None,
        *,
        runtime_env: Mapping[str, Any] | None = None,
    ) -> JobSubmission:
        """
        Return the submission that the rendered arguments ask for.

        :param nonce: of a submission that may have been sent before, to send the same one again.
        :param runtime_env: with its local code named; the rendered argument when not given.
        :raises ValueError: for what can never work, naming the field; nothing has been sent.
        """
        if runtime_env is None:
            runtime_env = template_values.as_runtime_env(self.runtime_env, self._folders()) or {}
        metadata = template_values.as_text_dict("metadata", self.metadata) or {}
        if job_name := template_values.as_optional_text("job_name", self.job_name):
            metadata["job_name"] = job_name
        return build_submission(
            template_values.as_entrypoint(self.entrypoint),
            nonce=nonce,
            submission_id=submission_id,
            runtime_env={**runtime_env}
            | {"env_vars": build_env_vars(context, submission_id) | (runtime_env.get("env_vars") or {})},
            metadata=build_metadata(context, metadata),
            entrypoint_num_cpus=template_values.as_number("entrypoint_num_cpus", self.entrypoint_num_cpus),
            entrypoint_num_gpus=template_values.as_number("entrypoint_num_gpus", self.entrypoint_num_gpus),
            entrypoint_memory=template_values.as_number("entrypoint_memory", self.entrypoint_memory),
            entrypoint_resources=template_values.as_number_dict("entrypoint_resources", self.entrypoint_resources),
            entrypoint_label_selector=template_values.as_text_dict(
                "entrypoint_label_selector", self.entrypoint_label_selector
            ),
        )

    def _folders(self) -> list[Path]:
        """Return where a relative path is looked for: beside the DAG file, then in the working directory."""
        dag_file = getattr(self.dag, "fileloc", None) if self.has_dag() else None
        return [Path(dag_file).parent, Path.cwd()] if dag_file else [Path.cwd()]


def build_metadata(context: Context, given: Mapping[str, str]) -> dict[str, str]:
    """
    Return a job's metadata: what the user gives, and which task instance the job belongs to.

    :raises ValueError: where the two claim the same key.
    """
    task_instance = context["ti"]
    logical_date = context.get("logical_date")
    ours = {
        "airflow_dag_id": task_instance.dag_id,
        "airflow_run_id": task_instance.run_id,
        "airflow_task_id": task_instance.task_id,
        "airflow_map_index": str(-1 if task_instance.map_index is None else task_instance.map_index),
        "airflow_try_number": str(task_instance.try_number),
        "airflow_max_tries": str(task_instance.max_tries),
        "airflow_run_start_date": RetryGeneration.of(context).run_start,
        # a run that was triggered without a logical date has none
        "airflow_logical_date": logical_date.isoformat() if logical_date else "",
    }
    if taken := ours.keys() & given.keys():
        raise ValueError(f"metadata must not hold {', '.join(sorted(taken))}: the provider says there whose the job is")
    return {"job_name": f"{task_instance.dag_id}.{task_instance.task_id}"} | dict(given) | ours


def build_env_vars(context: Context, submission_id: str) -> dict[str, str]:
    """Return the variables by which the driver knows where it comes from; they reach its tasks and actors too."""
    return context_to_airflow_vars(context, in_env_var_format=True) | {"RAY_JOB_SUBMISSION_ID": submission_id}


class RayJobStopOperator(BaseOperator):
    """
    Stop a job, and wait until it is over.

    A job that has ended already is success. What cannot be confirmed within ``stop_timeout`` fails the task.

    :param submission_id: of the job, often from XCom. (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param stop_timeout: seconds (or a timedelta) in which the job's end has to be confirmed. (templated)
    :param missing_ok: whether a job that the cluster does not know is success, with a warning; otherwise it is a
        :class:`~airflow_provider_rayjobs.exceptions.RayJobNotFoundError`. (templated)
    """

    template_fields: Sequence[str] = ("submission_id", "ray_conn_id", "stop_timeout", "missing_ok")
    operator_extra_links = (links.RayJobLink(),)
    ui_color = "#d8ecfb"

    def __init__(
        self,
        *,
        submission_id: str | XComArg,
        ray_conn_id: str = DEFAULT_CONN_ID,
        stop_timeout: float | str | timedelta = STOP_TIMEOUT,
        missing_ok: bool | str = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.submission_id = submission_id
        self.ray_conn_id = ray_conn_id
        self.stop_timeout = stop_timeout
        self.missing_ok = missing_ok

    def execute(self, context: Context) -> None:
        """Stop the job."""
        job = _job_of(self.submission_id)
        timeout = template_values.as_seconds("stop_timeout", self.stop_timeout)
        missing_ok = template_values.as_bool("missing_ok", self.missing_ok)
        hook = RayJobsHook(self.ray_conn_id)
        cluster = hook.get_cluster()
        context["ti"].xcom_push(key=links.XCOM_KEY, value=cluster.job_url(job))
        with raising_task_errors(self), hook.client_of(cluster) as client:
            stopped = client.run(stop_and_wait(job, timeout))
            if not stopped.has_ended:
                raise RayJobNotTerminalError(f"{stopped.summary} It was asked at {cluster.address}.")
            if stopped.details is None:
                message = f"{stopped.summary} (at {cluster.address})"
                if not missing_ok:
                    raise RayJobNotFoundError(message)
                self.log.warning("%s", message)
            else:
                self.log.info("%s", stopped.summary)


class RayJobDeleteOperator(BaseOperator):
    """
    Delete what a cluster remembers of a job that has ended, its log's place in the dashboard included.

    A job that has just ended is given 5 s, in which Ray still writes to its record and would bring it back. One that
    the cluster does not know is success, so that a second run does no harm. One that has not ended fails the
    task with :class:`~airflow_provider_rayjobs.exceptions.RayJobNotTerminalError`: a
    :class:`RayJobStopOperator` before this one, or a retry, may help.

    :param submission_id: of the job, often from XCom. (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param missing_ok: whether a job that the cluster does not know is success, with a warning; otherwise it is a
        :class:`~airflow_provider_rayjobs.exceptions.RayJobNotFoundError`. (templated)
    """

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

    def execute(self, context: Context) -> None:  # noqa: ARG002  (Airflow's form)
        """Delete the job's record."""
        job = _job_of(self.submission_id)
        missing_ok = template_values.as_bool("missing_ok", self.missing_ok)
        with raising_task_errors(self), RayJobsHook(self.ray_conn_id).get_conn() as client:
            try:
                client.run(delete_ended_job(job, client.retry_timeout))
            except RayJobNotFoundError as error:
                if not missing_ok:
                    raise
                self.log.warning("%s There is nothing to delete.", error)
            else:
                self.log.info("Deleted job %s at %s.", job, client.address)


def _job_of(submission_id: Any) -> str:
    job = template_values.as_optional_text("submission_id", submission_id)
    if job is None:
        raise ValueError("submission_id is empty: no job is named. Did the task that submits it push it to XCom?")
    return job
