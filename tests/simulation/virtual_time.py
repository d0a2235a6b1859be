"""
Put the package under test into a history: all patches of the simulation are in this module.

- Modules of the package that use ``time``, ``random``, ``secrets`` or ``threading`` get the clock, the random numbers
  and the threads of the history.
- httpx gets the simulated network as its transport. Airflow's connections and XComs are those of the simulated Airflow.
- structlog writes into the history.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
import random
import secrets
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, lru_cache
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import airflow.sdk.bases.sensor
import httpx
import structlog
from airflow.providers.common.compat.sdk import BaseHook
from airflow.sdk.bases.xcom import BaseXCom

import airflow_provider_rayjobs
from airflow_provider_rayjobs import log_budget, log_checkpoint, triggers

from .airflow import Airflow, Triggerer
from .clock import Clock, ProcessDied, current_thread
from .network import AsyncTransport, Network, SyncTransport


@cache
def _modules() -> tuple[ModuleType, ...]:
    """Return all modules of the package, imported."""
    for each in pkgutil.walk_packages(airflow_provider_rayjobs.__path__, "airflow_provider_rayjobs."):
        importlib.import_module(each.name)
    return tuple(module for name, module in sys.modules.items() if name.startswith("airflow_provider_rayjobs"))


class _Thread:
    """``threading.Thread`` on the virtual clock: another thread of the same simulated process."""

    def __init__(self, *, target: Any, args: tuple[Any, ...] = (), daemon: bool = False, name: str = "") -> None:
        self._run = lambda: target(*args)

    def start(self) -> None:
        self._thread = current_thread().process.start(self._run)

    def join(self, timeout: float | None = None) -> None:
        clock = current_thread().process.clock
        until = float("inf") if timeout is None else clock.now + timeout
        while not self._thread.is_over and clock.now < until:
            current_thread().wait(min(0.02, until - clock.now))

    def is_alive(self) -> bool:
        return not self._thread.is_over


class _Event:
    """``threading.Event`` on the virtual clock."""

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        self._is_set = True

    def wait(self, timeout: float) -> None:
        until = current_thread().process.clock.now + timeout
        while not self._is_set and current_thread().process.clock.now < until:
            current_thread().wait(min(0.02, until - current_thread().process.clock.now))


@contextmanager
def entered(clock: Clock, network: Network, airflow_: Airflow, rng: random.Random) -> Iterator[None]:
    """Let the package run in a history."""
    times = SimpleNamespace(sleep=clock.sleep, time=clock.time, monotonic=clock.monotonic, perf_counter=clock.monotonic)
    replaced: dict[ModuleType, Any] = {
        time: times,
        random: rng,
        secrets: SimpleNamespace(token_hex=lambda size=16: rng.randbytes(size).hex()),
        threading: SimpleNamespace(Thread=_Thread, Event=_Event, Lock=threading.Lock),
    }
    with _patched(replaced):
        SyncTransport.network = AsyncTransport.network = network
        with (
            mock.patch.object(httpx._client, "HTTPTransport", SyncTransport),
            mock.patch.object(httpx._client, "AsyncHTTPTransport", AsyncTransport),
            # these take a fifth of the time of a history, and no history uses TLS or cookies
            mock.patch.object(ssl, "SSLContext", return_value=_CONTEXT),
            mock.patch.object(httpx.Cookies, "extract_cookies", _ignore),
            # the proxies of this machine do not concern a history
            mock.patch.object(httpx._client, "get_environment_proxies", dict),
            mock.patch.object(httpx._urls, "urlparse", _parse_url),
            mock.patch.object(httpx._urlparse, "urlparse", _parse_url),
            mock.patch.object(BaseHook, "get_connection", airflow_.get_connection),
            mock.patch.object(BaseHook, "aget_connection", staticmethod(_async(airflow_.get_connection))),
            mock.patch.object(asyncio, "to_thread", _call_soon),
            mock.patch.object(triggers, "_ask_states", airflow_.ask_states),
            mock.patch.multiple(BaseXCom, aset=_Xcoms(airflow_).set, aget_one=_Xcoms(airflow_).get),
            mock.patch.object(airflow.sdk.bases.sensor, "time", times),
            mock.patch.object(airflow.sdk.bases.sensor.timezone, "utcnow", _Utc(clock)),
            # restored after the history
            mock.patch.multiple(log_checkpoint, _STARTED_AT=0.0, _next_write=0.0),
            mock.patch.object(triggers, "_log_budget", log_budget.LogBudget()),
            mock.patch.object(Triggerer, "on_start", staticmethod(lambda: _start_process(clock))),
            _logging_into(airflow_),
        ):
            _start_process(clock)
            yield


@contextmanager
def _patched(replaced: dict[ModuleType, Any]) -> Iterator[None]:
    uses = _uses(tuple(replaced))
    try:
        for module, name, used in uses:
            setattr(module, name, replaced[used])
        yield
    finally:
        for module, name, used in uses:
            setattr(module, name, used)


@cache
def _uses(used: tuple[ModuleType, ...]) -> list[tuple[ModuleType, str, ModuleType]]:
    """Return which module of the package has which of the given modules under which name."""
    return [
        (module, name, value)
        for module in _modules()
        for name, value in vars(module).items()
        if isinstance(value, ModuleType) and value in used
    ]


_CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
# A third of the time of a history is spent in this pure function.
_parse_url = lru_cache(4096)(httpx._urls.urlparse)


def _start_process(clock: Clock) -> None:
    """Reset what a process of the triggerer keeps in its modules."""
    triggers._log_budget = log_budget.LogBudget()
    log_checkpoint._next_write = 0.0
    log_checkpoint._STARTED_AT = clock.time()


class _Utc:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self) -> datetime:
        return datetime.fromtimestamp(self._clock.time(), UTC)


def _ignore(*_: Any) -> None:
    pass


def _async(call: Any) -> Any:
    async def called(*args: Any) -> Any:
        return call(*args)

    return called


async def _call_soon(call: Any, *args: Any) -> Any:
    """``asyncio.to_thread`` on the virtual clock."""
    await asyncio.sleep(0.01)
    current_thread().process.check()
    return call(*args)


class _Xcoms:
    """XComs that a trigger writes and reads through the triggerer's supervisor."""

    def __init__(self, airflow_: Airflow) -> None:
        self._airflow = airflow_

    async def set(self, *, key: str, value: Any, **_: Any) -> None:
        process = current_thread().process
        operation, fault = self._airflow.script.begin(process, f"xcom {key}")
        await asyncio.sleep(0.05)
        process.check()
        if fault is not None:
            raise RuntimeError("the XCom could not be written")
        self._airflow.xcoms[key] = json.loads(json.dumps(value))
        self._airflow.script.end(process, operation)

    async def get(self, *, key: str, **_: Any) -> Any:
        process = current_thread().process
        _operation, fault = self._airflow.script.begin(process, f"xcom get {key}")
        await asyncio.sleep(0.05)
        process.check()
        if fault is not None:
            raise RuntimeError("the XCom could not be read")
        return self._airflow.xcoms.get(key)


@contextmanager
def _logging_into(airflow_: Airflow) -> Iterator[None]:
    """Let structlog write the job's lines into the try's log, and all other messages into the history."""

    def record(logger: Any, method: str, event: dict[str, Any]) -> Any:
        try:
            process = current_thread().process
        except AssertionError:
            raise structlog.DropEvent from None
        text = str(event["event"])
        if arguments := event.get("positional_args"):
            text %= arguments
        if logger.name == "airflow.task.ray_job":
            airflow_.show(text)
        elif process.is_alive:
            airflow_.messages.append((airflow_.clock.now, process.name, text))
            airflow_.script.note(f"{process.name}: [{method}] {text}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[record],
        wrapper_class=structlog.make_filtering_bound_logger(20),
        logger_factory=lambda *args: SimpleNamespace(name=args[0] if args else "", info=print, msg=print),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


__all__ = ["ProcessDied", "entered"]
