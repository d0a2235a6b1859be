"""Following a job to its end: engines driven by hand, without a clock, a network or an event loop."""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiAddressError,
    RayApiAuthError,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiRejectedError,
    RayApiResponseError,
    RayApiUnreachableError,
    RayJobLostError,
    RayJobNotFoundError,
    RayJobsError,
    RayJobTimeoutError,
)
from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType, RayVersion
from airflow_provider_rayjobs.jobs.follow import follow_job, poll_job
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.limits import Limits
from airflow_provider_rayjobs.jobs.logs.cursor import NO_ENDING
from airflow_provider_rayjobs.jobs.logs.download import get_job_logs
from airflow_provider_rayjobs.jobs.logs.reader import LogReader
from airflow_provider_rayjobs.jobs.steps import EmitRecord, Engine, LogMessage, ReadLog, Send, Sleep
from airflow_provider_rayjobs.jobs.submission import NONCE

ADDRESS = "http://head:8265"
JOB = JobRef(ADDRESS, "a")
IN_SESSION_1 = JobRef(ADDRESS, "a", session="session_1")


LOST = RayApiConnectionError("cut off")
BUSY = RayApiBusyError("busy", status_code=503)
GONE = RayJobNotFoundError("gone", status_code=404)
ANOTHER_JOB = RayApiResponseError("the answer is about another job", status_code=200, delivery=Delivery.FOREIGN)
NO_FILE = RayApiResponseError("A file is not found", status_code=500)

RUNNING = JobDetails(JobType.SUBMISSION, JobStatus.RUNNING, submission_id="a", driver_node_id="node")
PENDING = replace(RUNNING, status=JobStatus.PENDING, driver_node_id=None)
SUCCEEDED = replace(RUNNING, status=JobStatus.SUCCEEDED)
FAILED = replace(RUNNING, status=JobStatus.FAILED)
STOPPED = replace(RUNNING, status=JobStatus.STOPPED)
NEVER_RAN = replace(FAILED, driver_node_id=None)
INTERACTIVE = JobDetails(JobType.DRIVER, JobStatus.RUNNING, job_id="02000000")


@dataclass
class Cluster:
    """
    A clock, and a script of answers for each kind of request; the last answer of a script repeats.

    An error in a script is thrown into the engine. A log file may be a pair: the data before an error, and the error.
    """

    jobs: Sequence[JobDetails | RayJobsError] = (SUCCEEDED,)
    version: Sequence[str | RayJobsError] = ("2.60.0",)
    files: Sequence[bytes | RayJobsError | tuple[bytes, RayJobsError]] = (b"",)
    texts: Sequence[str | RayJobsError] = ("",)
    read_takes: float = 0.0
    clock: float = 1000.0
    asked: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    messages: list[LogMessage] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)

    def drive(self, engine: Engine[Any]) -> Any:
        """Run an engine to its end and return its result."""
        scripts = {name: repeat_last(getattr(self, name)) for name in ("jobs", "version", "files", "texts")}
        step = next(engine)
        while True:
            try:
                answer = self._do(step, scripts)
                failed = isinstance(answer, RayJobsError)
                step = engine.throw(answer.with_traceback(None)) if failed else engine.send(answer)
            except StopIteration as end:
                return end.value

    def _do(self, step: Any, scripts: dict[str, Iterator[Any]]) -> Any:
        match step:
            case Sleep(seconds):
                self.clock += seconds
                self.pauses += [seconds] if seconds else []
                return self.clock
            case LogMessage():
                return self.messages.append(step)
            case EmitRecord(record):
                return self.shown.append(record)
            case Send(request):
                self.asked.append(request.path)
                assert len(self.asked) < 20_000, "the following never ends"
                if request.path == "/api/version":
                    answer = next(scripts["version"])
                    return RayVersion("4", answer) if isinstance(answer, str) else answer
                return next(scripts["jobs"])
            case ReadLog(request, log):
                self.asked.append(request.path)
                self._read()
                answer = next(scripts["texts" if request.is_json else "files"])
                if isinstance(answer, RayJobsError):
                    return answer
                data, error = answer if isinstance(answer, tuple) else (answer, None)
                data = data.encode() if isinstance(data, str) else data
                log.begin()
                self.shown += log.feed(data)
                if error is None:
                    self.shown += log.flush()
                return error

    def _read(self) -> None:
        self.reads.append(self.clock)
        self.clock += self.read_takes

    @property
    def warnings(self) -> list[str]:
        return [message.message for message in self.messages if message.level == logging.WARNING]


def repeat_last(answers: Sequence[Any]) -> Iterator[Any]:
    yield from answers
    while True:
        yield answers[-1]


POLL, VERSION, FILE, TEXT = "/api/jobs/a", "/api/version", "/api/v0/logs/file", "/api/jobs/a/logs"


@pytest.mark.parametrize("end", [SUCCEEDED, FAILED, STOPPED, NEVER_RAN], ids=lambda end: end.status)
def test_job_is_followed_to_its_terminal_status(end: JobDetails) -> None:
    """A job is followed to any terminal status, and returned with that status."""
    cluster = Cluster(jobs=[PENDING, PENDING, RUNNING, end])

    assert cluster.drive(follow_job(JOB)) is end
    assert cluster.asked == [POLL] * 4
    assert cluster.messages == []


def test_engine_yields_its_steps_in_order() -> None:
    """The engine asks for the time, then for the job, and sleeps between two polls."""
    engine = follow_job(JOB)

    assert next(engine) == Sleep(0)
    asked = engine.send(0.0)
    assert isinstance(asked, Send)
    assert (asked.request.method, asked.request.path) == ("GET", POLL)
    assert engine.send(RUNNING) == Sleep(0)
    pause = engine.send(0.0)
    assert isinstance(pause, Sleep)
    assert 0.4 <= pause.seconds <= 0.5
    assert isinstance(engine.send(0.5), Send)
    assert engine.send(SUCCEEDED) == Sleep(0)
    with pytest.raises(StopIteration) as end:
        engine.send(0.5)
    assert end.value.value is SUCCEEDED


def test_ended_job_takes_one_request() -> None:
    """A job that has already ended takes one request and no sleep."""
    cluster = Cluster()

    assert cluster.drive(follow_job(JOB)) is SUCCEEDED
    assert (cluster.asked, cluster.pauses) == ([POLL], [])


@pytest.mark.parametrize(
    ("poll_interval", "pauses"),
    [
        pytest.param(5.0, [0.5, 0.7, 0.98, 1.372, 1.9208, 2.689, 3.765, 5, 5, 5], id="5 s"),
        pytest.param(1.0, [0.5, 0.7, 0.98, 1, 1, 1, 1, 1, 1, 1], id="1 s"),
        pytest.param(0.1, [0.1] * 10, id="shorter than the first pause"),
    ],
)
def test_delay_grows_to_poll_interval(poll_interval: float, pauses: list[float]) -> None:
    """The delay between two polls grows from half a second to ``poll_interval``; up to a fifth of it is random."""
    cluster = Cluster(jobs=[RUNNING] * 10 + [SUCCEEDED])

    cluster.drive(follow_job(JOB, poll_interval=poll_interval))

    assert len(cluster.pauses) == len(pauses)
    assert all(0.799 * most <= pause <= 1.001 * most for pause, most in zip(cluster.pauses, pauses, strict=True))
    assert len(set(cluster.pauses)) == len(pauses)


@pytest.mark.parametrize(
    "error",
    [LOST, BUSY, NO_FILE, ANOTHER_JOB, RayApiAuthError("token", status_code=401), RayApiAddressError("a page")],
    ids=str,
)
def test_outage_is_tolerated_and_logged_twice(error: RayJobsError) -> None:
    """An outage of any kind is tolerated, and logged once at its start and once at its end."""
    cluster = Cluster(jobs=[RUNNING, *[error] * 20, RUNNING, error, SUCCEEDED])

    assert cluster.drive(follow_job(JOB, poll_interval=2)) is SUCCEEDED
    assert [message.message.split(".")[0].split(", after")[0] for message in cluster.messages] == [
        "No usable answer about Ray job a",
        "Ray answers about job a again",
    ] * 2
    assert str(error) in cluster.warnings[0]
    assert len(cluster.warnings) == 2


@pytest.mark.parametrize(("poll_interval", "most"), [(0.1, 30), (5, 30), (60, 60)])
def test_delays_grow_in_an_outage(poll_interval: float, most: float) -> None:
    """In an outage the delays double up to half a minute, or ``poll_interval``, and half of each is random."""
    cluster = Cluster(jobs=[LOST])

    with pytest.raises(RayApiUnreachableError):
        cluster.drive(follow_job(JOB, poll_interval=poll_interval, unreachable_timeout=3600))

    first = min(0.5, poll_interval)
    assert all(min(first * 2**number, 30) / 2 <= pause <= most for number, pause in enumerate(cluster.pauses[:-1])), (
        cluster.pauses
    )
    assert max(cluster.pauses) > most / 2
    assert len(set(cluster.pauses)) == len(cluster.pauses)
    assert 3599.9 < cluster.clock - 1000 < 3600.2


def test_short_outages_do_not_lengthen_later_delays() -> None:
    """After an answer the delays are those between two polls again."""
    cluster = Cluster(jobs=[*[LOST] * 8, *[RUNNING] * 30, SUCCEEDED])

    cluster.drive(follow_job(JOB, poll_interval=2))

    assert max(cluster.pauses[-20:]) <= 2


@pytest.mark.parametrize(("seconds", "least", "most"), [(2, 2, 3), (45, 45, 67.5)])
def test_server_may_ask_for_a_longer_delay(seconds: float, least: float, most: float) -> None:
    """A busy server is asked again after the time that it names (``Retry-After``), plus a random part of it."""
    busy = RayApiBusyError("busy", status_code=503)
    busy.retry_after = seconds
    cluster = Cluster(jobs=[busy, SUCCEEDED])

    cluster.drive(follow_job(JOB, poll_interval=1))

    assert least <= cluster.pauses[0] <= most


def test_followers_spread_over_the_time_after_an_outage() -> None:
    """Followers that began together, and saw the same outage, do not all come at the same moment."""
    counts: Counter[int] = Counter()
    queue: list[tuple[float, int, Any, Any]] = [
        (0.0, number, follow_job(JobRef(ADDRESS, str(number))), None) for number in range(200)
    ]
    while queue and queue[0][0] < 140:
        clock, number, engine, outcome = heapq.heappop(queue)
        step = engine.throw(outcome) if isinstance(outcome, RayJobsError) else engine.send(outcome)
        if isinstance(step, Send):
            counts[int(10 * clock)] += 1
            outcome = RayApiConnectionError("cut off") if 20 < clock < 80 else RUNNING
        elif isinstance(step, Sleep):
            clock += step.seconds
            outcome = clock
        else:
            outcome = None
        heapq.heappush(queue, (clock, number, engine, outcome))

    assert max(count for tenth, count in counts.items() if tenth > 200) < 30
    assert sum(count for tenth, count in counts.items() if 500 < tenth < 800) < 500


@pytest.mark.parametrize("timeout", [0, 30, 600])
def test_outage_ends_following_after_unreachable_timeout(timeout: float) -> None:
    """An outage of ``unreachable_timeout`` without a break ends the following, a shorter one does not."""
    cluster = Cluster(jobs=[RUNNING, LOST])

    with pytest.raises(
        RayApiUnreachableError, match=rf"unreachable_timeout is {timeout} s.*The job may still be running.*cut off"
    ):
        cluster.drive(follow_job(JOB, unreachable_timeout=timeout))

    assert timeout - 0.001 <= cluster.clock - 1000 - cluster.pauses[0] <= timeout + 0.101
    assert len(cluster.messages) == 1


def test_outages_do_not_add_up() -> None:
    """An answer between two outages restarts ``unreachable_timeout``."""
    cluster = Cluster(jobs=[*([LOST] * 3 + [RUNNING]) * 10, SUCCEEDED])

    assert cluster.drive(follow_job(JOB, unreachable_timeout=30)) is SUCCEEDED
    assert cluster.clock - 1000 > 100


def test_unknown_job_ends_following() -> None:
    """A job that the cluster does not know ends the following at once, even after an outage."""
    for jobs in ([GONE], [RUNNING, GONE], [LOST, GONE]):
        with pytest.raises(RayJobNotFoundError) as caught:
            Cluster(jobs=jobs).drive(follow_job(JOB))
        assert caught.value is GONE


def test_missing_timeout_waits_for_a_submission() -> None:
    """With ``missing_timeout`` an unknown job may still be submitted until that time expires."""
    cluster = Cluster(jobs=[GONE] * 5 + [SUCCEEDED])
    too_late = Cluster(jobs=[GONE])

    assert cluster.drive(follow_job(JOB, missing_timeout=60)) is SUCCEEDED
    assert cluster.messages == []
    with pytest.raises(RayJobNotFoundError):
        too_late.drive(follow_job(JOB, missing_timeout=60))
    assert 60 <= too_late.clock - 1000 <= 65


def test_unknown_job_ends_an_outage() -> None:
    """The answer that a job is unknown is usable: it ends an outage."""
    cluster = Cluster(jobs=[LOST, *[GONE] * 20, LOST, SUCCEEDED])

    assert cluster.drive(follow_job(JOB, missing_timeout=600, unreachable_timeout=30)) is SUCCEEDED


@pytest.mark.parametrize("seconds", [0.2, 3.0, 12.34, 300.0])
@pytest.mark.parametrize("poll_interval", [1.0, 5.0, 3600.0])
def test_running_job_is_handed_over(seconds: float, poll_interval: float) -> None:
    """After ``hand_over_after`` another process follows the job: the last answer is at most a second old."""
    cluster = Cluster([RUNNING], files=[b"one\n"])

    details = cluster.drive(follow_job(JOB, reader=LogReader(), poll_interval=poll_interval, hand_over_after=seconds))

    assert details.status == JobStatus.RUNNING
    assert seconds <= cluster.clock - 1000 <= seconds + 0.5
    assert cluster.shown == ["one"]


def test_ended_job_is_not_handed_over() -> None:
    """A job that ends before ``hand_over_after`` is followed to its end, with its whole log."""
    cluster = Cluster([RUNNING, RUNNING, SUCCEEDED], files=[b"one\n", b"one\ntwo"])

    details = cluster.drive(follow_job(JOB, reader=LogReader(), hand_over_after=600))

    assert details.status == JobStatus.SUCCEEDED
    assert cluster.shown == ["one", "two"]


def test_job_is_handed_over_after_an_outage() -> None:
    """The process in which an outage began sees to its end, as it knows since when Ray has not answered."""
    cluster = Cluster([RUNNING, *[RayApiConnectionError("refused")] * 5, RUNNING])

    details = cluster.drive(follow_job(JOB, hand_over_after=0.2))

    assert details.status == JobStatus.RUNNING
    assert len(cluster.asked) == 7


def test_unknown_status_is_not_terminal() -> None:
    """A status of a newer Ray is logged once, and the job is followed as one that has not ended."""
    paused, moved = (replace(RUNNING, status=JobStatus(word)) for word in ("PAUSED", "MOVED"))
    cluster = Cluster(jobs=[paused, paused, RUNNING, paused, moved, moved, SUCCEEDED])

    assert cluster.drive(follow_job(JOB)) is SUCCEEDED
    assert [message.split(",")[0] for message in cluster.warnings] == [
        "Ray job a has status PAUSED",
        "Ray job a has status MOVED",
    ]


def test_interactive_job_has_no_log() -> None:
    """An interactive job has no log to read, which is logged once."""
    ended = replace(INTERACTIVE, status=JobStatus.SUCCEEDED)
    cluster = Cluster(jobs=[INTERACTIVE, INTERACTIVE, ended])

    assert cluster.drive(follow_job(JobRef(ADDRESS, "02000000"), reader=LogReader())) is ended
    assert cluster.asked == ["/api/jobs/02000000"] * 3
    assert [message.message.split(":")[0] for message in cluster.messages] == [
        "Job 02000000 was started interactively (type DRIVER)"
    ]
    assert cluster.warnings == []


@pytest.mark.parametrize(
    ("version", "source"),
    [
        pytest.param("2.60.0", FILE, id="new"),
        pytest.param("2.47.0", FILE, id="just new enough"),
        pytest.param("2.46.1", TEXT, id="just too old"),
        pytest.param("2.9.3", TEXT, id="old"),
        pytest.param("3.0.0", FILE, id="next"),
        pytest.param("nightly", TEXT, id="unreadable"),
        pytest.param(RayApiAddressError("no version", status_code=404), TEXT, id="no version at all"),
    ],
)
def test_log_source_depends_on_the_ray_version(version: str | RayJobsError, source: str) -> None:
    """The log is read as a file from Ray 2.47 on, else as text, and always from the same source."""
    cluster = Cluster(
        jobs=[RUNNING, RUNNING, SUCCEEDED],
        version=[version],
        files=[b"one\ntw", b"one\ntwo\nthree"],
        texts=["one\ntw", "one\ntwo\nthree"],
    )

    assert cluster.drive(follow_job(JOB, reader=LogReader())) is SUCCEEDED
    assert cluster.shown == ["one", "two", "three"]
    assert cluster.asked.count(VERSION) == 1
    assert cluster.asked.count(source) == 3
    assert set(cluster.asked) == {POLL, VERSION, source}


def test_long_log_text_is_emitted_in_records() -> None:
    """A long log that is read as text is emitted in records of many lines, each line once."""
    lines = [f"line {number}" for number in range(2500)]
    cluster = Cluster(jobs=[RUNNING, SUCCEEDED], version=["2.40.0"], texts=["\n".join(lines)])

    cluster.drive(follow_job(JOB, reader=LogReader()))

    assert "\n".join(cluster.shown) == "\n".join(lines)
    assert len(cluster.shown) < 10


def test_log_is_read_only_at_the_end() -> None:
    """With ``live=False`` the log is read once, after the job has ended."""
    cluster = Cluster(jobs=[RUNNING] * 5 + [SUCCEEDED], files=[b"one\ntwo\n"])

    cluster.drive(follow_job(JOB, reader=LogReader(live=False)))

    assert cluster.asked == [POLL] * 6 + [VERSION, FILE]
    assert cluster.shown == ["one\ntwo"]


def test_job_that_never_started_has_no_log() -> None:
    """No log is requested for a job that never started."""
    cluster = Cluster(jobs=[PENDING, NEVER_RAN])

    assert cluster.drive(follow_job(JOB, reader=LogReader())) is NEVER_RAN
    assert cluster.asked == [POLL, POLL]
    assert cluster.messages == []


def test_reading_the_log_takes_a_small_share_of_the_time() -> None:
    """A log that takes 1 s to read is read again after 24 s, so that reading takes 4 % of the time."""
    cluster = Cluster(jobs=[RUNNING] * 100 + [SUCCEEDED], files=[b"x\n"], read_takes=1.0)

    cluster.drive(follow_job(JOB, reader=LogReader(), poll_interval=1))

    between = [later - earlier for earlier, later in zip(cluster.reads, cluster.reads[1:], strict=False)]
    assert all(25 <= pause <= 26 for pause in between[:-1])
    assert len(between) >= 3
    assert between[-1] <= 26


def test_failed_reads_of_a_running_job_lose_nothing() -> None:
    """A log that cannot be read while the job runs loses nothing: the next read continues."""
    cluster = Cluster(
        jobs=[RUNNING] * 4 + [SUCCEEDED],
        version=[BUSY, "2.60.0"],
        files=[LOST, (b"one\ntwo\nth", LOST), NO_FILE, b"one\ntwo\nthree\n"],
    )

    cluster.drive(follow_job(JOB, reader=LogReader()))

    assert cluster.shown == ["one\ntwo\nthree"]
    assert [message.message for message in cluster.messages] == [
        "The log of job a cannot be read for the moment; nothing of it is lost. busy"
    ]


@pytest.mark.parametrize("error", [LOST, BUSY], ids=["cut off", "busy"])
def test_log_of_an_ended_job_is_retried(error: RayJobsError) -> None:
    """Failed reads of an ended job's log are retried for a minute, and then the whole log is emitted."""
    cluster = Cluster(files=[error, (b"one\ntw", LOST), error, b"one\ntwo\n"])

    cluster.drive(follow_job(JOB, reader=LogReader()))

    assert cluster.shown == ["one\ntwo"]
    assert cluster.messages == []
    assert all(most / 2 <= pause <= most for pause, most in zip(cluster.pauses, [0.5, 1, 2], strict=True)), (
        cluster.pauses
    )


@pytest.mark.parametrize(
    ("version", "files", "texts"),
    [
        pytest.param(["2.60.0"], [LOST], [""], id="cut off for ever"),
        pytest.param([BUSY], [b""], [""], id="no version for ever"),
        pytest.param(["2.60.0"], [NO_FILE], [NO_FILE], id="neither file nor text"),
        pytest.param(["2.40.0"], [b""], [NO_FILE], id="no text"),
        pytest.param([RayApiAuthError("token", status_code=403)], [b""], [""], id="not authorised"),
    ],
)
def test_unreadable_log_is_reported(version: Any, files: Any, texts: Any) -> None:
    """An unreadable log is reported with its location, and does not change the job's result."""
    cluster = Cluster(jobs=[RUNNING, SUCCEEDED], version=version, files=files, texts=texts)

    assert cluster.drive(follow_job(JOB, reader=LogReader())) is SUCCEEDED
    assert len(cluster.warnings) == 1
    assert "The log of job a is not complete here: 0 bytes were shown" in cluster.warnings[0]
    assert "job-driver-a.log in Ray's log directory on node node" in cluster.warnings[0]
    assert cluster.clock - 1000 < 130


def test_missing_log_file_is_replaced_by_the_text() -> None:
    """If no byte of the log file can be read, the log is read as text."""
    cluster = Cluster(files=[NO_FILE], texts=["one\ntwo"])

    cluster.drive(follow_job(JOB, reader=LogReader()))

    assert cluster.asked == [POLL, VERSION, FILE, TEXT]
    assert cluster.shown == ["one", "two"]
    assert cluster.messages == []


def test_text_replaces_a_file_of_which_nothing_was_emitted() -> None:
    """If nothing of the file was emitted, the text that replaces it is emitted whole, even with other line ends."""
    cluster = Cluster(files=[(b"10%\r\n20%\r\n", LOST), NO_FILE], texts=["10%\n20%\n30%\ndone\n"])

    cluster.drive(follow_job(JOB, reader=LogReader()))

    assert "\n".join(cluster.shown) == "10%\n20%\n30%\ndone"


def test_head_without_the_state_api_sends_the_log_as_text() -> None:
    """If the head has no file endpoint, the next read requests the log as text, while the job runs."""
    no_endpoint = RayApiAddressError("no such path", status_code=404)
    cluster = Cluster(jobs=[RUNNING, RUNNING, SUCCEEDED], files=[no_endpoint], texts=["one\n", "one\ntwo\n"])

    assert cluster.drive(follow_job(JOB, reader=LogReader())) is SUCCEEDED
    assert cluster.shown == ["one", "two"]
    assert cluster.warnings == []


def test_error_page_does_not_change_the_log_source() -> None:
    """After a part of the file was emitted, a proxy's page does not change the source: the text has other offsets."""
    page = RayApiAddressError("a page", status_code=404)
    cluster = Cluster(jobs=[RUNNING, RUNNING, SUCCEEDED], files=[b"one\n", page, b"one\ntwo\n"])

    cluster.drive(follow_job(JOB, reader=LogReader()))
    assert cluster.shown == ["one", "two"]
    assert TEXT not in cluster.asked


def test_lost_log_file_is_reported() -> None:
    """A file that is lost after a part was emitted is reported, and the log's last lines are unknown."""
    reader = LogReader()
    cluster = Cluster(jobs=[RUNNING, FAILED], files=[b"one\ntwo\n", NO_FILE], texts=["other\n"])

    assert cluster.drive(follow_job(JOB, reader=reader)) is FAILED
    assert cluster.shown == ["one\ntwo"]
    assert "8 bytes were shown, the rest cannot be read" in cluster.warnings[0]
    assert TEXT not in cluster.asked
    assert reader.log.ending == NO_ENDING


def test_file_error_of_a_restarting_head_is_retried() -> None:
    """A file error of a restarting head is retried, and the log is complete."""
    reader = LogReader()
    cluster = Cluster(jobs=[RUNNING, FAILED], files=[b"one\ntwo\n", NO_FILE, b"one\ntwo\nthree\n"])

    assert cluster.drive(follow_job(JOB, reader=reader)) is FAILED
    assert cluster.shown == ["one\ntwo", "three"]
    assert cluster.warnings == []
    assert reader.log.ending.last_lines == ("one", "two", "three")


def test_log_continues_at_an_offset() -> None:
    """A reader that starts with a log offset continues after it."""
    cluster = Cluster(files=[b"one\ntwo\nthree"])
    first = LogReader()
    list(first.log.feed(b"one\ntw")), list(first.log.flush())
    reader = LogReader(first.state)

    cluster.drive(reader.read(SUCCEEDED))

    assert cluster.shown == ["two", "three"]
    assert reader.log.offset == 13


def test_poll_sends_one_request_and_reads_the_log() -> None:
    """One poll sends one request for the job and emits the new part of its log."""
    cluster = Cluster(jobs=[RUNNING, RUNNING, SUCCEEDED], files=[b"one\n", b"one\ntwo\n"])
    reader = LogReader()

    assert cluster.drive(poll_job(JOB, None)) is RUNNING
    assert cluster.asked == [POLL]
    cluster.drive(poll_job(JOB, reader))
    assert cluster.shown == ["one"]
    reader.live = False
    cluster.drive(poll_job(JOB, reader))
    assert cluster.shown == ["one"]
    with pytest.raises(RayJobNotFoundError):
        Cluster(jobs=[GONE]).drive(poll_job(JOB, reader))


answers = st.sampled_from([PENDING, RUNNING, LOST, BUSY, replace(RUNNING, status=JobStatus("NEW"))])


@given(
    history=st.lists(answers, max_size=30),
    end=st.sampled_from([SUCCEEDED, FAILED, STOPPED, NEVER_RAN, GONE]),
    reads=st.lists(st.tuples(st.integers(0, 42), st.booleans()), min_size=30, max_size=30),
    broken=st.lists(st.integers(0, 42), max_size=3),
)
def test_any_sequence_of_answers_has_one_result(
    history: list[Any], end: Any, reads: list[tuple[int, bool]], broken: list[int]
) -> None:
    """For any sequence of answers and errors, following returns the job's result and emits each log line once."""
    text = "".join(f"line {number}\n" for number in range(6)).encode()
    live = sum(isinstance(answer, JobDetails) and answer.driver_node_id is not None for answer in history)
    growing = sorted(reads)[:live]
    files = [text[:size] if good else (text[:size], LOST) for size, good in growing]
    cluster = Cluster(jobs=[*history, end], files=[*files, *((text[:size], LOST) for size in broken), text])

    if end is GONE:
        with pytest.raises(RayJobNotFoundError):
            cluster.drive(follow_job(JOB, reader=LogReader()))
    else:
        assert cluster.drive(follow_job(JOB, reader=LogReader())) is end
    shown = "".join(f"{record}\n" for record in cluster.shown).encode()
    assert text.startswith(shown)
    assert shown == text or end in (GONE, NEVER_RAN)
    assert len(cluster.warnings) == sum(
        isinstance(now, RayJobsError) and not isinstance(before, RayJobsError)
        for before, now in zip([None, *history], history, strict=False)
    ) + any(getattr(answer, "status", None) == "NEW" for answer in history)


@pytest.mark.parametrize(
    ("cluster", "asked"),
    [
        pytest.param(Cluster(files=[b"one\ntwo"]), [POLL, VERSION, FILE], id="file"),
        pytest.param(Cluster(jobs=[RUNNING], files=[b"one\ntwo"]), [POLL, VERSION, FILE], id="of a running job"),
        pytest.param(
            Cluster(jobs=[BUSY, SUCCEEDED], files=[LOST, (b"on", LOST), b"one\ntwo"]),
            [POLL, POLL, VERSION, FILE, FILE, FILE],
            id="with failures",
        ),
        pytest.param(
            Cluster(version=[BUSY, LOST, "2.60.0"], files=[b"one\ntwo"]),
            [POLL, VERSION, VERSION, VERSION, FILE],
            id="with failed version requests",
        ),
        pytest.param(Cluster(version=["2.40.0"], texts=["one\ntwo"]), [POLL, VERSION, TEXT], id="text of an old head"),
        pytest.param(
            Cluster(files=[NO_FILE], texts=[BUSY, "one\ntwo"]), [POLL, VERSION, FILE, TEXT, TEXT], id="no file"
        ),
        pytest.param(Cluster(jobs=[PENDING], texts=["one\ntwo"]), [POLL, TEXT], id="no node"),
    ],
)
def test_whole_log_is_returned_as_text(cluster: Cluster, asked: list[str]) -> None:
    """The log is returned as one text from any available source; temporary failures are retried."""
    assert cluster.drive(get_job_logs("a", retry_timeout=30)) == "one\ntwo"
    assert cluster.asked == asked


def test_unavailable_log_is_an_error() -> None:
    """The log of an interactive job, of an unknown job, or during an outage is an error."""
    refused = RayApiRejectedError("Can only get logs of submission type jobs", status_code=400)
    interactive = Cluster(jobs=[INTERACTIVE], texts=[refused])

    with pytest.raises(RayApiRejectedError):
        interactive.drive(get_job_logs("02000000", retry_timeout=30))
    assert VERSION not in interactive.asked
    with pytest.raises(RayJobNotFoundError):
        Cluster(jobs=[GONE]).drive(get_job_logs("a", retry_timeout=30))
    with pytest.raises(RayApiConnectionError):
        Cluster(files=[LOST]).drive(get_job_logs("a", retry_timeout=30))


@dataclass
class Ageing(Cluster):
    """A cluster whose jobs were submitted when its clock showed 1000, and whose answers carry the time."""

    def _do(self, step: Any, scripts: dict[str, Iterator[Any]]) -> Any:
        answer = super()._do(step, scripts)
        if isinstance(answer, JobDetails):
            return replace(answer, start_time=1_000_000, seen_at=int(self.clock * 1000))
        return answer


@pytest.mark.parametrize("seconds", [0.0, 0.2, 3.0, 10.0, 12.34, 1000.0])
@pytest.mark.parametrize("poll_interval", [0.1, 5.0, 60.0, 3600.0])
def test_time_limit_is_enforced_within_half_a_second(seconds: float, poll_interval: float) -> None:
    """An expired time limit ends the following within half a second, however long ``poll_interval`` is."""
    cluster = Ageing(jobs=[RUNNING])

    with pytest.raises(RayJobTimeoutError, match="job_timeout") as caught:
        cluster.drive(follow_job(JOB, limits=Limits(job_timeout=seconds), poll_interval=poll_interval))

    assert caught.value.details is not None
    assert caught.value.details.name == "a"
    assert seconds <= cluster.clock - 1000 <= seconds + 0.5


def test_pending_timeout_applies_to_pending_jobs_only() -> None:
    """A job that started in time is not abandoned for its waiting time, and a job that did not is."""
    limits = Limits(pending_timeout=4, job_timeout=100)
    started = Ageing(jobs=[PENDING, PENDING, *[RUNNING] * 20, SUCCEEDED])
    waiting = Ageing(jobs=[PENDING])

    assert started.drive(follow_job(JOB, limits=limits)).status == JobStatus.SUCCEEDED
    assert started.clock - 1000 > 60
    with pytest.raises(RayJobTimeoutError) as caught:
        waiting.drive(follow_job(JOB, limits=limits))
    assert caught.value.limit == "pending_timeout"


def test_ended_job_is_not_abandoned() -> None:
    """A job that has ended is returned with its log, even if a time limit expired before its end was seen."""
    cluster = Ageing(jobs=[SUCCEEDED], files=[b"one\n"], clock=9000.0)

    ended = cluster.drive(follow_job(JOB, limits=Limits(job_timeout=5), reader=LogReader()))
    assert ended.status == JobStatus.SUCCEEDED
    assert cluster.shown == ["one"]


def test_log_is_emitted_before_a_job_is_abandoned() -> None:
    """Everything that a job printed before a limit expired is emitted before the job is abandoned."""
    cluster = Ageing(jobs=[RUNNING], files=[b"one\n", b"one\ntwo\n"])

    with pytest.raises(RayJobTimeoutError):
        cluster.drive(follow_job(JOB, limits=Limits(job_timeout=0.7), reader=LogReader()))
    assert cluster.shown == ["one", "two"]


def test_time_limit_is_enforced_after_an_outage() -> None:
    """A limit that expires during an outage ends the following at the first answer after it."""
    cluster = Ageing(jobs=[RUNNING, *[LOST] * 10, RUNNING])

    with pytest.raises(RayJobTimeoutError):
        cluster.drive(follow_job(JOB, limits=Limits(job_timeout=3)))
    assert cluster.clock - 1000 > 3
    assert len(cluster.warnings) == 1


def test_expired_limit_does_not_shorten_delays_in_an_outage() -> None:
    """A limit that expires during an outage shortens one delay, and no later one."""
    cluster = Ageing(jobs=[RUNNING, *[LOST] * 20, SUCCEEDED])

    cluster.drive(follow_job(JOB, limits=Limits(job_timeout=1)))

    assert all(15 <= pause <= 30 for pause in cluster.pauses[-10:])


@pytest.mark.parametrize("seconds", [3, 20, 100])
def test_time_limit_is_enforced_in_time_in_an_outage(seconds: float) -> None:
    """A poll comes when a limit expires, so that the limit is enforced if the outage has ended by then."""
    cluster = Outages(jobs=[RUNNING, LOST], until=1000.0 + seconds)

    with pytest.raises(RayJobTimeoutError):
        cluster.drive(follow_job(JOB, limits=Limits(job_timeout=seconds)))

    assert seconds <= cluster.clock - 1000 <= seconds + 0.5


@pytest.mark.parametrize("poll_interval", [0.1, 1, 5])
@pytest.mark.parametrize("seconds", [0.0, 2.0, 20.0, 100.0])
def test_slow_log_does_not_delay_a_time_limit(seconds: float, poll_interval: float) -> None:
    """While a log arrives more slowly than it can be read, a limit is enforced within a second and one poll."""
    cluster = SlowLog(jobs=[RUNNING], files=[b"one\n"])

    with pytest.raises(RayJobTimeoutError):
        cluster.drive(
            follow_job(JOB, reader=LogReader(), limits=Limits(job_timeout=seconds), poll_interval=poll_interval)
        )

    assert seconds <= cluster.clock - 1000 <= seconds + 1 + 0.5
    assert sum(cluster.deadlines) <= 0.06 * (cluster.clock - 1000) + 2 * max(poll_interval, 1)


def test_slow_log_does_not_delay_status_polls() -> None:
    """A read of a running job's log has a deadline of ``poll_interval``, which doubles up to a minute."""
    cluster = SlowLog(jobs=[RUNNING] * 10_000 + [SUCCEEDED], files=[b"one\n"])

    cluster.drive(follow_job(JOB, reader=LogReader()))

    assert cluster.deadlines[:8] == [5, 5, 10, 20, 40, 60, 60, 60]
    assert sum(cluster.deadlines) < 0.05 * (cluster.clock - 1000)


@dataclass
class Outages(Ageing):
    """A cluster whose outage ends at a given time."""

    until: float = 0.0

    def _do(self, step: Any, scripts: dict[str, Iterator[Any]]) -> Any:
        if isinstance(step, Send) and self.clock >= self.until:
            scripts["jobs"] = iter([RUNNING])
        return super()._do(step, scripts)


@dataclass
class SlowLog(Ageing):
    """A cluster that sends the first line of a log, and then nothing until the deadline of the read."""

    deadlines: list[float] = field(default_factory=list)

    def _do(self, step: Any, scripts: dict[str, Iterator[Any]]) -> Any:
        if not isinstance(step, ReadLog) or self.clock > 1_000_000 or step.request.deadline is None:
            return super()._do(step, scripts)
        self.deadlines.append(step.request.deadline)
        self.clock += step.request.deadline
        step.log.begin()
        self.shown += [*step.log.feed(b"one\ntw"), *step.log.flush()]
        return LOST


@dataclass
class Sessions(Cluster):
    """A cluster whose script of versions holds session names."""

    def _do(self, step: Any, scripts: dict[str, Iterator[Any]]) -> Any:
        answer = super()._do(step, scripts)
        return RayVersion("4", "2.60.0", answer.ray_version) if isinstance(answer, RayVersion) else answer


def test_job_is_lost_when_the_head_restarts() -> None:
    """A job that is unknown because the head was restarted is lost, and the error names both sessions."""
    cluster = Sessions(jobs=[RUNNING, GONE], version=["session_2"])

    with pytest.raises(RayJobLostError, match=r"was in session session_1, and session session_2 answers now.*gone"):
        cluster.drive(follow_job(IN_SESSION_1))
    assert cluster.asked == [POLL, POLL, VERSION]


def test_unknown_job_in_its_own_session_is_not_lost() -> None:
    """A job that is unknown in the session of its submission was deleted, not lost."""
    cluster = Sessions(jobs=[RUNNING, GONE], version=["session_1"])

    with pytest.raises(RayJobNotFoundError):
        cluster.drive(follow_job(IN_SESSION_1))
    assert cluster.asked == [POLL, POLL, VERSION]


def test_session_is_requested_only_if_needed() -> None:
    """The session is not requested for a known job, or if there is none to compare."""
    unknown, known = Sessions(jobs=[GONE]), Sessions(jobs=[RUNNING, SUCCEEDED])

    with pytest.raises(RayJobNotFoundError):
        unknown.drive(follow_job(JOB))
    known.drive(follow_job(IN_SESSION_1))
    assert VERSION not in unknown.asked + known.asked


def test_restarted_head_is_asked_for_its_session_until_it_answers() -> None:
    """After an outage the head is polled until it tells its session."""
    cluster = Sessions(jobs=[RUNNING, LOST, LOST, GONE, GONE, GONE], version=[BUSY, LOST, "session_2"])

    with pytest.raises(RayJobLostError):
        cluster.drive(follow_job(IN_SESSION_1))
    assert len(cluster.warnings) == 1
    assert cluster.asked == [POLL] * 4 + [VERSION, POLL, VERSION, POLL, VERSION]


def test_missing_timeout_does_not_apply_to_a_lost_job() -> None:
    """``missing_timeout`` waits for a submission, but a job that died with its head never comes back."""
    cluster = Sessions(jobs=[GONE], version=["session_2"])

    with pytest.raises(RayJobLostError):
        cluster.drive(follow_job(IN_SESSION_1, missing_timeout=60))
    assert cluster.pauses == []


OURS = replace(RUNNING, start_time=1000, metadata={NONCE: "ours"})
NO_NONCE = replace(OURS, metadata={})
ANOTHER_HAS_ITS_ID = f"Ray job a was lost: another job at {ADDRESS} has its id now"


@pytest.mark.parametrize("status", [JobStatus.RUNNING, JobStatus.SUCCEEDED])
@pytest.mark.parametrize(
    ("job", "theirs"),
    [
        pytest.param(JobRef(ADDRESS, "a", nonce="ours"), replace(OURS, metadata={NONCE: "theirs"}), id="another nonce"),
        pytest.param(JobRef(ADDRESS, "a", nonce="ours"), NO_NONCE, id="no nonce"),
        pytest.param(JobRef(ADDRESS, "a", start_time=1000), replace(NO_NONCE, start_time=2000), id="other start time"),
        pytest.param(JobRef(ADDRESS, "a", start_time=1000), replace(NO_NONCE, start_time=None), id="no start time"),
    ],
)
def test_another_job_with_the_same_id_is_not_followed(job: JobRef, theirs: JobDetails, status: JobStatus) -> None:
    """If another job has the id, the job that is meant is lost, whatever the other job's status and log."""
    theirs = replace(theirs, status=status)
    cluster, poll = Cluster(jobs=[theirs]), Cluster(jobs=[theirs])

    with pytest.raises(RayJobLostError, match=ANOTHER_HAS_ITS_ID):
        cluster.drive(follow_job(job, reader=LogReader(), missing_timeout=60))
    with pytest.raises(RayJobLostError, match=ANOTHER_HAS_ITS_ID):
        poll.drive(poll_job(job, LogReader()))
    assert cluster.asked == poll.asked == [POLL]


@pytest.mark.parametrize("between", [[], [LOST], [GONE, LOST]], ids=["at once", "after an outage", "after a restart"])
@pytest.mark.parametrize(
    ("job", "first", "later"),
    [
        pytest.param(JOB, NO_NONCE, replace(NO_NONCE, start_time=2000), id="another start time"),
        pytest.param(JOB, OURS, replace(OURS, metadata={NONCE: "theirs"}), id="another nonce"),
        pytest.param(JOB, OURS, NO_NONCE, id="record came back without metadata"),
        pytest.param(JOB, INTERACTIVE, replace(INTERACTIVE, start_time=2000), id="interactive job, not seen before"),
        pytest.param(JobRef(ADDRESS, "a", nonce="ours"), OURS, replace(OURS, metadata={}), id="known nonce"),
    ],
)
def test_job_that_is_replaced_while_it_is_followed_is_lost(
    job: JobRef, first: JobDetails, later: JobDetails, between: list[RayJobsError]
) -> None:
    """The first answer completes the reference; a later answer about another job is neither a result nor a log."""
    first = replace(first, start_time=first.start_time or 1000)
    cluster = Cluster(jobs=[first, *between, replace(later, status=JobStatus.SUCCEEDED)], files=[b"one\n", b"theirs\n"])

    with pytest.raises(RayJobLostError, match=ANOTHER_HAS_ITS_ID):
        cluster.drive(follow_job(job, reader=LogReader(), missing_timeout=60))
    assert "theirs" not in cluster.shown


@pytest.mark.parametrize(
    "job",
    [JOB, JobRef(ADDRESS, "a", nonce="ours"), JobRef(ADDRESS, "a", start_time=1000), IN_SESSION_1],
    ids=["id", "nonce", "start time", "session"],
)
def test_job_is_followed_with_any_part_of_its_identity(job: JobRef) -> None:
    """Each known part of a job's identity is compared, and an unknown one is not needed."""
    ended = replace(OURS, status=JobStatus.SUCCEEDED)

    assert Cluster(jobs=[OURS, OURS, ended]).drive(follow_job(job)) is ended


@given(
    history=st.lists(st.sampled_from([OURS, replace(OURS, status=JobStatus.PENDING), LOST, GONE]), max_size=20),
    theirs=st.sampled_from([NO_NONCE, replace(OURS, metadata={NONCE: "theirs"})]),
    status=st.sampled_from([JobStatus.SUCCEEDED, JobStatus.FAILED]),
)
def test_no_result_of_another_job_is_returned(history: list[Any], theirs: JobDetails, status: JobStatus) -> None:
    """After any sequence of answers the following never ends with the result of another job."""
    cluster = Cluster(jobs=[*history, replace(theirs, status=status)])

    with pytest.raises(RayJobLostError):
        cluster.drive(follow_job(JobRef(ADDRESS, "a", nonce="ours"), missing_timeout=9e9))


@pytest.mark.parametrize("time_left", [0.0, 0.2, 3.0, 12.34, 1000.0])
@pytest.mark.parametrize("poll_interval", [0.1, 5.0, 3600.0])
@pytest.mark.parametrize(
    ("jobs", "details"),
    [
        pytest.param([RUNNING], RUNNING, id="running"),
        pytest.param([PENDING], PENDING, id="pending"),
        pytest.param([LOST], None, id="outage"),
        pytest.param([RUNNING, LOST], RUNNING, id="outage after an answer"),
        pytest.param([GONE], None, id="not submitted yet"),
    ],
)
def test_time_left_ends_the_following(
    jobs: list[Any], details: JobDetails | None, time_left: float, poll_interval: float
) -> None:
    """After ``time_left`` seconds the following ends with the job as last seen, during an outage as well."""
    cluster = Cluster(jobs=jobs)
    engine = follow_job(
        JOB, time_left=time_left, poll_interval=poll_interval, missing_timeout=9e9, unreachable_timeout=9e9
    )

    with pytest.raises(
        RayJobTimeoutError, match="job a did not end within the execution_timeout of this try"
    ) as caught:
        cluster.drive(engine)

    assert caught.value.limit == "execution_timeout"
    assert caught.value.details is details
    assert cluster.clock - 1000 == pytest.approx(time_left)


def test_no_time_left_still_takes_one_poll() -> None:
    """Without any time left the job is polled once; if it has ended, it is returned with its log."""
    ended, running = Cluster(files=[b"one\n"]), Cluster(jobs=[RUNNING, SUCCEEDED])

    assert ended.drive(follow_job(JOB, time_left=0, reader=LogReader())) is SUCCEEDED
    assert ended.shown == ["one"]
    for time_left in (0, -5):
        with pytest.raises(RayJobTimeoutError):
            running.drive(follow_job(JOB, time_left=time_left))
    assert (running.asked, running.pauses) == ([POLL] * 2, [])


def test_first_of_all_time_limits_ends_the_following() -> None:
    """``time_left`` delays neither a limit of the job nor the end of an outage."""
    limited, away = Ageing(jobs=[RUNNING]), Cluster(jobs=[LOST])

    with pytest.raises(RayJobTimeoutError) as caught:
        limited.drive(follow_job(JOB, limits=Limits(job_timeout=5), time_left=9))
    assert caught.value.limit == "job_timeout"
    with pytest.raises(RayApiUnreachableError):
        away.drive(follow_job(JOB, unreachable_timeout=30, time_left=90))
