"""Which errors are worth a retry, as a policy of Airflow 3.3 and later (``retry_policy=`` on a task)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from airflow_provider_rayjobs.exceptions import (
    RayApiUnreachableError,
    RayJobEntrypointError,
    RayJobLostError,
    RayJobSupervisorError,
)
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.outcomes import FINAL_ERRORS

try:
    from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryDecision, RetryRule
except ImportError as error:
    raise ImportError("RayJobRetryPolicy needs Airflow 3.3 or later, which brought retry policies") from error

if TYPE_CHECKING:
    from airflow.sdk import Context

DEFAULT_RULES: tuple[RetryRule, ...] = (
    RetryRule(
        exception=list(FINAL_ERRORS),
        action=RetryAction.FAIL,
        reason="No retry can mend this: the DAG or the connection has to change.",
    ),
    RetryRule(
        exception=[RayJobLostError, RayJobSupervisorError, RayApiUnreachableError],
        action=RetryAction.RETRY,
        reason="The cluster failed, not the job's code.",
    ),
)


class RayJobRetryPolicy(ExceptionRetryPolicy):
    """
    Decide by an error's class whether a task is tried again, and after how long.

    By default what no retry can mend fails at once (refused, not authorised, not a Ray dashboard, an id that is taken,
    and the task's ``fail_on_exit_code``), what is the cluster's fault is tried again, and the rest is as ``default``
    says. Retries never exceed the task's ``retries``.

    :param rules: asked first, in their order; the classes are those of :mod:`airflow_provider_rayjobs.exceptions`.
    :param default: for errors that no rule names: as the task says, ``RetryAction.FAIL`` or ``RetryAction.RETRY``.
    """

    def __init__(self, rules: Sequence[RetryRule] = (), default: RetryAction = RetryAction.DEFAULT) -> None:
        super().__init__(rules=[*rules, *DEFAULT_RULES], default=default)

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return what becomes of the task after an error."""
        decision = super().evaluate(exception, try_number, max_tries, context)
        if decision.reason is None and isinstance(exception, RayJobEntrypointError) and context is not None:
            codes = template_values.as_exit_codes(
                "fail_on_exit_code", getattr(context["task"], "fail_on_exit_code", None)
            )
            if exception.exit_code in codes:
                return RetryDecision.fail(f"The exit code {exception.exit_code} is one of fail_on_exit_code.")
        return decision
