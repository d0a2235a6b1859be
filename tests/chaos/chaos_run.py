"""Run the campaign: all slots side by side in one Airflow on one head, with faults that concern all of them."""

from __future__ import annotations

import json
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from chaos_history import History
from chaos_invariants import Incident
from chaos_network import Network
from chaos_plan import new_plan
from chaos_production import ProductionFaults
from chaos_slots import SLOTS, Slot
from file_secrets import CONNECTIONS, OFF
from job_ledger import JobLedger

from sandbox.local_airflow import QUICK_RECOVERY
from sandbox.processes import Program
from sandbox.production_airflow import TRIGGERERS, ProductionAirflow, new_airflow
from sandbox.ray_head import RayHead
from sandbox.task_runs import Observer

# Airflow's executor never frees the slot of a supervisor that was killed.
_PARALLELISM = 40
_SUPERVISOR_KILLS = _PARALLELISM - 2 * len(SLOTS)
# The network of the address in the environment.
_UNDEFINED = "undefined"
# The share of the ids that users chose, of lost jobs, that another user takes.
_REUSED_IDS = 0.5
# Seconds between two faults that concern all runs.
_PAUSE = (4.0, 20.0)


class Campaign:
    """
    A random campaign.

    :param seed: of all random choices. The times of processes are not under its control.
    :param seconds: how long runs are started and faults are caused.
    :param folder: for the files that the sandbox and the campaign share.
    """

    def __init__(self, seed: int, seconds: float, folder: Path) -> None:
        self.seed = seed
        self.seconds = seconds
        self.folder = folder
        self.histories: list[History] = []
        self.incidents: list[Incident] = []
        self.errors: list[str] = []
        self.head = RayHead(num_cpus=16)
        self.ledger = JobLedger()
        self.networks = {
            slot.conn_id: Network(self.head.address, self._rng("network", slot.conn_id), self._teller(slot.conn_id))
            for slot in SLOTS
        }
        # where tasks go if Airflow takes the default connection for undefined
        self.networks[_UNDEFINED] = Network(self.head.address, self._rng("network"), self._teller("ray_jobs_default"))
        self._active: dict[str, History] = {}
        self._end = 0.0
        self._is_over = threading.Event()
        self._triggerers: list[Program] = []
        self._supervisor_kills = threading.Semaphore(_SUPERVISOR_KILLS)
        self._write_files()
        settings = QUICK_RECOVERY | {
            "CHAOS_DIR": str(folder),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.networks[_UNDEFINED].proxy.port}",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
            "AIRFLOW__SECRETS__BACKEND": "file_secrets.FileSecretsBackend",
            "AIRFLOW__CORE__PARALLELISM": str(_PARALLELISM),
            # on a busy machine, two triggerers would follow the same job
            "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "20",
            "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
        }
        self.airflow = new_airflow(Path(__file__).parent / "dags", {}, settings)
        self.observer = Observer(self.airflow, [self.head], self.ledger.record)

    def run(self) -> None:
        """Start everything, run the campaign, and wait until all is over."""
        with ExitStack() as stack:
            for network in self.networks.values():
                stack.callback(network.proxy.close)
            stack.enter_context(self.head)
            stack.enter_context(self.airflow)
            if not isinstance(self.airflow, ProductionAirflow):
                self.airflow.kill("scheduler")
                self.airflow.kill("triggerer")
                self._triggerers = [self._start_triggerer() for _ in range(2)]
                keeper = threading.Thread(target=self._keep_scheduler, daemon=True)
                keeper.start()
                stack.callback(keeper.join)
                stack.callback(self._is_over.set)
            stack.callback(self.observer.close)
            self.observer.start()
            for slot in SLOTS:
                self.airflow.wait_for_dag(slot.name)
            self._end = time.monotonic() + self.seconds
            threads = [threading.Thread(target=self._run_slot, args=[slot], daemon=True) for slot in SLOTS]
            threads.append(threading.Thread(target=self._cause_common_faults, daemon=True))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _keep_scheduler(self) -> None:
        """Start the scheduler, also after a crash: 3.3.2 crashes if a task is cleared at the wrong moment."""
        scheduler: Program | None = None
        while not self._is_over.is_set():
            if scheduler is None or not scheduler.is_running():
                if scheduler is not None:
                    self.incidents.append(Incident("scheduler crashed", time.time(), time.time()))
                    self._tell_all("the scheduler crashed, and is started again")
                scheduler = self.airflow.start_component("scheduler", "--skip-serve-logs")
            self._is_over.wait(2)

    # -- the slots ------------------------------------------------------------------------------------------------

    def _run_slot(self, slot: Slot) -> None:
        number = 0
        time.sleep(self._rng("start", slot.name).uniform(0, 10))  # not all tasks start at the same moment
        while self._may_act():
            number += 1
            history = History(
                slot,
                new_plan(slot, self._rng(slot.name, number)),
                observer=self.observer,
                network=self.networks[slot.conn_id],
                ledger=self.ledger,
                folder=self.folder,
                sessions=self.head.directory,
                common_incidents=self.incidents,
                supervisor_kills=self._supervisor_kills,
            )
            self.histories.append(history)
            self._active[slot.name] = history
            history.run(self._may_act)
            print(history.summary(), flush=True)
            for finding in history.findings:
                print(f"  {finding.describe()}", flush=True)
            if history.report:
                (self.folder / f"{slot.name}-{number}.txt").write_text(history.report)

    def _may_act(self) -> bool:
        return time.monotonic() < self._end

    # -- faults that concern all runs -----------------------------------------------------------------------------

    def _cause_common_faults(self) -> None:
        rng = self._rng("common")
        faults: list[Callable[[random.Random], None]] = []
        while self._may_act():
            if not faults:
                faults = [
                    self._kill_triggerer,
                    self._kill_triggerer,
                    self._kill_api_server,
                    self._cut_network,
                    self._hide_connections,
                    self._restart_head,
                    *self._production_faults(),
                ]
                rng.shuffle(faults)
            time.sleep(rng.uniform(*_PAUSE))
            if self._may_act():
                try:
                    faults.pop()(rng)
                except Exception:  # noqa: BLE001  (the result shows it)
                    self.errors.append(traceback.format_exc())
                    return

    def _kill_triggerer(self, rng: random.Random) -> None:
        number = rng.randrange(2)
        with self._incident("triggerer killed"):
            if isinstance(self.airflow, ProductionAirflow):
                self.airflow.kill(TRIGGERERS[number])
                time.sleep(rng.uniform(0, 15))
                self.airflow.keep(TRIGGERERS[number])
            else:
                self._triggerers[number].kill()
                time.sleep(rng.uniform(0, 15))
                self._triggerers[number] = self._start_triggerer()

    def _kill_api_server(self, rng: random.Random) -> None:
        with self._incident("API server killed"):
            self.airflow.kill_execution_api()
            time.sleep(rng.uniform(0, 8))
            self.airflow.start_execution_api()

    def _cut_network(self, rng: random.Random) -> None:
        with self._incident("head unreachable"), self._cut_networks():
            time.sleep(rng.uniform(3, 25))

    def _hide_connections(self, rng: random.Random) -> None:
        with self._incident("connections unreadable"):
            (self.folder / OFF).touch()
            time.sleep(rng.uniform(2, 15))
            (self.folder / OFF).unlink()

    def _restart_head(self, rng: random.Random) -> None:
        # Nobody may see an end that the last list of jobs does not show.
        with self._incident("head restarted"), self._cut_networks():
            self.observer.poll_ray()
            self.head.kill()
            lost = self.ledger.lose_living_jobs(time.time())
            time.sleep(rng.uniform(0, 8))
            self.head.start()
            for submission_id in lost:
                if submission_id.startswith("own_id") and rng.random() < _REUSED_IDS:
                    self._submit_foreign_job(submission_id)

    def _submit_foreign_job(self, submission_id: str) -> None:
        """Submit a job of another user, which succeeds, under the id of a job that was lost with the head."""
        job = {"submission_id": submission_id, "entrypoint": "echo foreign"}
        response = httpx.post(f"{self.head.address}/api/jobs/", json=job, timeout=60)
        # a head that has just started may refuse it
        self._tell_all(f"another user submits a job with the id {submission_id}: HTTP {response.status_code}")

    def _production_faults(self) -> list[Callable[[random.Random], None]]:
        if not isinstance(self.airflow, ProductionAirflow):
            return []
        faults = ProductionFaults(self.airflow, lambda: [*self._active.values()], self._incident)
        return [faults.shut_worker_down, faults.kill_worker, faults.lose_redis, faults.restart_postgresql]

    @contextmanager
    def _incident(self, kind: str) -> Iterator[None]:
        incident = Incident(kind, time.time())
        self.incidents.append(incident)
        self._tell_all(f"{kind} ...")
        try:
            yield
        finally:
            incident.until = time.time()
            self._tell_all(f"{kind}: over")

    @contextmanager
    def _cut_networks(self) -> Iterator[None]:
        for network in self.networks.values():
            network.is_down = True
        try:
            yield
        finally:
            for network in self.networks.values():
                network.is_down = False

    # -- helpers --------------------------------------------------------------------------------------------------

    def _rng(self, *names: object) -> random.Random:
        """Return a generator of its own for each purpose, so that threads do not share one."""
        return random.Random(f"{self.seed} {names}")  # noqa: S311  (no secret)

    def _start_triggerer(self) -> Program:
        return self.airflow.start_component("triggerer", "--skip-serve-logs")

    def _write_files(self) -> None:
        (self.folder / "slots.json").write_text(json.dumps({slot.name: slot.task for slot in SLOTS}))
        connections = {
            conn_id: {"conn_type": "ray_jobs", "host": "127.0.0.1", "port": network.proxy.port}
            for conn_id, network in self.networks.items()
            if conn_id != _UNDEFINED
        }
        (self.folder / CONNECTIONS).write_text(json.dumps(connections))

    def _tell_all(self, text: str) -> None:
        for history in [*self._active.values()]:
            history.add_event(text)

    def _teller(self, conn_id: str) -> Callable[[str], None]:
        """Return a function that adds a line to the timelines of the runs that use a connection."""

        def tell(text: str) -> None:
            for history in [*self._active.values()]:
                if history.slot.conn_id == conn_id:
                    history.add_event(text)

        return tell

    def report(self) -> str:
        """Return the histories of all violations, and what went wrong in the campaign itself."""
        bad = [history.report for history in self.histories if history.violations or history.error]
        return "\n\n".join([*bad, *self.errors])

    def summary(self) -> str:
        """Return what happened, in numbers."""
        kinds = Counter(one.kind for one in self.incidents)
        kinds += Counter(one.kind for history in self.histories for one in history.incidents)
        findings = [finding for history in self.histories for finding in history.findings]
        exceptions = Counter(finding.exception for finding in findings if finding.exception)
        violations = Counter(finding.invariant for finding in findings if not finding.exception)
        states = Counter(history.state for history in self.histories)
        exits = Counter(self.airflow.exits if isinstance(self.airflow, ProductionAirflow) else ())
        jobs = sum(len(self.ledger.jobs_of((history.name, history.run_id))) for history in self.histories)
        return (
            f"seed {self.seed}: {len(self.histories)} runs {dict(states)}, {jobs} jobs\nfaults: {dict(kinds)}\n"
            f"components that exited on their own: {dict(exits)}\n"
            f"exceptions: {dict(exceptions)}\nviolations: {dict(violations)}\n"
            f"the histories of both are in {self.folder}"
        )
