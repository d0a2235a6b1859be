"""Wait for a Ray job that another task, another DAG or a user submitted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import BaseSensorOperator, conf

from airflow_provider_rayjobs import config, links
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import RayJobLostError, RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, RayJobsHook
from airflow_provider_rayjobs.jobs import endpoints, follow
from airflow_provider_rayjobs.jobs.client import RayJobsClient
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.logs.cursor import NO_ENDING
from airflow_provider_rayjobs.jobs.logs.messages import NO_MESSAGES
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.logs.reader import NO_LOG, LogReader
from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.jobs.pending import PendingReport
from airflow_provider_rayjobs.jobs.steps import LogMessage
from airflow_provider_rayjobs.masking import masking_env_vars
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.attempts import RetryGeneration, id_of_try
from airflow_provider_rayjobs.task.literals import ChecksLiterals
from airflow_provider_rayjobs.task.outcomes import error_for_outcome, failing_at_once_for_mistakes, to_sensor_error
from airflow_provider_rayjobs.task.text_templates import RendersText
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event, emit_job_log

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

# Seconds for which an unknown job is tolerated: the task that submits it may start a moment later.
MISSING_TIMEOUT = 60.0
_STORE_KEY = "ray_job_sensor"


class RayJobSensor(RendersText, ChecksLiterals, BaseSensorOperator):
    """
    Wait for the end of a Ray job that another task, another DAG or a user submitted.

    The first poll tells which job is meant. The sensor succeeds if this job SUCCEEDED. If it FAILED, was STOPPED or was
    lost, the task fails at once, as waiting again cannot change that. A job is lost if another job has its id after a
    restart of the head. The job's log goes to the log of this task:

    - in mode ``poke``: while the job runs;
    - in mode ``reschedule``: while the job runs, on Airflow 3.3 and later; older versions cannot store the log offset
      between two pokes, and show the whole log at the end;
    - with ``deferrable=True``: its start while the job runs, the rest when the task resumes.

    :param submission_id: a submission id, often from XCom, or the Ray Core job id of an interactive job. (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param fetch_logs: ``live``, ``on_completion`` or ``never``. (templated)
    :param log_lines_limit: the maximum number of log lines shown. (templated)
    :param log_flush_interval: seconds after which a deferred sensor resumes to show new lines. (templated)
    :param poke_interval: seconds between two polls. The default is ``[ray_jobs] poll_interval``, or 5.
    :param deferrable: wait in the triggerer. The default is Airflow's setting ``[operators] default_deferrable``.
    :param missing_timeout: seconds from the first poll for which an unknown job is tolerated. The default is 60: the
        task that submits the job may start a moment later. (templated)
    :param unreachable_timeout: seconds for which an outage is tolerated. The default is ``[ray_jobs]
        unreachable_timeout``, or 600. In mode ``reschedule`` Airflow before 3.3 cannot store the start of an outage;
        only ``timeout`` limits it there. (templated)
    """

    template_fields: Sequence[str] = (
        "submission_id", "ray_conn_id", "fetch_logs", "log_lines_limit", "log_flush_interval", "missing_timeout",
        "unreachable_timeout",
    )  # fmt: skip
    operator_extra_links = (links.RayJobLink(),)
    ui_color = "#d8ecfb"

    def __init__(
        self,
        *,
        submission_id: str | XComArg,
        ray_conn_id: str = DEFAULT_CONN_ID,
        fetch_logs: str = "live",
        log_lines_limit: int | str | None = None,
        log_flush_interval: float | str | timedelta | None = None,
        poke_interval: float | timedelta | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        missing_timeout: float | str | timedelta = MISSING_TIMEOUT,
        unreachable_timeout: float | str | timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        # Airflow needs a number; ``execute`` replaces that of a sensor without one by the setting.
        super().__init__(poke_interval=follow.POLL_INTERVAL if poke_interval is None else poke_interval, **kwargs)
        self._has_interval = poke_interval is not None
        self.submission_id = submission_id
        self.ray_conn_id = ray_conn_id
        self.fetch_logs = fetch_logs
        self.log_lines_limit = log_lines_limit
        self.log_flush_interval = log_flush_interval
        self.deferrable = deferrable
        self.missing_timeout = missing_timeout
        self.unreachable_timeout = unreachable_timeout
        self._poller: _JobPoller | None = None
        self._check_literals()

    def execute(self, context: Context) -> None:
        """Wait on a worker, or defer to the triggerer after the first poll, which tells which job is meant."""
        is_first_poke = not self.reschedule or context["ti"].get_first_reschedule_date(context) is None
        # later, a wrong setting or an edited connection must not end the wait for a job that runs
        with failing_at_once_for_mistakes() if is_first_poke else config.falling_back():
            self._set_interval()
            super().execute(context)

    def _set_interval(self) -> None:
        if not self._has_interval:
            self.poke_interval = config.seconds("poll_interval", follow.POLL_INTERVAL)
        self.poke_interval = max(self.poke_interval, follow.MIN_POLL_INTERVAL)

    def _defer(self, poller: _JobPoller, deadline: float, try_id: str) -> NoReturn:
        self.defer(
            trigger=RayJobTrigger(
                poller.job.submission_id,
                self.ray_conn_id,
                self.poke_interval,
                unreachable_timeout=poller.outage.timeout,
                missing_timeout=max(poller.started_at + poller.missing_timeout - time.time(), 0),
                job_ref=poller.job.to_json(),
                try_id=try_id,
                logs=poller.logs.to_json(),
                log_state=poller.reader.state if poller.reader else None,
                deferred_at=time.time(),
            ),
            method_name="execute_complete",
            kwargs={"deadline": deadline},
            timeout=timedelta(seconds=max(deadline - time.time(), 0)),
        )

    def poke(self, context: Context) -> bool:
        """Poll the job once."""
        if self._poller is None:
            self._poller = self._new_poller(context)
        seen_before = self._poller.job
        with RayJobsHook(self.ray_conn_id).client_of(self._poller.cluster) as client:
            details = self._poller.poll(client)
        if (self.reschedule and not self.deferrable) or self._poller.job != seen_before:
            self._poller.save(context)
        has_succeeded = details is not None and self._has_succeeded(self._poller, details)
        if self.deferrable and not has_succeeded:
            self._defer(self._poller, self._poller.started_at + self.timeout, id_of_try(context))
        return has_succeeded

    def execute_complete(
        self, context: Context, event: dict[str, Any], deadline: float | None = None, **_later: Any
    ) -> None:
        """
        Show new log lines after the trigger has fired. Then end as the job ended, or defer again.

        :param deadline: when the sensor's ``timeout`` expires, Unix seconds.
        """
        if event.get("try_id") not in (None, id_of_try(context)):  # see Execution.resume
            self.execute(context)
            return
        with config.falling_back():
            self._set_interval()
            poller = self._new_poller(context, is_resumed=True)
        poller.reader = reader = poller.logs.reader(event.get("log_state"))
        poller.resume(event, context)
        try:
            details = details_from_event(event)
        except RayJobsError as error:
            raise to_sensor_error(error) from error.__cause__  # not from error, which has the same text
        if reader is not None:
            self._show_log(poller, reader, details)
        if not self._has_succeeded(poller, details):
            until = time.time() + self.timeout if deadline is None else deadline
            self._defer(poller, until, id_of_try(context))

    def _has_succeeded(self, poller: _JobPoller, details: JobDetails) -> bool:
        has_succeeded = poller.has_succeeded(details)
        if has_succeeded:
            self.log.info("Ray job %s SUCCEEDED after %.1f s.", details.name, details.duration or 0.0)
        return has_succeeded

    def _show_log(self, poller: _JobPoller, reader: LogReader, details: JobDetails) -> None:
        with RayJobsHook(self.ray_conn_id).client_of(poller.cluster) as client:
            try:  # Mask the env_vars of the job: its log may show them.
                client.run(masking_env_vars(follow.get_same_job(poller.job)))
            except RayJobLostError as error:
                self.log.warning("The rest of the log cannot be read. %s", error)
                return
            except RayJobsError:
                pass  # the reader says what cannot be read
            client.run(reader.read(details, poller.logs.flush_interval or 0.0), emit_job_log)

    def _new_poller(self, context: Context, *, is_resumed: bool = False) -> _JobPoller:
        """Read the rendered arguments, push the link to the job, and restore the state of the last poke."""
        task_instance = context["ti"]
        is_rescheduled = self.reschedule and not self.deferrable
        first_poke = task_instance.get_first_reschedule_date(context) if is_rescheduled else None
        logs = template_values.as_log_options(self.fetch_logs, self.log_lines_limit, self.log_flush_interval)
        job = template_values.as_submission_id(self.submission_id)
        check_token_file = first_poke is None and not is_resumed
        cluster = RayJobsHook(self.ray_conn_id).get_cluster(check_token_file=check_token_file)
        links.push_link(self, task_instance, cluster.job_url(job))
        missing_timeout = template_values.as_seconds("missing_timeout", self.missing_timeout)
        unreachable_timeout = template_values.as_configured_seconds(
            "unreachable_timeout", self.unreachable_timeout, follow.UNREACHABLE_TIMEOUT
        )
        poller = _JobPoller(JobRef(cluster.address, job), cluster, logs, missing_timeout, unreachable_timeout)
        if first_poke is None and not is_resumed:
            self.log.info("Waiting for Ray job %s at %s: %s", job, cluster.address, cluster.job_url(job))
        if first_poke is not None:
            poller.started_at = first_poke.timestamp()
        poller.restore(context, is_rescheduled=is_rescheduled, is_first_poke=first_poke is None)
        return poller


class _JobPoller:
    """Polls the job of a sensor. Keeps the state between two pokes: job, log offset, outage, start of the wait."""

    def __init__(
        self, job: JobRef, cluster: Cluster, logs: LogOptions, missing_timeout: float, unreachable_timeout: float
    ) -> None:
        self.job = job
        self.cluster = cluster
        self.logs = logs
        self.reader = logs.reader()
        self.missing_timeout = missing_timeout
        self.outage = follow.Outage(job.submission_id, unreachable_timeout)
        # ``None`` if no poke can tell what earlier ones have logged
        self.pending: PendingReport | None = PendingReport(tells_first=True)
        # whether the log says that the job is unknown
        self.is_missing_told = False
        # Unix seconds, because in mode ``reschedule`` each poke is a new process.
        self.started_at = time.time()
        # Unix seconds before which no poke reads the log of a running job again, to limit the load on the head.
        self.read_after = 0.0

    def poll(self, client: RayJobsClient) -> JobDetails | None:
        """
        Poll once. Return ``None`` during an outage or for an unknown job, while either is tolerated.

        The first poll tells which job is meant. From then on, another job with its id is an error.

        :raises AirflowException: the job is lost, or ``unreachable_timeout`` or ``missing_timeout`` expired.
        """
        try:
            try:
                details = client.run(
                    masking_env_vars(follow.poll_job(self.job, self.reader, self.pending)), emit_job_log
                )
            except RayJobNotFoundError:
                if time.time() - self.started_at >= self.missing_timeout:
                    raise
                if not self.is_missing_told:
                    self.is_missing_told = True
                    client.log(LogMessage(
                        f"Ray job {self.job.submission_id} is not known to the cluster yet. Another task or user may "
                        f"still submit it: the sensor looks for it for {self.missing_timeout:.12g} s (missing_timeout)."
                    ))  # fmt: skip
            except RayJobLostError:
                raise
            except RayJobsError as error:
                client.run(self.outage.record_failure(error, time.time()))
            else:
                client.run(self.outage.record_success(time.time()))
                if self.job.start_time is None:
                    self.job = self.job.seen(details, self._session(client))
                return details
        except RayJobsError as error:
            raise to_sensor_error(error) from error.__cause__
        return None

    def _session(self, client: RayJobsClient) -> str | None:
        with suppress(RayJobsError):  # the start time alone tells which job is meant
            return client.send(endpoints.get_version()).session_name
        return None

    def has_succeeded(self, details: JobDetails) -> bool:
        """
        Tell whether the job has SUCCEEDED; ``False`` means that it has not ended.

        :raises AirflowException: the job FAILED or was STOPPED.
        """
        if not details.status.is_terminal():
            return False
        ending = self.reader.log.ending if self.reader else NO_ENDING
        messages = self.reader.messages if self.reader else NO_MESSAGES
        error = error_for_outcome(details, self.cluster.address, ending, messages=messages)
        if error is not None:
            raise to_sensor_error(error)
        return True

    def restore(self, context: Context, *, is_rescheduled: bool, is_first_poke: bool) -> None:
        """
        Restore which job was meant by an earlier try or poke, and the rest of the state of this try's last poke.

        Without a store, a rescheduled sensor shows the log only after the end of the job.
        """
        store = context.get("task_state_store")
        if store is None:
            if is_rescheduled and not is_first_poke:
                self.pending, self.is_missing_told = None, True
            if self.reader is not None and is_rescheduled:
                self.reader.live = False
                if not is_first_poke:
                    self.reader.notices.add(NO_LOG)
            return
        saved: Any = store.get(_STORE_KEY)
        # The store outlives retries and Clears. Another try shows the log from its start.
        generation = RetryGeneration.from_json(saved.get("generation")) if isinstance(saved, dict) else None
        if generation is None or not RetryGeneration.of(context).is_retry_of(generation):
            return
        is_same_job = self._adopt(saved.get("job_ref"))
        if is_same_job and is_rescheduled and saved.get("try_number") == context["ti"].try_number:
            self.outage.since = saved.get("outage_since") or None
            self.is_missing_told = saved.get("is_missing_told", False)
            if self.pending is not None and isinstance(saved.get("pending"), Mapping):
                self.pending.restore(saved["pending"])
            if self.reader is not None and isinstance(saved.get("log"), Mapping):
                self.reader.restore(saved["log"])
                self.read_after = saved.get("read_after", 0.0)
                self.reader.live = self.reader.live and time.time() >= self.read_after

    def resume(self, event: Mapping[str, Any], context: Context) -> None:
        """Continue with the job of a trigger's event, and store which job is meant."""
        if self._adopt(event.get("job_ref")):
            self.save(context)

    def _adopt(self, stored: Any) -> bool:
        """Take over which job was meant, and where it is. Tell whether it is a job with the sensor's id."""
        if not isinstance(stored, Mapping) or stored.get("submission_id") != self.job.submission_id:
            return False
        self.job = JobRef.from_json({"address": self.job.address, **stored})
        self.cluster = self.cluster.at(self.job.address or self.cluster.address)
        return True

    def save(self, context: Context) -> None:
        """Store the state for the next poke."""
        store = context.get("task_state_store")
        if store is None:
            return
        if self.reader is not None and self.reader.live:
            self.read_after = time.time() + self.reader.rest
        value: dict[str, Any] = {
            "version": 1,
            "try_number": context["ti"].try_number,
            "generation": asdict(RetryGeneration.of(context)),
            "job_ref": self.job.to_json(),
            "log": self.reader.state if self.reader else {},
            "outage_since": self.outage.since or 0,
            "read_after": self.read_after,
            "is_missing_told": self.is_missing_told,
            "pending": self.pending.state if self.pending else {},
        }
        store.set(_STORE_KEY, value)
