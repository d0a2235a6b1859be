"""A retry policy by error class, for Airflow 3.3 and later (``retry_policy=`` of a task)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_provider_rayjobs.exceptions import (
    RayApiUnreachableError,
    RayJobEntrypointError,
    RayJobFunctionError,
    RayJobLostError,
    RayJobSupervisorError,
    RayJobUnschedulableError,
)
from airflow_provider_rayjobs.task import template_values
from airflow_provider_rayjobs.task.outcomes import is_final

try:
    from airflow.sdk import ExceptionRetryPolicy, RetryAction, RetryDecision, RetryRule
except ImportError as error:
    raise ImportError("RayJobRetryPolicy needs Airflow 3.3 or later. Upgrade, or use the task's retries.") from error

if TYPE_CHECKING:
    from airflow.sdk import Context

DEFAULT_RULES: tuple[RetryRule, ...] = (
    RetryRule(
        exception=[RayJobLostError, RayJobSupervisorError, RayApiUnreachableError],
        action=RetryAction.RETRY,
        reason="The cluster failed, not the code of the job.",
    ),
)


# Airflow 3.4 can run the same try again, without using a retry.
if hasattr(RetryAction, "RESCHEDULE"):
    DEFAULT_RULES += (
        RetryRule(  # type: ignore[call-arg, unused-ignore]
            exception=RayJobUnschedulableError,
            action=RetryAction.RESCHEDULE,
            reschedule_timeout=timedelta(days=1),
            reason="The cluster had no resources for the job. The same try runs again.",
        ),
    )


class RayJobRetryPolicy(ExceptionRetryPolicy):
    """
    Decide by the class of an error whether a task is retried.

    A request that Ray refused, credentials that Ray refused, a taken id and the task's ``fail_on_exit_code`` fail the
    task at once. A failure of the cluster is retried. A job that the cluster could not schedule is submitted again for
    a day without using a retry (Airflow 3.4 and later). ``default`` decides about other errors. The task's ``retries``
    limit the number of retries.

    :param function_errors: the action for exceptions that the function of a ``@task.ray_job`` task raised, by the name
        of their class or of a base class: ``{"ValueError": RetryAction.FAIL}``. Applied before all rules.
    :param rules: rules for classes of :mod:`airflow_provider_rayjobs.exceptions`, applied before the default rules.
    :param default: the action for errors without a rule. ``RetryAction.DEFAULT`` leaves the decision to the task.
    """

    def __init__(
        self,
        rules: Sequence[RetryRule] = (),
        default: RetryAction = RetryAction.DEFAULT,
        *,
        function_errors: Mapping[str, RetryAction] | None = None,
    ) -> None:
        super().__init__(rules=[*rules, *DEFAULT_RULES], default=default)
        self.function_errors = dict(function_errors or {})

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return whether to retry the task after an error."""
        if isinstance(exception, RayJobFunctionError):
            for name, action in self.function_errors.items():
                if exception.is_a(name):
                    return RetryDecision(action, reason=f"The function raised {name}.")
        decision = super().evaluate(exception, try_number, max_tries, context)
        if decision.reason is None and is_final(exception):
            return RetryDecision.fail("Ray refused the request. The DAG or the connection must be changed.")
        if decision.reason is None and isinstance(exception, RayJobEntrypointError) and context is not None:
            fail_on = getattr(context["task"], "fail_on_exit_code", None)
            if exception.exit_code in template_values.as_exit_codes("fail_on_exit_code", fail_on):
                return RetryDecision.fail(f"Exit code {exception.exit_code} is in fail_on_exit_code.")
        return decision
