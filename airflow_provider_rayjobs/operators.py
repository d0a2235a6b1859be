"""Tasks that run Ray jobs."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import BaseOperator, conf, context_to_airflow_vars

from airflow_provider_rayjobs import links, rendered
from airflow_provider_rayjobs.hooks import DEFAULT_CONN_ID, Cluster, RayJobsHook
from airflow_provider_rayjobs.jobs import follow
from airflow_provider_rayjobs.jobs.logs import LogText
from airflow_provider_rayjobs.jobs.models import JobDetails, JobSubmission
from airflow_provider_rayjobs.jobs.submission import plan_submission, submit_job
from airflow_provider_rayjobs.outcomes import error_of_end
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_of_event

if TYPE_CHECKING:
    from airflow.sdk import Context


class RayJobSubmitOperator(BaseOperator):
    """
    Submit a job to a Ray cluster, follow it to its end, and end as it ends.

    The job's log passes into the task's log. Its submission id is pushed to XCom under ``submission_id``
    before it is sent, and is the return value. A job that ends FAILED or STOPPED fails the task with
    :class:`~airflow_provider_rayjobs.exceptions.RayJobFailedError` or
    :class:`~airflow_provider_rayjobs.exceptions.RayJobStoppedError`.

    The driver finds Airflow's ``AIRFLOW_CTX_...`` variables and ``RAY_JOB_SUBMISSION_ID`` in its environment;
    the job's metadata holds ``airflow_dag_id``, ``airflow_run_id``, ``airflow_task_id``,
    ``airflow_map_index``, ``airflow_try_number`` and ``airflow_logical_date``.

    :param entrypoint: a shell command; or a list of its arguments, which is quoted so that no value leaves
        its place. (templated)
    :param ray_conn_id: an Airflow connection of type ``ray_jobs``. (templated)
    :param submission_id: unique for the life of the cluster; made of dag, task, map index and try when not
        given. (templated)
    :param job_name: the name in the Ray dashboard, ``dag_id.task_id`` when not given. (templated)
    :param runtime_env: Ray's runtime environment as a dictionary, or the path of a YAML file, relative to the
        DAG file or the working directory. Paths in it must be URIs that the cluster can read. (templated; a
        YAML file's contents are not)
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
    :param fetch_logs: ``live`` shows the job's log as it comes, or when the task resumes if it is deferred,
        ``on_completion`` after the job's end, ``never`` not at all. (templated)
    :param unreachable_timeout: seconds without a usable answer from the cluster that are borne in a row.
        (templated)
    """

    template_fields: Sequence[str] = (
        "entrypoint", "ray_conn_id", "submission_id", "job_name", "runtime_env", "metadata", "entrypoint_num_cpus",
        "entrypoint_num_gpus", "entrypoint_memory", "entrypoint_resources", "entrypoint_label_selector",
        "wait_for_completion", "poll_interval", "fetch_logs", "unreachable_timeout",
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
        unreachable_timeout: float | str | timedelta = follow.UNREACHABLE_TIMEOUT,
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
        self.unreachable_timeout = unreachable_timeout

    def execute(self, context: Context) -> str:
        """Submit the job, follow it if asked to, and return its submission id."""
        poll_interval = rendered.as_seconds("poll_interval", self.poll_interval)
        unreachable_timeout = rendered.as_seconds("unreachable_timeout", self.unreachable_timeout)
        wait_for_completion = rendered.as_flag("wait_for_completion", self.wait_for_completion)
        fetch_logs = rendered.as_fetch_logs(self.fetch_logs)
        submission = self.plan(context)
        submission_id = submission.submission_id
        hook = RayJobsHook(self.ray_conn_id)
        cluster = hook.get_cluster()
        remember_job(context, cluster, submission_id)
        with hook.client_of(cluster) as client:
            client.run(submit_job(submission, unreachable_timeout))
            self.log.info(
                "Submitted Ray job %s to %s: %s",
                submission_id,
                cluster.address,
                cluster.job_url(submission_id),
            )
            if not wait_for_completion:
                return submission_id
            if self.deferrable:
                self.defer(
                    trigger=RayJobTrigger(
                        submission_id,
                        ray_conn_id=self.ray_conn_id,
                        poll_interval=poll_interval,
                        unreachable_timeout=unreachable_timeout,
                    ),
                    method_name="execute_complete",
                )
            log = None if fetch_logs == "never" else LogText()
            details = client.run(
                follow.follow_job(
                    submission_id,
                    poll_interval=poll_interval,
                    unreachable_timeout=unreachable_timeout,
                    log=log,
                    live=fetch_logs == "live",
                ),
                self._show,
            )
        return self._conclude(details, cluster, log)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> str:  # noqa: ARG002  (Airflow's form)
        """Resume after the trigger: write the job's log, and end as the job ended."""
        details = details_of_event(event)
        hook = RayJobsHook(self.ray_conn_id)
        cluster = hook.get_cluster()
        log = None
        if rendered.as_fetch_logs(self.fetch_logs) != "never":
            log = LogText()
            with hook.client_of(cluster) as client:
                client.run(follow.read_log(details, log), self._show)
        return self._conclude(details, cluster, log)

    def plan(self, context: Context) -> JobSubmission:
        """
        Return the submission that the rendered arguments ask for.

        :raises ValueError: for what can never work, naming the field; nothing has been sent.
        """
        given_id = rendered.as_optional_text("submission_id", self.submission_id)
        submission_id = given_id or new_submission_id(context)
        runtime_env = rendered.as_runtime_env(self.runtime_env, self._folders()) or {}
        metadata = rendered.as_texts("metadata", self.metadata) or {}
        if job_name := rendered.as_optional_text("job_name", self.job_name):
            metadata["job_name"] = job_name
        return plan_submission(
            rendered.as_entrypoint(self.entrypoint),
            submission_id=submission_id,
            runtime_env=runtime_env
            | {"env_vars": environment_of(context, submission_id) | (runtime_env.get("env_vars") or {})},
            metadata=metadata_of(context, metadata),
            entrypoint_num_cpus=rendered.as_number("entrypoint_num_cpus", self.entrypoint_num_cpus),
            entrypoint_num_gpus=rendered.as_number("entrypoint_num_gpus", self.entrypoint_num_gpus),
            entrypoint_memory=rendered.as_number("entrypoint_memory", self.entrypoint_memory),
            entrypoint_resources=rendered.as_numbers("entrypoint_resources", self.entrypoint_resources),
            entrypoint_label_selector=rendered.as_texts("entrypoint_label_selector", self.entrypoint_label_selector),
        )

    def _folders(self) -> list[Path]:
        """Return where a relative path is looked for: beside the DAG file, then in the working directory."""
        dag_file = getattr(self.dag, "fileloc", None) if self.has_dag() else None
        return [Path(dag_file).parent, Path.cwd()] if dag_file else [Path.cwd()]

    def _show(self, record: str) -> None:
        self.log.info("%s", record)

    def _conclude(self, details: JobDetails, cluster: Cluster, log: LogText | None) -> str:
        error = error_of_end(details, cluster.address, log.last_lines if log else ())
        if error is not None:
            raise error
        self.log.info("Ray job %s SUCCEEDED after %.1f s", details.name, details.duration or 0.0)
        return details.name


def remember_job(context: Context, cluster: Cluster, submission_id: str) -> None:
    """Push what others need to find the job, before it is sent: what is lost here would be lost with the job."""
    task_instance = context["ti"]
    task_instance.xcom_push(key="submission_id", value=submission_id)
    task_instance.xcom_push(key=links.XCOM_KEY, value=cluster.job_url(submission_id))


def new_submission_id(context: Context) -> str:
    """Return an id that reads well, names its task, and is unique: ``nightly.train-m3-try2-5f0c9a1b7d3e2468``."""
    task_instance = context["ti"]
    # cut so that each name keeps its beginning, and the whole fits into Ray's 200 characters
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", f"{task_instance.dag_id[:80]}.{task_instance.task_id[:70]}")
    map_index = f"-m{task_instance.map_index}" if _is_mapped(task_instance.map_index) else ""
    return f"{name}{map_index}-try{task_instance.try_number}-{secrets.token_hex(8)}"


def metadata_of(context: Context, given: Mapping[str, str]) -> dict[str, str]:
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
        # a run that was triggered without a logical date has none
        "airflow_logical_date": logical_date.isoformat() if logical_date else "",
    }
    if taken := ours.keys() & given.keys():
        raise ValueError(f"metadata must not hold {', '.join(sorted(taken))}: the provider says there whose the job is")
    return {"job_name": f"{task_instance.dag_id}.{task_instance.task_id}"} | dict(given) | ours


def environment_of(context: Context, submission_id: str) -> dict[str, str]:
    """Return the variables by which the driver knows where it comes from; they reach its tasks and actors too."""
    return context_to_airflow_vars(context, in_env_var_format=True) | {"RAY_JOB_SUBMISSION_ID": submission_id}


def _is_mapped(map_index: int | None) -> bool:
    return map_index is not None and map_index >= 0
