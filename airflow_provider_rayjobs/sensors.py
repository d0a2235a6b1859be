"""Wait for a job that somebody else submitted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import BaseSensorOperator, conf

from airflow_provider_rayjobs import links
from airflow_provider_rayjobs.connection import Cluster
from airflow_provider_rayjobs.exceptions import RayJobNotFoundError, RayJobsError
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, RayJobsHook
from airflow_provider_rayjobs.jobs import endpoints, follow
from airflow_provider_rayjobs.jobs.client import OnLog, RayJobsClient
from airflow_provider_rayjobs.jobs.logs.cursor import NO_ENDING, LogEnding
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.jobs.models import JobDetails
from airflow_provider_rayjobs.jobs.steps import send
from airflow_provider_rayjobs.masking import masking_env_vars
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.outcomes import error_for_outcome, to_sensor_error
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event, emit_job_log

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

# Seconds for which "no such job" is borne: the task that submits it may be a moment behind.
MISSING_TIMEOUT = 60.0
_MEMORY_KEY = "ray_job_sensor"


class RayJobSensor(BaseSensorOperator):
    """
    Wait for the end of a Ray job that somebody else submitted, and end as it ends.

    Succeeds when the job SUCCEEDED, fails at once, and for good, when it FAILED or was STOPPED. The job's log
    passes into this task's log: as it comes in mode ``poke``; as it comes in mode ``reschedule`` on Airflow
    3.3 and later, which can remember how far it was shown, and whole at the end before that; if it is deferrable
    a little of it as it comes, and the rest when the task resumes.

    :param submission_id: a submission id, often from XCom, or the Ray Core job id of an interactive job.
        (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param fetch_logs: ``live``, ``on_completion`` or ``never``. (templated)
    :param log_lines_limit: lines of the log that are shown at most, see
        :class:`~airflow_provider_rayjobs.operators.RayJobSubmitOperator`. (templated)
    :param log_flush_interval: when a deferred sensor comes back to show what the job has printed, likewise. (templated)
    :param poke_interval: seconds between two looks.
    :param deferrable: wait in the triggerer; Airflow's setting ``[operators] default_deferrable`` is the
        default.
    :param missing_timeout: seconds after the first look for which "no such job" is borne. (templated)
    :param unreachable_timeout: seconds without a usable answer from the cluster that are borne in a row.
        (templated)
        In mode ``reschedule`` before Airflow 3.3, where nothing can be remembered, ``timeout`` is the only limit.
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
        poke_interval: float = follow.POLL_INTERVAL,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        missing_timeout: float | str | timedelta = MISSING_TIMEOUT,
        unreachable_timeout: float | str | timedelta = follow.UNREACHABLE_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=poke_interval, **kwargs)
        self.submission_id = submission_id
        self.ray_conn_id = ray_conn_id
        self.fetch_logs = fetch_logs
        self.log_lines_limit = log_lines_limit
        self.log_flush_interval = log_flush_interval
        self.deferrable = deferrable
        self.missing_timeout = missing_timeout
        self.unreachable_timeout = unreachable_timeout
        self._watch: _Watch | None = None

    def execute(self, context: Context) -> None:
        """Wait on a worker, or hand the waiting over to the triggerer."""
        if not self.deferrable:
            super().execute(context)
            return
        watch = self._begin(context)
        self._defer(watch, watch.began + self.timeout)

    def _defer(self, watch: _Watch, deadline: float) -> NoReturn:
        self.defer(
            trigger=RayJobTrigger(
                watch.job,
                ray_conn_id=self.ray_conn_id,
                poll_interval=self.poke_interval,
                unreachable_timeout=watch.unreachable_timeout,
                missing_timeout=watch.missing_timeout,
                # by which a connection that cannot be looked up for a while is known to be an outage
                address=watch.cluster.address,
                logs=watch.logs.to_json(),
                log_state=watch.reader.state if watch.reader else None,
                deferred_at=time.time(),
            ),
            method_name="execute_complete",
            kwargs={"deadline": deadline},
            timeout=timedelta(seconds=max(deadline - time.time(), 0)),
        )

    def poke(self, context: Context) -> bool:
        """Look at the job once."""
        if self._watch is None:
            self._watch = self._begin(context)
        watch = self._watch
        with RayJobsHook(self.ray_conn_id).client_of(watch.cluster) as client:
            details = watch.look(client, emit_job_log)
        if self.reschedule:
            watch.remember(context)
        return details is not None and self._has_succeeded(details, watch)

    def execute_complete(self, context: Context, event: dict[str, Any], deadline: float | None = None) -> None:
        """
        Resume after the trigger: write the job's log, and end as the job ended, or wait on.

        :param deadline: Unix seconds at which the sensor's ``timeout`` is over.
        """
        watch = self._begin(context, is_resumed=True)
        watch.reader = watch.logs.reader(event.get("log_state"))
        try:
            details = details_from_event(event)
        except RayJobsError as error:
            raise to_sensor_error(error) from error
        if watch.reader is not None:
            with RayJobsHook(self.ray_conn_id).client_of(watch.cluster) as client:
                with suppress(RayJobsError):  # an event holds none of the job's env_vars, and its log may
                    client.run(masking_env_vars(send(endpoints.get_job(watch.job), retry_timeout=0)))
                client.run(watch.reader.read(details, watch.logs.flush_interval or 0.0), emit_job_log)
        if not self._has_succeeded(details, watch):
            self._defer(watch, time.time() + self.timeout if deadline is None else deadline)

    def _begin(self, context: Context, *, is_resumed: bool = False) -> _Watch:
        """Read the rendered arguments; push the link that leads to the job."""
        looked_first = context["ti"].get_first_reschedule_date(context) if self.reschedule else None
        logs = LogOptions(
            fetch_logs=template_values.as_fetch_logs(self.fetch_logs),
            lines_limit=template_values.as_positive_int("log_lines_limit", self.log_lines_limit),
            flush_interval=template_values.as_optional_seconds("log_flush_interval", self.log_flush_interval),
        )
        job = template_values.as_optional_text("submission_id", self.submission_id)
        if job is None:
            raise ValueError(
                "submission_id is empty: no job to wait for. Did the task that submits it push it to XCom?"
            )
        is_first = looked_first is None and not is_resumed
        cluster = RayJobsHook(self.ray_conn_id).get_cluster(check_token_file=is_first)
        context["ti"].xcom_push(key=links.XCOM_KEY, value=cluster.job_url(job))
        watch = _Watch(
            job,
            cluster,
            logs,
            missing_timeout=template_values.as_seconds("missing_timeout", self.missing_timeout),
            unreachable_timeout=template_values.as_seconds("unreachable_timeout", self.unreachable_timeout),
        )
        if self.reschedule:
            watch.recall(context, looked_first)
        return watch

    def _has_succeeded(self, details: JobDetails, watch: _Watch) -> bool:
        if not details.status.is_terminal():
            return False
        error = error_for_outcome(details, watch.cluster.address, watch.ending)
        if error is not None:
            raise to_sensor_error(error)
        return True


class _Watch:
    """What a sensor knows of its job from one look to the next."""

    def __init__(
        self,
        job: str,
        cluster: Cluster,
        logs: LogOptions,
        *,
        missing_timeout: float,
        unreachable_timeout: float,
    ) -> None:
        self.job = job
        self.cluster = cluster
        self.logs = logs
        self.reader = logs.reader()
        self.missing_timeout = missing_timeout
        self.unreachable_timeout = unreachable_timeout
        # wall clock, as it may have to last from one worker process to another
        self.began = time.time()
        self.outage = follow.Outage(job, unreachable_timeout)
        # before which the log of a running job is not read again, likewise: a read may cost more than a look
        self.read_after = 0.0

    def look(self, client: RayJobsClient, on_log: OnLog) -> JobDetails | None:
        """
        Look once; ``None`` where that told nothing, and it is too early to give up.

        :raises AirflowException: when it is time to give up.
        """
        try:
            try:
                details = client.run(masking_env_vars(follow.poll_job(self.job, self.reader)), on_log)
            except RayJobNotFoundError:
                if time.time() - self.began >= self.missing_timeout:
                    raise
            except RayJobsError as error:
                client.run(self.outage.record_failure(error, time.time()))
            else:
                client.run(self.outage.record_success(time.time()))
                return details
        except RayJobsError as error:
            raise to_sensor_error(error) from error
        return None

    @property
    def ending(self) -> LogEnding:
        return self.reader.log.ending if self.reader else NO_ENDING

    def recall(self, context: Context, first: datetime | None) -> None:
        """
        Take up what an earlier process of this try left; without a store the log has to wait for the job's end.

        :param first: when that was rescheduled first.
        """
        task_instance = context["ti"]
        if first is not None:
            self.began = first.timestamp()
        store = context.get("task_state_store")
        if store is None:
            if self.reader is not None:
                self.reader.live = False
                self.reader.said_no_log = first is not None
            return
        memory: Any = store.get(_MEMORY_KEY)
        # the store outlives retries and Clear; another try shows the log from its start
        if memory and (memory["try_number"], memory["job"]) == (task_instance.try_number, self.job):
            self.outage.since = memory["outage_since"] or None
            if self.reader is not None and memory["log"]:
                self.reader = self.reader.resumed(memory["log"])
                self.read_after = memory.get("read_after", 0.0)
                self.reader.live = self.reader.live and time.time() >= self.read_after

    def remember(self, context: Context) -> None:
        """Leave what the next process needs."""
        store = context.get("task_state_store")
        if store is not None:
            if self.reader is not None and self.reader.live:
                self.read_after = time.time() + self.reader.rest
            store.set(
                _MEMORY_KEY,
                {
                    "try_number": context["ti"].try_number,
                    "job": self.job,
                    "log": self.reader.state if self.reader else {},
                    "outage_since": self.outage.since or 0,
                    "read_after": self.read_after,
                },
            )
