"""The tasks of the campaign. Each slot is a DAG that runs again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Prints numbered lines with the job's id, then fails in the first tries that the run's configuration tells.
_ENTRYPOINT = """\
@BEGIN@
i=0
while [ $i -lt {{ dag_run.conf['lines'] }} ]; do
  i=$((i + 1)); echo "$RAY_JOB_SUBMISSION_ID line $i"; sleep {{ dag_run.conf['pause'] }}
done
test {{ ti.try_number }} -gt {{ dag_run.conf['failing_tries'] }}
"""
# Seconds after which Ray kills the job of a stubborn slot.
STUBBORN_FOR = 15.0
_KINDS: dict[str, dict[str, Any]] = {
    "plain": {"retries": 2, "ray_conn_id": "ray_jobs_default"},
    "last_try": {"retries": 0},
    "own_id": {"retries": 2, "submission_id": "{{ dag.dag_id }}-{{ run_id | replace(':', '-') | replace('+', '-') }}"},
    "failing": {"retries": 2},
    # ignores SIGTERM, and its stop takes longer than stop_timeout
    "stubborn": {
        "retries": 2,
        "stop_timeout": 6,
        "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": f"{STUBBORN_FOR:g}"}},
    },
}
_MODES = {"worker": False, "deferred": True}


@dataclass(frozen=True)
class Slot:
    """
    A DAG of the campaign.

    :param task: the arguments of the operator.
    """

    kind: str
    mode: str
    task: dict[str, Any]

    @property
    def name(self) -> str:
        """The id of the DAG."""
        return f"{self.kind}_{self.mode}"

    @property
    def conn_id(self) -> str:
        return str(self.task["ray_conn_id"])

    @property
    def retries(self) -> int:
        return int(self.task["retries"])


def _slot(kind: str, mode: str) -> Slot:
    begin = "trap '' TERM" if kind == "stubborn" else ""
    task = {
        "entrypoint": ["sh", "-c", _ENTRYPOINT.replace("@BEGIN@", begin)],
        "deferrable": _MODES[mode],
        "ray_conn_id": f"ray_{kind}_{mode}",
    }
    return Slot(kind, mode, task | _KINDS[kind])


SLOTS = [_slot(kind, mode) for kind in _KINDS for mode in _MODES]
