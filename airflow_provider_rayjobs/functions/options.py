"""The options of ``@task.ray_job``, for type checkers and editors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from airflow.sdk import DAG, Context, ObjectStoragePath, TaskGroup

    from airflow_provider_rayjobs.rendered import Rendered

    Callbacks = Callable[[Context], Any] | Sequence[Callable[[Context], Any]]


class TaskOptions(TypedDict, total=False):
    """The arguments of every operator of Airflow."""

    task_id: str
    owner: str
    email: str | Sequence[str] | None
    email_on_retry: bool
    email_on_failure: bool
    retries: int | None
    retry_delay: timedelta | float
    retry_exponential_backoff: float | bool
    max_retry_delay: timedelta | float | None
    retry_policy: Any
    start_date: datetime | None
    end_date: datetime | None
    depends_on_past: bool
    ignore_first_depends_on_past: bool
    wait_for_past_depends_before_skipping: bool
    wait_for_downstream: bool
    dag: DAG | None
    params: Mapping[str, Any] | None
    default_args: dict[str, Any] | None
    priority_weight: int
    weight_rule: Any
    queue: str
    pool: str | None
    pool_slots: int
    execution_timeout: timedelta | None
    on_execute_callback: Callbacks | None
    on_failure_callback: Callbacks | None
    on_success_callback: Callbacks | None
    on_retry_callback: Callbacks | None
    on_skipped_callback: Callbacks | None
    pre_execute: Callable[[Context], Any] | None
    post_execute: Callable[[Context, Any], Any] | None
    trigger_rule: str
    resources: dict[str, Any] | None
    run_as_user: str | None
    map_index_template: str | None
    max_active_tis_per_dag: int | None
    max_active_tis_per_dagrun: int | None
    executor: str | None
    executor_config: dict[str, Any] | None
    do_xcom_push: bool
    inlets: Any
    outlets: Any
    task_group: TaskGroup | None
    doc: str | None
    doc_md: str | None
    doc_json: str | None
    doc_yaml: str | None
    doc_rst: str | None
    task_display_name: str | None
    logger_name: str | None
    allow_nested_operators: bool
    render_template_as_native_obj: bool | None
    on_failure_fail_dagrun: bool  # only of a teardown, where Airflow takes it out of the arguments


class FunctionOptions(TaskOptions, total=False):
    """
    The options of ``@task.ray_job``.

    Those of :class:`~airflow_provider_rayjobs.operators.RayJobSubmitOperator` have the same meaning here. A templated
    one may also be a function that gets the context of the task, or the output of another task.

    - ``serializer``: how the function and its arguments are sent. ``json``, the default, sends the source of the
      function, and arguments that are JSON. ``cloudpickle`` sends everything, and needs the same minor version of
      Python, and cloudpickle, on both sides.
    - ``result_serializer``: how the return value is sent: ``json``, the default, or ``cloudpickle``. The latter makes
      the worker of Airflow unpickle what comes from the cluster, which can run any code on the worker.
    """

    serializer: Literal["json", "cloudpickle"]
    result_serializer: Literal["json", "cloudpickle"]
    ray_conn_id: str | Rendered
    submission_id: str | Rendered | None
    job_name: str | Rendered | None
    runtime_env: Mapping[str, Any] | str | Rendered | None
    metadata: Mapping[str, str] | Rendered | None
    entrypoint_num_cpus: float | str | Rendered | None
    entrypoint_num_gpus: float | str | Rendered | None
    entrypoint_memory: float | str | Rendered | None
    entrypoint_resources: Mapping[str, float | str] | Rendered | None
    entrypoint_label_selector: Mapping[str, str] | Rendered | None
    wait_for_completion: bool | str | Rendered
    deferrable: bool | str | Rendered
    defer_after: float | str | timedelta | Rendered
    poll_interval: float | str | timedelta | Rendered | None
    fetch_logs: str | Rendered
    log_lines_limit: int | str | Rendered | None
    log_flush_interval: float | str | timedelta | Rendered | None
    unreachable_timeout: float | str | timedelta | Rendered | None
    first_contact_timeout: float | str | timedelta | Rendered | None
    durable: bool | None
    stop_on_kill: bool | str | Rendered | None
    stop_timeout: float | str | timedelta | Rendered
    pending_timeout: float | str | timedelta | Rendered | None
    job_timeout: float | str | timedelta | Rendered | None
    fail_on_exit_code: int | str | Collection[int | str] | Rendered | None
    skip_on_exit_code: int | str | Collection[int | str] | Rendered | None
    package_secrets: bool | str | Sequence[str] | Rendered
    package_storage: str | ObjectStoragePath | Rendered | None
