"""
Virtual time, and processes that run in it.

All code of a history runs in one thread of the operating system. Each simulated thread is a greenlet. It runs until it
sleeps; then the clock moves to the next event. So time passes only in sleeps, and a history is the same in each run.

- A *process* has one or more threads. A dead process has no effect on anything: its threads get :class:`ProcessDied`
  where they wait, and every simulated effect calls :meth:`Process.check`, which raises it again.
- A *signal handler* runs in the middle of a sleep of the main thread, as on Linux. The sleep then goes on.
- A *frozen* process misses its events until it wakes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet

from airflow_provider_rayjobs.testing.clock import Clock as EventClock

# Unix seconds at the start of a history.
EPOCH = 1_800_000_000.0


class ProcessDied(BaseException):
    """The process of the running code was killed. Whatever the code does now has no effect."""


class Clock(EventClock):
    """The events of a history in the order of their time."""

    def __init__(self) -> None:
        super().__init__(EPOCH)
        self.hub = getcurrent()

    def monotonic(self) -> float:
        return 1000.0 + self.now

    def sleep(self, seconds: float) -> None:
        """Let the running thread sleep."""
        current_thread().wait(seconds)


class Process:
    """A process of the simulated machines: a worker's try, or a triggerer."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.clock = clock
        self.name = name
        self.is_alive = True
        self.was_killed = False
        self.frozen_until = 0.0
        self.threads: list[Thread] = []
        self.on_exit: Callable[[], object] = lambda: None

    def start(self, run: Callable[[], object]) -> Thread:
        """Start a thread. The process ends when its first thread ends."""
        thread = Thread(self, run, is_main=not self.threads)
        self.threads.append(thread)
        self.clock.call_later(0, thread.resume)
        return thread

    def check(self) -> None:
        """Raise :class:`ProcessDied` if this process is dead. Every simulated effect calls this."""
        if not self.is_alive:
            raise ProcessDied

    def kill(self) -> None:
        """End the process at once. A thread that calls this itself gets :class:`ProcessDied`."""
        if not self.is_alive:
            return
        self.is_alive = False
        self.was_killed = True
        me = getcurrent()
        for thread in self.threads:
            if thread is not me and not thread.is_over:
                self.clock.call_later(0, thread.resume)
        self.clock.call_later(0, self.on_exit)
        if me in self.threads:
            raise ProcessDied

    def freeze(self, seconds: float) -> None:
        self.frozen_until = self.clock.now + seconds


class Thread(greenlet):
    """A thread of a process. It runs only while the clock's hub waits for it."""

    def __init__(self, process: Process, run: Callable[[], object], *, is_main: bool) -> None:
        super().__init__(self._run, process.clock.hub)
        self.process = process
        self._body = run
        self._is_main = is_main
        self._waits: list[list[bool]] = []
        self._signals: list[Callable[[], object]] = []
        self.is_over = False

    def _run(self) -> None:
        try:
            self.process.check()
            self._body()
        except ProcessDied:
            pass
        finally:
            self.is_over = True
            if self._is_main and self.process.is_alive:
                self.process.is_alive = False
                for thread in self.process.threads:
                    if not thread.is_over:
                        self.process.clock.call_later(0, thread.resume)
                self.process.clock.call_later(0, self.process.on_exit)

    def resume(self) -> None:
        """Let the thread run; the hub calls this."""
        if self.is_over:
            return
        thaw = self.process.frozen_until - self.process.clock.now
        if thaw > 0 and self.process.is_alive:
            self.process.clock.call_later(thaw, self.resume)
        else:
            self.switch()

    def signal(self, handler: Callable[[], object]) -> None:
        """Run a handler in the middle of the sleep of this thread. An exception of it leaves the sleep."""
        self._signals.append(handler)
        self.process.clock.call_later(0, self.resume)

    def wait(self, seconds: float) -> None:
        """Sleep, or until :meth:`wake`."""
        self.process.check()
        clock = self.process.clock
        is_over = [False]
        self._waits.append(is_over)

        def end() -> None:
            is_over[0] = True
            if self._waits and self._waits[-1] is is_over:
                self.resume()

        timer = clock.call_later(seconds, end) if seconds != float("inf") else None
        try:
            while not is_over[0]:
                clock.hub.switch()
                self.process.check()
                while self._signals:
                    self._signals.pop(0)()
        finally:
            self._waits.pop()
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """End the innermost sleep soon."""
        if self._waits and not self._waits[-1][0]:
            self._waits[-1][0] = True
            self.process.clock.call_later(0, self.resume)


def current_thread() -> Thread:
    thread = getcurrent()
    assert isinstance(thread, Thread), "only simulated threads may sleep"
    return thread


class _Selector:
    """The selector of an event loop without files: it only sleeps."""

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    def select(self, timeout: float | None = None) -> list[Any]:
        # other greenlets of this thread of the operating system have no running loop, or one of their own
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            if timeout is None or timeout > 0:
                self._thread.wait(float("inf") if timeout is None else timeout)
            else:
                self._thread.process.check()
        finally:
            asyncio._set_running_loop(loop)
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop on the virtual clock, for code of one simulated thread."""

    def __init__(self, thread: Thread) -> None:
        super().__init__()
        self._thread = thread
        self._clock_resolution = 1e-6
        self._selector = _Selector(thread)
        self.set_exception_handler(lambda *_: None)  # dead processes leave tasks behind

    def time(self) -> float:
        return self._thread.process.clock.monotonic()

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        self._thread.wake()

    def wake(self) -> None:
        """Let the loop notice callbacks that other code has added."""
        self._thread.wake()
