"""Faults of the campaign that exist only with PostgreSQL, Redis and Celery workers."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from chaos_history import History
from chaos_invariants import Incident

from sandbox.processes import Program
from sandbox.production_airflow import CELERY_WORKERS, ProductionAirflow

# Seconds that a service manager gives to a worker that shuts down.
_GRACE = (3.0, 60.0)


class ProductionFaults:
    """
    Causes the faults.

    :param active: returns the runs that are going on.
    :param incident: records a fault that concerns all runs.
    """

    def __init__(
        self,
        airflow: ProductionAirflow,
        active: Callable[[], list[History]],
        incident: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self.airflow = airflow
        self.active = active
        self.incident = incident

    def shut_worker_down(self, rng: random.Random) -> None:
        """Shut a worker down, and kill it if its tasks take too long."""
        name = rng.choice(CELERY_WORKERS)
        with self.incident(f"{name} shut down"):
            program = self.airflow.component(name)
            program.send_signal(signal.SIGTERM)
            if not program.wait(rng.uniform(*_GRACE)):
                self._kill(name, program)

    def kill_worker(self, rng: random.Random) -> None:
        """Kill a worker with its tasks."""
        name = rng.choice(CELERY_WORKERS)
        with self.incident(f"{name} killed"):
            self._kill(name, self.airflow.component(name))

    def lose_redis(self, rng: random.Random) -> None:
        """Kill Redis, and start it without its data."""
        with self.incident("Redis killed"):
            self.airflow.redis.kill()
            time.sleep(rng.uniform(0, 12))
            self.airflow.redis.start()

    def restart_postgresql(self, rng: random.Random) -> None:
        """Restart PostgreSQL, after a stop or a crash."""
        with self.incident("database restarted"):
            rng.choice((self.airflow.postgresql.stop, self.airflow.postgresql.kill))()
            time.sleep(rng.uniform(0, 12))
            self.airflow.postgresql.start()
            time.sleep(5)  # the components connect again, or are restarted

    def _kill(self, name: str, program: Program) -> None:
        now = time.time()
        for history in self.active():
            if history.has_process() and self.airflow.worker_of(history.pids()[0]) == name:
                one = history.task_instance
                history.add_event(f"{name} is killed with the task")
                history.incidents.append(
                    Incident("kill task", now, now, one["state"], is_last_try=one["try_number"] > one["max_tries"])
                )
        program.kill()
