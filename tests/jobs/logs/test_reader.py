"""Reading a growing log: exact whatever happens, and gentle to the head; driven by hand against a file that grows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.exceptions import RayApiBusyError, RayApiConnectionError, RayJobsError
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayVersion
from airflow_provider_rayjobs.jobs.logs import reader as reader_room
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.logs.trickle import FlushTimer, LogBudget
from airflow_provider_rayjobs.jobs.requests import LogRequest
from airflow_provider_rayjobs.jobs.steps import EmitRecord, Engine, LogMessage, ReadLog, Send, Sleep

BEGIN = datetime(2026, 11, 24, 1, 0, 0, tzinfo=UTC)
RUNNING = JobDetails(JobType.SUBMISSION, JobStatus.RUNNING, submission_id="a", driver_node_id="node")
SUCCEEDED = replace(RUNNING, status=JobStatus.SUCCEEDED)
LOST = RayApiConnectionError("cut off")
BUSY = RayApiBusyError("busy", status_code=429)


# Smaller than in earnest, so that a large log is quickly made.
LARGE = 256 * 1024


@pytest.fixture(autouse=True, scope="module")
def small_sizes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_room, "LARGE", LARGE)
        patch.setattr(reader_room, "_END_BYTES", LARGE // 2)
        yield


@dataclass
class Head:
    """
    A head with one growing log, a clock, and what was asked of it.

    :param speed: bytes a second at which a log is read.
    :param fail: called for each read; how many bytes of it come before it breaks off, or None.
    """

    data: bytes = b""
    speed: float = 100e6
    fail: Callable[[LogRequest], int | None] = lambda request: None
    clock: float = 0.0
    reading: float = 0.0
    read: list[tuple[str, int]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    version: str = "2.60.0"

    def look(self, reader: LogReader, details: JobDetails = RUNNING) -> None:
        """Let a reader see the job once."""
        now = int((BEGIN.timestamp() + self.clock) * 1000)
        self.drive(reader.read(replace(details, seen_at=now), 5.0))

    def drive(self, engine: Engine[Any]) -> None:
        answer: Any = None
        while True:
            try:
                failed = isinstance(answer, RayJobsError)
                step = engine.throw(answer.with_traceback(None)) if failed else engine.send(answer)
            except StopIteration:
                return
            answer = self._do(step)

    def _do(self, step: Any) -> Any:
        match step:
            case Sleep(seconds):
                self.clock += seconds
                return self.clock
            case LogMessage(message):
                return self.notes.append(message)
            case EmitRecord(record):
                return self.shown.append(record)
            case Send():
                return RayVersion("4", self.version)
            case ReadLog(request, log):
                return self._read(request, log)

    def _read(self, request: LogRequest, log: Any) -> RayJobsError | None:
        start = 0
        lines = int((request.params or {}).get("lines", "-1"))
        if lines > 0:
            start = len(self.data) - len(b"".join(self.data[-8_000_000:].splitlines(keepends=True)[-lines:]))
        room = self.fail(request)
        data = self.data[start:] if room is None else self.data[start:][:room]
        kind = "text" if request.is_json else "end" if lines > 0 else "whole"
        size = 0
        if room != 0:
            log.begin()
            while size < len(data) and log.wants_more:
                self.shown += log.feed(data[size : size + 65536])
                size += 65536
            if log.wants_more and room is None:
                self.shown += log.flush()
        size = min(size, len(data))
        self.read.append((kind, size))
        self.reading += 0.005 + size / self.speed
        self.clock += 0.005 + size / self.speed
        if room == 0:
            return BUSY
        return LOST if room is not None and log.wants_more else None

    @property
    def text(self) -> str:
        return "\n".join(self.shown) + "\n"


def timed(begin: int, count: int) -> bytes:
    """Return lines of 100 bytes that tell the time, one for each second."""
    return b"".join(
        f"{BEGIN - timedelta(hours=1) + timedelta(seconds=at):%Y-%m-%d %H:%M:%S},000 {at:7} {'x' * 67}\n".encode()
        for at in range(begin, begin + count)
    )


def untimed(begin: int, count: int) -> bytes:
    """Return lines of 100 bytes that tell no time, and repeat."""
    return b"".join(b"%99d\n" % (number % 1000) for number in range(begin, begin + count))


def test_small_log() -> None:
    """A small log is read from its start at each look."""
    head, reader = Head(timed(0, 10)), LogReader()
    head.look(reader)
    head.clock += 5
    head.data += timed(10, 10)
    head.look(reader)

    assert [kind for kind, _ in head.read] == ["whole", "whole"]
    assert head.text == head.data.decode()


def test_large_log_with_a_clock() -> None:
    """Of a large log whose lines tell the time only the end is read, at each look; at the job's end all of it."""
    head, reader = Head(timed(0, 50_000)), LogReader()
    for number in range(20):
        head.look(reader)
        assert head.text == head.data.decode(), "the lines are there within the poll interval"
        head.data += timed(50_000 + 10 * number, 10)
        head.clock += 5
    head.look(reader, SUCCEEDED)

    assert head.text == head.data.decode()
    assert [kind for kind, _ in head.read] == ["whole", *["end"] * 19, "whole"]
    assert max(size for kind, size in head.read if kind == "end") < 300_000
    assert head.notes == []


def test_fast_large_log_with_a_clock() -> None:
    """A log that grew by more than was asked for is read from its start."""
    head, reader = Head(timed(0, 50_000)), LogReader()
    head.look(reader)
    for number in range(3):
        head.data += timed(50_000 + 5000 * number, 5000)
        head.clock += 60
        head.look(reader)

    assert head.text == head.data.decode()
    assert [kind for kind, _ in head.read] == ["whole"] + ["end", "whole"] * 3


def test_end_that_was_mistaken() -> None:
    """A program that quotes its own log at such length that its end is mistaken: what was jumped over is shown."""
    head, reader = Head(timed(0, 5000)), LogReader()
    head.look(reader)
    shown = len(head.data)
    head.data += timed(5000, 3000) + timed(4000, 1000) + timed(8000, 10)
    head.clock += 60
    head.look(reader)
    head.look(reader, SUCCEEDED)

    assert f"shown again from byte {shown} on" in head.notes[0]
    assert head.text.endswith(head.data[shown:].decode()), "nothing is lost, and the repetition begins behind a word"


@pytest.mark.parametrize("make", [timed, untimed])
@pytest.mark.parametrize("megabytes", [1, 4])
@pytest.mark.parametrize("grows", [True, False])
def test_share_of_the_time(make: Callable[[int, int], bytes], megabytes: int, grows: bool) -> None:
    """However large a log is, reading it takes less than 5 % of the time, and far less if it does not grow."""
    count = megabytes * 10_000
    head, reader = Head(make(0, count), speed=2e6), LogReader()
    head.look(reader)
    head.reading = 0.0
    began = head.clock
    step = 0
    while head.clock < began + 300 * megabytes:
        if grows:
            head.data += make(count + step, 1)
        step += 1
        head.clock += 5
        head.look(reader)
    share = head.reading / (head.clock - began)

    assert share < 0.05
    if not grows:
        assert share < 0.02
    if make is untimed and megabytes == 4 and grows:
        assert len([note for note in head.notes if "has to be read from its start" in note]) == 1


@pytest.mark.parametrize("interval", [5, 60])
def test_share_of_the_time_of_tasks_that_come_back(interval: float) -> None:
    """A log that is handed over again and again, and so read twice each time, takes less than 5 % of the time, too."""
    head, worker = Head(untimed(0, 40_000), speed=2e6), LogReader()
    head.look(worker)
    head.reading = 0.0
    began = head.clock
    while head.clock < began + 1200:
        relay = LogReader(worker.state, turns=FlushTimer(max(interval, 2 * worker.rest)))
        while not relay.defers_to_worker:
            head.clock += 5
            head.data += untimed(0, 1)
            head.look(relay)
        worker = LogReader(relay.state)
        head.look(worker)

    assert head.reading / (head.clock - began) < 0.05
    assert head.text == head.data.decode()


def test_what_was_said_once_is_not_said_again_in_another_process() -> None:
    """A reader that goes on elsewhere knows what was said."""
    head, reader = Head(b"one\n", fail=lambda request: 0), LogReader()
    for _ in range(3):
        head.look(reader)
        head.clock += 60
        reader = reader.resumed(reader.state)

    assert len(head.notes) == 1


def test_an_end_that_was_mistaken_in_another_process() -> None:
    """What was jumped over is shown from the last proved byte on, also where somebody else shows it."""
    head, reader = Head(timed(0, 5000)), LogReader()
    head.look(reader)
    shown = len(head.data)
    head.data += timed(5000, 3000) + timed(4000, 1000) + timed(8000, 10)
    head.clock += 60
    head.look(reader)
    head.look(reader.resumed(reader.state), SUCCEEDED)

    assert f"shown again from byte {shown} on" in head.notes[0]


def test_lines_that_repeat_arrive() -> None:
    """New lines that look exactly like the old ones are not taken for none."""
    head, reader = Head(b"waiting ...\n" * 50_000), LogReader()
    for _ in range(50):
        head.look(reader)
        head.clock += 60
        head.data += b"waiting ...\n" * 10

    head.look(reader, SUCCEEDED)
    assert head.text == head.data.decode()
    assert head.shown[-1].count("\n") < 3000, "most were shown while the job ran"


def test_log_that_was_replaced() -> None:
    """A log that does not begin with what was shown is shown anew, and that is said."""
    head, reader = Head(b"one\ntwo\n"), LogReader()
    head.look(reader)
    head.clock += 5
    head.data = b"ONE\nTWO\nTHREE\n"
    head.look(reader, SUCCEEDED)

    assert head.shown == ["one\ntwo", "ONE\nTWO\nTHREE"]
    assert "somebody cut or replaced it" in head.notes[0]


def test_log_that_was_cut_short() -> None:
    """A log that has less than was shown is said to have."""
    head, reader = Head(b"one\ntwo\n"), LogReader()
    head.look(reader)
    head.clock += 5
    head.data = b"one\n"
    head.look(reader, SUCCEEDED)

    assert head.shown == ["one\ntwo"]
    assert "has fewer bytes now than the 8 that were shown" in head.notes[0]


def test_busy_state_api() -> None:
    """A state API that answers too many others is waited for, then the text is read; each is said once."""
    head, reader = Head(b"one\n", fail=lambda request: None if request.is_json else 0), LogReader()
    head.look(reader)
    head.clock += 5
    head.look(reader, SUCCEEDED)

    assert head.shown == ["one"]
    assert [kind for kind, _ in head.read][-1] == "text"
    assert ["cannot be read for the moment" in head.notes[0], "read as text" in head.notes[1]] == [True, True]
    assert len(head.notes) == 2


def test_slow_reads_that_break_off() -> None:
    """At the job's end reading goes on for as long as each read brings something, however often one breaks off."""
    sizes = iter(range(100_000, 3_000_000, 100_000))
    head = Head(untimed(0, 20_000), speed=10_000, fail=lambda request: next(sizes))
    reader = LogReader()
    head.look(reader, SUCCEEDED)

    assert len(head.data) / 100_000 <= len(head.read)
    assert [*"".join(head.shown)] != []
    assert reader.log.position >= 1_900_000


def test_lines_limit() -> None:
    """With a limit the first half is shown as it comes, the rest at the end, and what was left out is counted."""
    head, reader = Head(b""), LogReader(lines_limit=100)
    for number in range(10):
        head.data += untimed(number * 100, 100)
        head.look(reader)
        head.clock += 5
    head.look(reader, SUCCEEDED)

    lines = head.data.decode().splitlines()
    assert head.text.splitlines() == lines[:50] + lines[-50:]
    assert "its last ones follow when the job has ended" in head.notes[0]
    assert "900 lines of the log were left out here" in head.notes[1]
    assert "job-driver-a.log in Ray's log directory on node node" in head.notes[1]
    assert len(head.notes) == 2


def test_limit_that_is_not_reached() -> None:
    """A log with fewer lines than the limit is shown whole, without a word about the limit."""
    head, reader = Head(untimed(0, 100)), LogReader(lines_limit=100, live=False)
    head.look(reader)
    head.look(reader, SUCCEEDED)

    assert head.text == head.data.decode()
    assert head.notes == []


def test_a_limit_across_processes() -> None:
    """A reader that goes on in another process leaves out, and counts, the same lines as one that never stopped."""
    head, reader = Head(untimed(0, 1000)), LogReader(lines_limit=100)
    head.look(reader)
    reader = reader.resumed(reader.state)
    head.clock += 5
    head.look(reader, SUCCEEDED)

    lines = head.data.decode().splitlines()
    assert head.text.splitlines() == lines[:50] + lines[-50:]
    assert "900 lines of the log were left out here" in head.notes[-1]


def test_a_trigger_shows_a_little_and_a_worker_the_rest() -> None:
    """The first lines come as they are printed; what is more than the share follows on the worker, each line once."""
    with LogBudget(rate=2000, burst=8000).share() as share:
        head, reader = Head(), LogReader(turns=share)
        for number in range(60):
            head.data += untimed(100 * number, 100)
            head.look(reader)
            head.clock += 5
        live = head.text
        head.look(reader, SUCCEEDED)
        assert head.text == live, "after the job's end a trigger shows nothing"
    worker = LogReader(reader.state)
    head.look(worker, SUCCEEDED)

    assert head.text == head.data.decode()
    assert 100_000 < len(live) < 300_000
    assert [note for note in head.notes if "prints more than a triggerer can show" in note] == head.notes
    assert len(head.notes) == 1
    assert max(size for _, size in head.read[:-1]) < len(live) + 2 * 65536, "no more of it is read than is shown"
    assert not reader.defers_to_worker


def test_a_trigger_that_keeps_up_says_nothing() -> None:
    """Lines that fit into the share all come as they are printed."""
    with LogBudget().share() as share:
        head, reader = Head(), LogReader(turns=share)
        for number in range(60):
            head.data += untimed(10 * number, 10)
            head.look(reader)
            assert head.text == head.data.decode()
            head.clock += 5

    assert head.notes == []


@pytest.mark.parametrize("make", [timed, untimed])
@pytest.mark.parametrize("size", [5, 2 * LARGE // 100])
def test_a_relay_hands_over_what_is_new(make: Callable[[int, int], bytes], size: int) -> None:
    """A log is handed over as soon as the interval is over and there is something new in it, and not before."""
    head, worker = Head(make(0, size)), LogReader()
    head.look(worker)
    relay = LogReader(worker.state, turns=FlushTimer(30))
    for _ in range(60):
        head.look(relay)
        head.clock += 5
        assert not relay.defers_to_worker
    head.data += make(size, 1)
    for _ in range(20):
        head.look(relay)
        head.clock += 5

    assert relay.defers_to_worker
    assert relay.log.state == worker.log.state
    head.look(LogReader(relay.state))
    assert head.text == head.data.decode()


PIECES = st.lists(
    st.tuples(
        st.sampled_from([timed, untimed]),
        st.sampled_from([0, 1, 30, LARGE // 100, 2 * LARGE // 100]),
        st.floats(0, 100),
        st.sampled_from([None, None, 0, 50_000, 400_000]),
        st.sampled_from(["", "resumed", "deferred"]),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(pieces=PIECES)
def test_exactly_that_text(pieces: list[Any]) -> None:
    """Whatever is printed, fails, breaks off, is deferred or goes on elsewhere: the text is the log's, once."""
    head, reader, count = Head(), LogReader(), 0
    for make, size, pause, room, change in pieces:
        head.data += make(count, size)
        count += size
        head.clock += pause
        head.fail = lambda request, room=room: room
        if change == "deferred":
            with LogBudget().share() as share:
                trigger = LogReader(reader.state, turns=share)
                head.look(trigger)
                head.clock += 5
                head.look(trigger)
            reader = reader.resumed(trigger.state)
        elif change:
            reader = reader.resumed(reader.state)
        head.look(reader)
    head.fail = lambda request: None
    head.look(reader, SUCCEEDED)

    assert head.text.strip("\n") == head.data.decode().strip("\n")
    assert reader.log.position == len(head.data)
