"""Read a growing log: every line once, with little load on the head. The tests drive the reader by hand."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_rayjobs.exceptions import RayApiBusyError, RayApiConnectionError, RayJobsError
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayVersion
from airflow_provider_rayjobs.jobs.logs import reader as reader_module
from airflow_provider_rayjobs.jobs.logs.messages import Progress, Result
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.requests import LogRequest
from airflow_provider_rayjobs.jobs.steps import EmitRecord, Engine, LogMessage, ReadLog, Send, Sleep
from airflow_provider_rayjobs.log_budget import BudgetShare, FlushTimer, LogBudget

BEGIN = datetime(2026, 11, 24, 1, 0, 0, tzinfo=UTC)
RUNNING = JobDetails(JobType.SUBMISSION, JobStatus.RUNNING, submission_id="a", driver_node_id="node")
SUCCEEDED = replace(RUNNING, status=JobStatus.SUCCEEDED)
LOST = RayApiConnectionError("cut off")
BUSY = RayApiBusyError("busy", status_code=429)


# Smaller than in the product, so that tests with a large log are fast.
LARGE = 256 * 1024


@pytest.fixture(autouse=True, scope="module")
def small_sizes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "LARGE", LARGE)
        yield


@dataclass
class Head:
    """
    A head with one growing log and a clock, which records the reads.

    :param speed: bytes per second at which the log is read.
    :param fail: called for each read; returns after how many bytes it breaks off, 0 for a refusal, ``None`` for a
        complete read.
    :param cut: seconds after which a load balancer cuts a read off.
    """

    data: bytes = b""
    speed: float = 100e6
    fail: Callable[[LogRequest], int | None] = lambda request: None
    cut: float = float("inf")
    clock: float = 0.0
    reading: float = 0.0
    read: list[tuple[str, int]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    version: str = "2.60.0"
    refusal: RayJobsError = BUSY

    def poll(self, reader: LogReader, details: JobDetails = RUNNING) -> None:
        """Let a reader read the log after one poll of the job."""
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
                return self.notices.append(message)
            case EmitRecord(record):
                return self.shown.append(record)
            case Send():
                return RayVersion("4", self.version)
            case ReadLog(request, log):
                return self._read(request, log)

    def _read(self, request: LogRequest, log: Any) -> RayJobsError | None:
        limit = self.fail(request)
        lines = int((request.params or {}).get("lines", -1))
        whole = b"".join(self.data.splitlines(keepends=True)[-lines:]) if lines >= 0 else self.data
        seconds = min(self.cut, float("inf") if request.deadline is None else request.deadline)
        if limit is None and len(whole) / self.speed > seconds:
            limit = int(self.speed * seconds)
        data = whole if limit is None else whole[:limit]
        kind = "text" if request.is_json else "file"
        size = 0
        if limit != 0:
            log.begin()
            while size < len(data) and log.needs_more:
                self.shown += log.feed(data[size : size + 65536])
                size += 65536
            if log.needs_more:
                self.shown += log.flush()
        size = min(size, len(data))
        self.read.append((kind, size))
        self.reading += 0.005 + size / self.speed
        self.clock += 0.005 + size / self.speed
        if limit == 0:
            return self.refusal
        return LOST if limit is not None and log.needs_more else None

    @property
    def text(self) -> str:
        return "\n".join(self.shown) + "\n"


def lines_of(begin: int, count: int) -> bytes:
    """Return lines of 100 bytes; they repeat after a thousand."""
    return b"".join(b"%99d\n" % (number % 1000) for number in range(begin, begin + count))


def test_each_read_begins_at_the_first_byte() -> None:
    """A read begins with the log's first byte, and shows the lines printed since the last read."""
    head, reader = Head(lines_of(0, 10)), LogReader()
    head.poll(reader)
    head.clock += 5
    head.data += lines_of(10, 10)
    head.poll(reader)

    assert head.read == [("file", 1000), ("file", 2000)]
    assert head.text == head.data.decode()


def test_log_that_quotes_itself() -> None:
    """A log whose end repeats earlier lines is shown completely while the job runs."""
    head, reader = Head(lines_of(0, 5000)), LogReader()
    head.poll(reader)
    head.data += lines_of(5000, 3000) + head.data[-100_000:] + lines_of(8000, 10)
    head.clock += 60
    head.poll(reader)

    assert head.text == head.data.decode()
    assert head.notices == []


@pytest.mark.parametrize("megabytes", [1, 4])
def test_share_of_the_time(megabytes: int) -> None:
    """However large a log is, reading it takes less than 5 % of the time."""
    count = megabytes * 10_000
    head, reader = Head(lines_of(0, count), speed=2e6), LogReader()
    head.poll(reader)
    head.reading = 0.0
    began = head.clock
    step = 0
    while head.clock < began + 300 * megabytes:
        head.data += lines_of(count + step, 1)
        step += 1
        head.clock += 5
        head.poll(reader)
    share = head.reading / (head.clock - began)

    assert share < 0.05
    if megabytes == 4:
        assert len([notice for notice in head.notices if "is read from its start each time" in notice]) == 1


@pytest.mark.parametrize("interval", [5, 60])
def test_share_of_the_time_with_a_flush_timer(interval: float) -> None:
    """Reading takes less than 5 % of the time, although the log is read twice for each handover."""
    head, worker = Head(lines_of(0, 40_000), speed=2e6), LogReader()
    head.poll(worker)
    head.reading = 0.0
    began = head.clock
    while head.clock < began + 1200:
        flusher = LogReader(worker.state, policy=FlushTimer(max(interval, 2 * worker.rest)))
        while not flusher.hands_over:
            head.clock += 5
            head.data += lines_of(0, 1)
            head.poll(flusher)
        worker = LogReader(flusher.state)
        head.poll(worker)

    assert head.reading / (head.clock - began) < 0.05
    assert head.text == head.data.decode()


def test_a_notice_is_not_repeated_in_another_process() -> None:
    """The state of a reader holds the notices that were logged."""
    head, reader = Head(b"one\n", fail=lambda request: 0), LogReader()
    for _ in range(3):
        head.poll(reader)
        head.clock += 60
        reader = LogReader(reader.state)

    assert len(head.notices) == 1


def test_repeated_lines() -> None:
    """New lines that equal the old ones are shown."""
    head, reader = Head(b"waiting ...\n" * 50_000), LogReader()
    for _ in range(50):
        head.poll(reader)
        head.clock += 60
        head.data += b"waiting ...\n" * 10

    head.poll(reader, SUCCEEDED)
    assert head.text == head.data.decode()
    assert head.shown[-1].count("\n") < 3000, "most were shown while the job ran"


def test_log_that_was_replaced() -> None:
    """A log that no longer begins with the shown bytes is shown from its start, after a warning."""
    head, reader = Head(b"one\ntwo\n"), LogReader()
    head.poll(reader)
    head.clock += 5
    head.data = b"ONE\nTWO\nTHREE\n"
    head.poll(reader, SUCCEEDED)

    assert head.shown == ["one\ntwo", "ONE\nTWO\nTHREE"]
    assert "it was cut or replaced. It is shown again from its start." in head.notices[0]


def test_log_that_was_cut_short() -> None:
    """A warning says that the log has fewer bytes than were shown."""
    head, reader = Head(b"one\ntwo\n"), LogReader()
    head.poll(reader)
    head.clock += 5
    head.data = b"one\n"
    head.poll(reader, SUCCEEDED)

    assert head.shown == ["one\ntwo"]
    assert "has fewer bytes now than the 8 that were shown" in head.notices[0]


def test_busy_state_api() -> None:
    """Reads are retried while the state API is busy; then the text is read. Both are logged once."""
    head, reader = Head(b"one\n", fail=lambda request: None if request.is_json else 0), LogReader()
    head.poll(reader)
    head.clock += 5
    head.poll(reader, SUCCEEDED)

    assert head.shown == ["one"]
    assert [kind for kind, _ in head.read][-1] == "text"
    assert ["cannot be read for the moment" in head.notices[0], "read as text" in head.notices[1]] == [True, True]
    assert len(head.notices) == 2


def test_slow_reads_that_are_interrupted() -> None:
    """After the job's end reads are retried for as long as each one makes progress."""
    sizes = iter(range(100_000, 3_000_000, 100_000))
    head = Head(lines_of(0, 20_000), speed=10_000, fail=lambda request: next(sizes))
    reader = LogReader()
    head.poll(reader, SUCCEEDED)

    assert len(head.data) / 100_000 <= len(head.read)
    assert [*"".join(head.shown)] != []
    assert reader.log.offset >= 1_900_000


def test_share_of_the_time_of_reads_that_are_cut_off() -> None:
    """Reads that a load balancer cuts off after 30 s take less than 5 % of the time, and a notice says so once."""
    head, reader = Head(lines_of(0, 50_000), speed=100_000, cut=30), LogReader()
    while head.clock < 10 * 3600:
        head.poll(reader)
        head.clock += 5
        head.data += lines_of(0, 1)

    assert head.reading / head.clock < 0.05
    assert reader.log.offset == 3_000_000
    assert head.text == head.data[:3_000_000].decode()
    [notice] = head.notices
    assert "the last read was cut off after 5 s, at byte 500000." in notice
    assert "lines beyond that point are shown late, or after the job's end" in notice


def test_slow_log_is_shown_while_the_job_runs() -> None:
    """A log that cannot be read within ``poll_interval`` is shown nevertheless: later reads have more time."""
    head, reader = Head(lines_of(0, 30_000), speed=100_000), LogReader()
    while head.clock < 3600:
        head.poll(reader)
        head.clock += 5

    assert head.text == head.data.decode()
    assert head.reading / head.clock < 0.05


def test_another_process_has_as_much_time_for_a_read() -> None:
    """The state of a reader holds the time that its reads need."""
    head, reader = Head(lines_of(0, 30_000), speed=100_000), LogReader()
    for _ in range(8):
        head.poll(reader)
        head.clock += 1000
        reader = LogReader(reader.state)

    assert head.text == head.data.decode()


def test_caller_without_a_next_poll_reads_at_once() -> None:
    """A caller that gives no ``poll_interval`` reads for up to a minute."""
    head, reader = Head(lines_of(0, 30_000), speed=100_000), LogReader()
    head.drive(reader.read(RUNNING))

    assert head.text == head.data.decode()


@pytest.mark.parametrize("shown", [True, False], ids=["live", "at the end"])
def test_tail_of_a_log_that_is_cut_off(shown: bool) -> None:
    """If reads are cut off after the job's end, the last lines follow a warning that says which bytes are missing."""
    head, reader = Head(lines_of(0, 50_000), speed=100_000, cut=30), LogReader(live=shown)
    head.poll(reader)
    ended = head.clock
    head.poll(reader, SUCCEEDED)

    lines = head.data.decode().splitlines()
    assert head.text.splitlines() == lines[:30_000] + lines[-1000:]
    assert "The log of job a is not complete here: 3000000 bytes were shown" in head.notices[-1]
    assert "The bytes between byte 3000000 and these lines are missing" in head.notices[-1]
    assert reader.log.offset == 3_000_000
    assert reader.log.ending.last_lines == tuple(lines[-20:])
    assert head.clock - ended < 200


def test_tail_with_a_limit() -> None:
    """With a limit, no more lines than the limit are shown of a log that is cut off."""
    head, reader = Head(lines_of(0, 50_000), speed=100_000, cut=30), LogReader(lines_limit=100)
    head.poll(reader)
    head.poll(reader, SUCCEEDED)

    lines = head.data.decode().splitlines()
    assert head.text.splitlines() == lines[:50] + lines[-50:]


def test_limit_and_no_tail() -> None:
    """With a limit, the last lines that arrived are shown if neither the log's end nor its tail can be read."""

    def fail(request: LogRequest) -> int | None:
        return 30_000 if request.params and request.params["lines"] == "-1" else 0

    head, reader = Head(lines_of(0, 500), fail=fail), LogReader(lines_limit=100)
    head.poll(reader, SUCCEEDED)

    lines = head.data.decode().splitlines()
    assert head.text.splitlines() == lines[:50] + lines[250:300]
    assert "the rest cannot be read" in head.notices[0]
    assert "200 lines of the log were left out here" in head.notices[1]


def test_tail_that_is_the_whole_log() -> None:
    """If the last lines are the whole log, nothing is missing or repeated, and no warning says so."""

    def fail(request: LogRequest) -> int | None:
        return 2000 if request.params and request.params["lines"] == "-1" else None

    head, reader = Head(lines_of(0, 100) + b"the end", fail=fail), LogReader()
    head.poll(reader)
    head.poll(reader, SUCCEEDED)

    assert head.text == head.data.decode() + "\n"
    assert head.notices == []
    assert reader.log.ending.last_lines[-1] == "the end"


def test_long_last_line() -> None:
    """Of last lines that are too long for the memory, the end is shown."""
    data = lines_of(0, 20) + b"y" * (5 * 2**20) + b"\nlast\n"
    head = Head(data, fail=lambda request: 4 if request.params["lines"] == "-1" else None)
    head.poll(LogReader(), SUCCEEDED)

    assert head.shown[-1] == "last"
    assert "not complete here" in head.notices[-1]


def test_busy_server_is_read_again_after_the_time_that_it_names() -> None:
    """A log is not read again before the time that a busy server names."""
    busy = RayApiBusyError("busy", status_code=429)
    busy.retry_after = 60.0
    head, reader = Head(b"one\n", fail=lambda request: 0, refusal=busy), LogReader()
    for _ in range(14):
        head.poll(reader)
        head.clock += 5

    assert len(head.read) == 2


def test_lines_limit() -> None:
    """Half of the limit is shown while the job prints, half at its end, and the lines between are counted."""
    head, reader = Head(b""), LogReader(lines_limit=100)
    for number in range(10):
        head.data += lines_of(number * 100, 100)
        head.poll(reader)
        head.clock += 5
    head.poll(reader, SUCCEEDED)

    lines = head.data.decode().splitlines()
    assert head.text.splitlines() == lines[:50] + lines[-50:]
    assert "the last ones follow when the job has ended" in head.notices[0]
    assert "900 lines of the log were left out here" in head.notices[1]
    assert "job-driver-a.log in Ray's log directory on node node" in head.notices[1]
    assert len(head.notices) == 2


def test_limit_that_is_not_reached() -> None:
    """A log within the limit is shown whole, without a notice."""
    head, reader = Head(lines_of(0, 100)), LogReader(lines_limit=100, live=False)
    head.poll(reader)
    head.poll(reader, SUCCEEDED)

    assert head.text == head.data.decode()
    assert head.notices == []


def test_limit_across_processes() -> None:
    """A reader that continues in another process leaves out the same lines as one that never stopped."""
    head, reader = Head(lines_of(0, 1000)), LogReader(lines_limit=100)
    head.poll(reader)
    reader = LogReader(reader.state, lines_limit=100)
    head.clock += 5
    head.poll(reader, SUCCEEDED)

    lines = head.data.decode().splitlines()
    assert head.text.splitlines() == lines[:50] + lines[-50:]
    assert "900 lines of the log were left out here" in head.notices[-1]


def test_budget_share() -> None:
    """With a budget a reader shows lines in order while the job runs; another reader shows the rest, each line once."""
    head, reader = Head(), LogReader(policy=BudgetShare(LogBudget(rate=2000, burst=8000)))
    for number in range(60):
        head.data += lines_of(100 * number, 100)
        head.poll(reader)
        head.clock += 5
    live = head.text
    head.poll(reader, SUCCEEDED)
    assert head.text == live, "nothing is shown after the job's end"
    worker = LogReader(reader.state)
    head.poll(worker, SUCCEEDED)

    assert head.text == head.data.decode()
    assert 100_000 < len(live) < 300_000
    assert [
        notice for notice in head.notices if "prints more than can be shown while it runs" in notice
    ] == head.notices
    assert len(head.notices) == 1
    assert max(size for _, size in head.read[:-1]) < len(live) + 2 * 65536, (
        "a read ends at the first record that is refused"
    )
    assert not reader.hands_over


def test_lines_within_the_budget() -> None:
    """Lines that fit into the budget are shown as they are printed, without a notice."""
    head, reader = Head(), LogReader(policy=BudgetShare(LogBudget()))
    for number in range(60):
        head.data += lines_of(10 * number, 10)
        head.poll(reader)
        assert head.text == head.data.decode()
        head.clock += 5

    assert head.notices == []


@pytest.mark.parametrize("size", [5, 2 * LARGE // 100])
def test_handover(size: int) -> None:
    """A log is handed over once the flush interval has passed and there are new lines."""
    head, worker = Head(lines_of(0, size)), LogReader()
    head.poll(worker)
    flusher = LogReader(worker.state, policy=FlushTimer(30))
    for _ in range(60):
        head.poll(flusher)
        head.clock += 5
        assert not flusher.hands_over
    head.data += lines_of(size, 1)
    for _ in range(20):
        head.poll(flusher)
        head.clock += 5

    assert flusher.hands_over
    assert flusher.log.offset == worker.log.offset
    head.poll(LogReader(flusher.state))
    assert head.text == head.data.decode()


PIECES = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 30, LARGE // 100, 2 * LARGE // 100]),
        st.floats(0, 100),
        st.sampled_from([None, None, 0, 50_000, 400_000]),
        st.sampled_from(["", "resumed", "deferred"]),
    ),
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(pieces=PIECES)
def test_every_byte_once(pieces: list[Any]) -> None:
    """Failed or interrupted reads, budgets and changes of process neither lose nor repeat a byte."""
    head, reader, count = Head(), LogReader(), 0
    for size, pause, limit, change in pieces:
        head.data += lines_of(count, size)
        count += size
        head.clock += pause
        head.fail = lambda request, limit=limit: limit
        if change == "deferred":
            trigger = LogReader(reader.state, policy=BudgetShare(LogBudget()))
            head.poll(trigger)
            head.clock += 5
            head.poll(trigger)
            reader = LogReader(trigger.state)
        elif change:
            reader = LogReader(reader.state)
        head.poll(reader)
    head.fail = lambda request: None
    head.poll(reader, SUCCEEDED)

    assert head.text.strip("\n") == head.data.decode().strip("\n")
    assert reader.log.offset == len(head.data)


NONCE = "0123456789abcdef"
WITH_NONCE = {"metadata": {"submission_nonce": NONCE}}


def message(kind: str, text: str) -> bytes:
    return f"##ray_job {NONCE} {kind} {text}\n".encode()


def result_in_parts(size: int) -> bytes:
    """Return the messages of a result of many parts."""
    text = f'result "{"x" * size}"'
    parts = [text[start : start + 4000] for start in range(0, len(text), 4000)]
    checksum = zlib.crc32(text.encode())
    return b"".join(
        message("part", f"deadbeef {number}/{len(parts)} {checksum:08x} {part}") for number, part in enumerate(parts, 1)
    )


def test_result_does_not_use_the_budget() -> None:
    """A trigger shows the lines around a result of 1 MiB, as if the result were not there."""
    head = Head(lines_of(0, 20) + result_in_parts(1024 * 1024) + lines_of(20, 20))
    reader = LogReader(policy=BudgetShare(LogBudget(rate=2000, burst=8000)))
    head.poll(reader, replace(RUNNING, **WITH_NONCE))
    worker = LogReader(reader.state)
    assert head.text == lines_of(0, 40).decode()
    head.poll(worker, replace(SUCCEEDED, **WITH_NONCE))

    assert head.text == lines_of(0, 40).decode()
    assert reader.log.offset == 40 * 100
    assert len(worker.messages.result.value) == 1024 * 1024


@pytest.mark.parametrize(("limit", "live"), [(10, True), (10, False), (0, False)])
def test_result_beyond_the_limit_of_lines(limit: int, live: bool) -> None:
    """A result is found although the lines around it are not shown. With 0 lines nothing is said about that."""
    head = Head(lines_of(0, 100) + result_in_parts(10_000) + lines_of(100, 100))
    reader = LogReader(lines_limit=limit, live=live)
    head.poll(reader, replace(RUNNING, **WITH_NONCE))
    head.poll(reader, replace(SUCCEEDED, **WITH_NONCE))

    assert len(reader.messages.result.value) == 10_000
    assert len(head.text.split()) == limit
    assert any("left out" in notice for notice in head.notices) is (limit > 0)


@pytest.mark.parametrize("limit", [None, 10, 0])
def test_result_in_the_tail_of_a_log_that_is_cut_off(limit: int | None) -> None:
    """If the log cannot be read to its end, a result in its last lines is found, however few of them are shown."""
    head = Head(lines_of(0, 20_000) + result_in_parts(10_000) + lines_of(0, 20))
    head.fail = lambda request: 500_000 if (request.params or {}).get("lines") == "-1" else None
    reader = LogReader(lines_limit=limit, live=False)
    head.poll(reader, replace(SUCCEEDED, **WITH_NONCE))

    assert len(reader.messages.result.value) == 10_000
    assert reader.end_error is LOST
    assert "##ray_job" not in head.text
    assert limit is None or len(head.text.split()) == limit


@pytest.mark.parametrize("tail", [None, 0])
def test_result_before_bytes_that_are_missing(tail: int | None) -> None:
    """A result that was read while the job ran may not be its last one, if the rest of the log cannot be read."""
    head, reader = Head(lines_of(0, 1) + message("result", "1")), LogReader()
    head.poll(reader, replace(RUNNING, **WITH_NONCE))
    assert reader.messages.result == Result(1)

    head.data += message("result", "2") + lines_of(0, 20_000)
    head.fail = lambda request: 0 if (request.params or {}).get("lines") == "-1" else tail
    head.poll(reader, replace(SUCCEEDED, **WITH_NONCE))

    assert reader.messages.result is None
    assert reader.end_error is not None


def test_log_that_cannot_be_read() -> None:
    """A result in a log that cannot be read is unknown, and the reader has the error."""
    head = Head(result_in_parts(10))
    head.fail = lambda request: 0
    reader = LogReader(lines_limit=0, live=False)
    head.poll(reader, replace(SUCCEEDED, **WITH_NONCE))

    assert reader.messages.result is None
    assert reader.end_error is BUSY


@pytest.mark.parametrize("is_continued", [False, True])
@pytest.mark.parametrize("policy", [None, BudgetShare(LogBudget())])
def test_progress_is_shown_every_ten_seconds(policy: BudgetShare | None, is_continued: bool) -> None:
    """The latest progress is shown once in 10 s at most, and not again by another process."""
    head, reader = Head(), LogReader(policy=policy)
    for number in range(24):
        if number < 12:
            head.data += message("progress", f'{{"done": {number}, "total": 20, "text": "step"}}')
        if is_continued:
            reader = LogReader(reader.state, policy=policy)
        head.poll(reader, replace(RUNNING, **WITH_NONCE))
        head.clock += 3

    assert head.shown == [f"Progress: {number} of 20 ({number * 5}%): step" for number in (0, 4, 8, 11)]
    assert reader.progress == Progress(11, 20, "step")


def test_progress_within_the_budget() -> None:
    """A trigger without a budget shows no progress, but knows it."""
    head, reader = Head(message("progress", '{"done": 1}')), LogReader(policy=BudgetShare(LogBudget(rate=0, burst=10)))
    head.poll(reader, replace(RUNNING, **WITH_NONCE))

    assert head.shown == []
    assert reader.progress == Progress(1)
