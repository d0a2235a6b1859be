"""The watch of a cluster, in virtual time, against a head whose answers take as long as a real head's."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

import httpx
import pytest
from virtual_loop import run_virtually

from airflow_provider_rayjobs.exceptions import (
    RayApiConnectionError,
    RayApiResponseError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import AsyncRayJobsClient, JobDetails, JobStatus, endpoints
from airflow_provider_rayjobs.jobs.follow import POLL_JITTER, follow_job
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.steps import Send, with_jitter
from airflow_provider_rayjobs.jobs.watch import BUDGET, LANES, MAX_BORROWED, ClusterWatch, Prices

NEVER = float("inf")


class Head:
    """
    Answers one request at a time, as the thread of a real head does.

    :ivar jobs: the records by submission id.
    :ivar old: how many other jobs the cluster has had.
    :ivar asked: time and path of each request.
    :ivar answer: answers instead, unless it returns ``None``.
    """

    def __init__(self, old: int = 0, *, latency: float = 0.0) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.old = old
        self.latency = latency
        self.asked: list[tuple[float, str]] = []
        self.busy = 0.0
        self.open = self.most_open = 0
        self.answer: Callable[[str], Awaitable[httpx.Response | None]] = self._answer_nothing
        self.listing = asyncio.Event()
        self._thread = asyncio.Lock()

    async def _answer_nothing(self, path: str) -> None:
        return None

    def add(self, *names: str, **given: Any) -> None:
        for name in names:
            self.jobs[name] = {"type": "SUBMISSION", "submission_id": name, "status": "RUNNING", **given}

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append((now(), request.url.path))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self.latency)
            async with self._thread:
                return (await self.answer(request.url.path)) or await self._answer(request.url.path)
        finally:
            self.open -= 1

    async def _answer(self, path: str) -> httpx.Response:
        name = path.removeprefix("/api/jobs/")
        seconds = 0.004 if name else 0.0003 * (self.old + len(self.jobs))
        self.busy += seconds
        if not name:
            self.listing.set()
        await asyncio.sleep(seconds)
        self.listing.clear()
        if not name:
            return httpx.Response(200, json=[*self.jobs.values()])
        if name not in self.jobs:
            return httpx.Response(404, text=f"Job {name} does not exist")
        return httpx.Response(200, json=self.jobs[name])

    @property
    def lists(self) -> int:
        return sum(path == "/api/jobs/" for _, path in self.asked)


def now() -> float:
    return asyncio.get_running_loop().time()


class Log:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def log(self, level: int, message: Any, *args: Any) -> None:
        self.messages.append(message % args)


class Watched:
    """A watch with its head and the log of its client."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.log = Log()
        self.client = AsyncRayJobsClient("http://head:8265", transport=httpx.MockTransport(head), logger=self.log)
        self.rounds: list[tuple[int, float]] = []
        self.watch = ClusterWatch(self.client, lambda *round_: self.rounds.append(round_))

    async def __aenter__(self) -> Watched:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.watch.aclose()
        await self.client.aclose()

    async def poll(
        self, name: str, interval: float = 5.0, *, until: float = NEVER, due: float = NEVER, first: float = 0.0
    ) -> list[tuple[float, JobDetails | RayJobsError]]:
        """Poll a job at an interval, and return each answer with its time."""
        answers: list[tuple[float, JobDetails | RayJobsError]] = []

        def engine() -> Any:
            while True:
                try:
                    answer = yield Send(endpoints.get_job(name))
                except RayJobsError as error:
                    answer = error
                return answer

        await asyncio.sleep(first)
        with self.watch.following(interval, lambda: due) as follower:
            while now() < until:
                answers.append((now(), await follower.run(engine())))
                answers[-1] = (now(), answers[-1][1])
                await asyncio.sleep(with_jitter(interval, POLL_JITTER))
        return answers

    async def follow(self, name: str, interval: float = 5.0, **options: Any) -> JobDetails:
        with self.watch.following(interval, lambda: NEVER) as follower:
            return await follower.run(follow_job(JobRef("http://head:8265", name), poll_interval=interval, **options))


def run(head: Head, main: Callable[[Watched], Awaitable[Any]]) -> Watched:
    async def use() -> Watched:
        async with Watched(head) as watched:
            await main(watched)
        return watched

    return run_virtually(use())


def names(count: int) -> list[str]:
    return [f"job-{number}" for number in range(count)]


async def poll_all(watched: Watched, count: int, seconds: float, interval: float = 5.0) -> list[list[Any]]:
    """Let many followers poll their jobs, each from another moment on."""
    end = now() + seconds
    return await asyncio.gather(
        *(watched.poll(name, interval, until=end, first=4.0 * i / count) for i, name in enumerate(names(count)))
    )


@pytest.mark.parametrize(("jobs", "old"), [(100, 0), (1000, 1000), (5000, 0)])
def test_many_jobs_are_listed(jobs: int, old: int) -> None:
    """Many jobs are polled by lists, and all of them with each list."""
    head = Head(old)
    head.add(*names(jobs))
    answers: list[list[Any]] = []

    async def main(watched: Watched) -> None:
        answers.extend(await poll_all(watched, jobs, 300))

    run(head, main)

    interval = max(5.0, 0.0003 * (jobs + old) / BUDGET)
    assert len(head.asked) - head.lists < 150, "only while they start"
    assert 0.5 * 300 / interval < head.lists < 1.5 * 300 / interval + 5
    assert min(len(each) for each in answers) >= 0.6 * 300 / interval
    assert all(
        details.submission_id == name for name, each in zip(names(jobs), answers, strict=True) for _, details in each
    )


def test_few_jobs_of_a_cluster_with_many_are_never_listed() -> None:
    """A cluster that has 10,000 old jobs and 3 followed ones is not listed, in a whole day."""
    head = Head(10_000)
    head.add(*names(3))

    run(head, lambda watched: poll_all(watched, 3, 86_400, interval=60.0))

    assert head.lists == 0


@pytest.mark.parametrize(("jobs", "seen"), [(1000, True), (3, False)])
def test_next_list(jobs: int, seen: bool) -> None:
    """Others can wait for the next list of a round. A watch that makes no lists says so in time."""
    head = Head(1000)
    head.add(*names(jobs))

    async def listen(watched: Watched) -> None:
        await asyncio.sleep(60)
        before, began = head.lists, now()
        lists = await asyncio.gather(*(watched.watch.next_list(60.0) for _ in range(3)))
        assert head.lists - before == seen
        assert [records is not None for records in lists] == 3 * [seen]
        assert now() - began == pytest.approx(60) if not seen else now() - began < 30
        assert await watched.watch.next_list(0.0) is None

    async def main(watched: Watched) -> None:
        await asyncio.gather(listen(watched), poll_all(watched, jobs, 180))

    run(head, main)


def test_long_list_is_avoided_once_it_is_known() -> None:
    """A list that turns out to be long is not asked for again soon."""
    head = Head(10_000)
    head.add(*names(60))

    run(head, lambda watched: poll_all(watched, 60, 3_600, interval=60.0))

    assert 1 <= head.lists <= 2


def test_prices_follow_the_head() -> None:
    """A long list is avoided, and tried again when it may have become short; a short one is used until it is long."""
    prices = Prices()
    assert not prices.prefers_list(50, 0)
    assert prices.prefers_list(200, 0)

    prices.learn_list(1.2, 0)
    prices.learn_list(1.2, 10)
    assert not prices.prefers_list(200, 20)
    assert prices.prefers_list(2000, 20)
    assert prices.prefers_list(200, 10 * 3600)

    for second in range(10):
        prices.learn_list(0.01, second)
    assert prices.prefers_list(20, 10)
    prices.learn_list(0.5, 11)
    assert not prices.prefers_list(20, 12)


def test_prices_of_a_distant_head() -> None:
    """Latency counts for each request, so that few jobs of a distant head are listed only if the list is short."""
    prices = Prices()
    for _ in range(50):
        prices.learn_request(1.0)
    assert not prices.prefers_list(3, 0)
    assert prices.prefers_list(8, 0)

    prices.learn_list(3.0, 0)
    assert not prices.prefers_list(8, 1)
    assert prices.prefers_list(16, 1)


@pytest.mark.parametrize(("jobs", "old", "latency"), [(20, 0, 0.0), (50, 10_000, 0.0), (1000, 4000, 0.0), (200, 0, 2)])
def test_budget(jobs: int, old: int, latency: float) -> None:
    """Whatever is asked, requests are open for 5 % of the time at most, and three at the same time at most."""
    head = Head(old, latency=latency)
    head.add(*names(jobs))

    run(head, lambda watched: poll_all(watched, jobs, 600))

    longest = 0.004 * jobs + 0.0003 * (jobs + old) + latency
    assert head.busy <= BUDGET * 600 + 2 * longest
    assert head.most_open <= LANES


def test_one_job_is_polled_when_its_engine_asks() -> None:
    """A single follower waits for nothing."""
    head = Head(10_000)
    head.add("job-0")
    answers: list[Any] = []

    async def main(watched: Watched) -> None:
        answers.extend(await watched.poll("job-0", 1.0, until=now() + 100))

    run(head, main)

    assert len(answers) >= 99


def test_followers_with_the_same_interval_share_their_rounds() -> None:
    """Followers that began at different moments are soon polled together, without a longer interval."""
    head = Head()
    head.add(*names(100))
    answers: list[list[Any]] = []

    async def main(watched: Watched) -> None:
        answers.extend(await poll_all(watched, 100, 300))

    run(head, main)

    assert head.lists <= 65
    assert min(len(each) for each in answers) >= 52


def test_rounds_are_reported() -> None:
    """After each round the watch tells its followers and its interval, and at its end that it has none."""
    head = Head()
    head.add(*names(3))
    watched = run(head, lambda watched: poll_all(watched, 3, 60))

    assert watched.rounds[-1] == (0, 0.0)
    jobs, intervals = zip(*watched.rounds[:-1], strict=True)
    assert max(jobs) == 3
    assert intervals[-1] > 0


def test_end_is_reported_even_if_it_is_cancelled() -> None:
    """A watch that is cancelled while it ends a round reports at last that it has no followers."""
    head = Head()
    head.add(*names(1))

    async def hang(path: str) -> None:
        if now() > 1020:
            await asyncio.sleep(3600)

    head.answer = hang

    async def main(watched: Watched) -> None:
        polls = asyncio.create_task(watched.poll("job-0"))
        await asyncio.sleep(40)
        polls.cancel()
        await asyncio.wait([polls])
        closing = asyncio.create_task(watched.watch.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        assert watched.rounds[0][0] == 1
        assert watched.rounds[-1] == (0, 0.0)

    run(head, main)


def test_long_interval_is_logged_once() -> None:
    """A follower whose job is polled much more rarely than it wants says so once, with the reason."""
    head = Head(9_000)
    head.add(*names(1000))

    watched = run(head, lambda watched: poll_all(watched, 1000, 600))

    assert len(watched.log.messages) == 1000
    assert re.search(
        r"Ray job job-7 is polled about every \d+ s instead of every 5 s. The head needs \d.\d s to answer",
        "\n".join(watched.log.messages),
    )


def test_interval_that_is_kept_is_not_logged() -> None:
    """Nothing is logged while the head's time allows the interval."""
    head = Head()
    head.add(*names(200))

    assert run(head, lambda watched: poll_all(watched, 200, 300)).log.messages == []


def test_slow_answer_is_not_believed_at_once() -> None:
    """After a single slow answer the interval stays short: the head was busy with something else."""
    head = Head()
    head.add("job-0")
    answers: list[Any] = []

    async def stall(path: str) -> None:
        if len(head.asked) == 10:
            await asyncio.sleep(20)

    head.answer = stall

    async def main(watched: Watched) -> None:
        answers.extend(await watched.poll("job-0", 5.0, until=now() + 120))

    run(head, main)

    assert max(after - before for (before, _), (after, _) in pairwise(answers)) < 35
    assert len(answers) >= 17


@pytest.mark.parametrize("listed", [True, False], ids=["list", "each"])
def test_each_follower_gets_its_own_job(listed: bool) -> None:
    """Submission ids, interactive jobs and Ray Core job ids of drivers are found, in a list and without one."""
    head = Head(0 if listed else 10_000)
    head.add(*names(60 if listed else 3))
    head.jobs["02000000"] = {"type": "DRIVER", "submission_id": None, "job_id": "02000000", "status": "SUCCEEDED"}
    head.add("with-driver", job_id="03000000", status="FAILED")
    found: dict[str, Any] = {}

    async def find(path: str) -> httpx.Response | None:
        return httpx.Response(200, json=head.jobs["with-driver"]) if path.endswith("/03000000") else None

    head.answer = find

    async def one(watched: Watched, name: str) -> None:
        await asyncio.sleep(20)
        found[name] = (await watched.poll(name, until=now() + 1))[0][1]

    async def main(watched: Watched) -> None:
        polls = poll_all(watched, len(head.jobs) - 2, 60)
        await asyncio.gather(polls, *(one(watched, name) for name in ("02000000", "03000000", "with-driver", "gone")))

    run(head, main)

    assert (head.lists > 0) is listed
    assert found["02000000"].status == JobStatus.SUCCEEDED
    assert found["03000000"].submission_id == "with-driver"
    assert found["with-driver"].status == JobStatus.FAILED
    assert isinstance(found["gone"], RayJobNotFoundError)
    assert "HTTP 404, job not found: could not get job gone at http://head:8265" in str(found["gone"])


def test_job_of_a_list_is_like_a_job_alone() -> None:
    """Time, secrets and unknown fields of a job are the same in both answers."""
    head = Head()
    record = {
        "type": "SUBMISSION", "submission_id": "job-0", "job_id": "04000000", "status": "SLEEPING", "error_type": "NEW",
        "start_time": 1, "metadata": {"a": "b"}, "runtime_env": {"env_vars": {"A": "B"}}, "colour": "red",
    }  # fmt: skip
    head.add(*names(40))
    head.jobs["job-0"] = record
    found: list[Any] = []

    async def main(watched: Watched) -> None:
        found.append((await poll_all(watched, 40, 60))[0][-1][1])
        found.append(await watched.client.get_job("job-0"))

    run(head, main)

    assert head.lists > 0
    assert [each.seen_at is not None for each in found] == [True, True]
    assert found[0].start_time == found[1].start_time == 1
    assert (found[0].runtime_env, found[0].metadata) == (found[1].runtime_env, found[1].metadata)
    assert found[0].metadata == {"a": "b"}
    assert (found[0].status, found[0].error_type) == (found[1].status, found[1].error_type) == ("SLEEPING", "NEW")


def test_outage_of_the_cluster() -> None:
    """All followers get the error of an outage. The watch backs off once, and not once for each follower."""
    head = Head()
    head.add(*names(500))
    ends: list[Any] = []
    outage: list[float] = []

    async def fail(path: str) -> httpx.Response | None:
        if outage[0] < now() < outage[0] + 60:
            return httpx.Response(503, text="no healthy upstream")
        return None

    head.answer = fail

    async def end(name: str) -> None:
        await asyncio.sleep(200)
        head.add(name, status="SUCCEEDED")

    async def main(watched: Watched) -> None:
        outage.append(now() + 30)
        follow = (watched.follow(name) for name in names(500))
        ends.extend((await asyncio.gather(*follow, *map(end, names(500))))[:500])

    watched = run(head, main)

    assert {details.status for details in ends} == {JobStatus.SUCCEEDED}
    asked = sum(outage[0] < at < outage[0] + 60 for at, _ in head.asked)
    assert 2 <= asked <= 18
    began = Counter(message.partition(" Retrying")[0] for message in watched.log.messages if "No usable" in message)
    assert set(began.values()) == {1}
    assert len(began) == 500
    assert sum("Ray answers about job" in message for message in watched.log.messages) == 500


def test_outage_is_over_soon_after_the_cluster_answers() -> None:
    """After an outage the jobs are polled again within the longest backoff."""
    head = Head()
    head.add(*names(50))
    answers: list[list[Any]] = []

    async def refuse(path: str) -> None:
        if 1050 < now() < 1650:
            raise httpx.ConnectError("refused")

    head.answer = refuse

    async def main(watched: Watched) -> None:
        answers.extend(await poll_all(watched, 50, 700))

    run(head, main)

    for each in answers:
        assert any(1650 < at < 1690 and isinstance(answer, JobDetails) for at, answer in each)


@pytest.mark.parametrize(("jobs", "broken"), [(10, 1), (100, 1), (100, 9)])
def test_error_of_one_job_is_its_own(jobs: int, broken: int) -> None:
    """Jobs about which Ray fails to answer do not disturb the others."""
    head = Head()
    head.add(*names(jobs))

    async def fail(path: str) -> httpx.Response | None:
        return httpx.Response(500, text="Traceback (most recent call last):\nKeyError") if "broken" in path else None

    head.answer = fail
    answers: list[list[Any]] = []

    async def main(watched: Watched) -> None:
        failing = (watched.poll(f"broken-{number}", until=now() + 200, first=10.0) for number in range(broken))
        others, *mine = await asyncio.gather(poll_all(watched, jobs, 200), *failing)
        answers.extend([*mine, *others])

    run(head, main)

    assert {type(answer) for each in answers[:broken] for _, answer in each} == {RayApiResponseError}
    assert {type(answer) for each in answers[broken:] for _, answer in each} == {JobDetails}
    assert min(len(each) for each in answers) >= 30


def test_round_belongs_to_no_follower() -> None:
    """A round does not run in the context of one of its followers, by which log messages are told apart."""
    head = Head()
    head.add(*names(3))
    follower: ContextVar[str] = ContextVar("follower")
    seen: set[str | None] = set()

    async def note(path: str) -> None:
        seen.add(follower.get(None))

    head.answer = note

    async def poll(watched: Watched, name: str) -> None:
        follower.set(name)
        await watched.poll(name, until=now() + 50)

    run(head, lambda watched: asyncio.gather(*(poll(watched, name) for name in names(3))))

    assert len(head.asked) > 3
    assert seen == {None}


def test_answer_about_another_job_is_refused() -> None:
    """An answer about another job, for instance from a proxy's cache, is an error."""
    head = Head()
    head.add("job-0", "job-1")

    async def mix_up(path: str) -> httpx.Response | None:
        return httpx.Response(200, json=head.jobs["job-1"]) if path.endswith("job-0") else None

    head.answer = mix_up
    answers: list[Any] = []

    async def main(watched: Watched) -> None:
        answers.extend(await watched.poll("job-0", until=now() + 1))

    run(head, main)

    assert "the answer is about another job: could not get job job-0" in str(answers[0][1])


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(httpx.Response(403, html="<html>no lists</html>"), id="refused"),
        pytest.param(httpx.Response(500, text="Traceback (most recent call last):\nKeyError"), id="a broken record"),
        pytest.param(httpx.Response(200, json={"jobs": []}), id="another form"),
        pytest.param(httpx.Response(200, content=b"[{]", headers={"content-type": "application/json"}), id="no JSON"),
    ],
)
def test_unusable_list(answer: httpx.Response) -> None:
    """If the list cannot be used, each job is asked for, and no follower notices. Later a list is tried again."""
    head = Head()
    head.add(*names(60))

    async def refuse(path: str) -> httpx.Response | None:
        return answer if path == "/api/jobs/" else None

    head.answer = refuse
    answers: list[list[Any]] = []

    async def main(watched: Watched) -> None:
        answers.extend(await poll_all(watched, 60, 1_800, interval=30.0))

    run(head, main)

    assert {type(answer) for each in answers for _, answer in each} == {JobDetails}
    assert 2 <= head.lists <= 4


@pytest.mark.parametrize("status", [401, 404, 500])
def test_outage_says_nothing_about_the_list(status: int) -> None:
    """After an outage in which a proxy refused all requests, the jobs are listed as before."""
    head = Head()
    head.add(*names(1000))
    answers: list[list[Any]] = []

    async def refuse(path: str) -> httpx.Response | None:
        return httpx.Response(status, html="<html>no backend</html>") if 1100 < now() < 1106 else None

    head.answer = refuse

    async def main(watched: Watched) -> None:
        answers.extend(await poll_all(watched, 1000, 300))

    run(head, main)

    for each in answers:
        times = [at for at, answer in each if isinstance(answer, JobDetails)]
        assert max(after - before for before, after in pairwise(times)) < 45


@pytest.mark.parametrize("hangs", [0, 60])
def test_list_that_is_always_cut_off(hangs: int) -> None:
    """After two lists that are cut off, each job is asked for, without a long rest for the lists."""
    head = Head()
    head.add(*names(60))

    async def cut(path: str) -> None:
        if path == "/api/jobs/":
            await asyncio.sleep(hangs)
            raise httpx.RemoteProtocolError("peer closed connection")

    head.answer = cut
    answers: list[list[Any]] = []

    async def main(watched: Watched) -> None:
        answers.extend(await poll_all(watched, 60, 300))

    run(head, main)

    assert 2 <= head.lists <= 3
    assert all(isinstance(each[-1][1], JobDetails) for each in answers)
    assert min(len(each) for each in answers) >= 15


def test_list_that_always_times_out() -> None:
    """If a proxy cannot wait for a list, that is an outage once, and not whenever a list is tried again."""
    head = Head()
    head.add(*names(60))

    async def refuse(path: str) -> httpx.Response | None:
        return httpx.Response(504, text="gateway timeout") if path == "/api/jobs/" else None

    head.answer = refuse
    answers: list[list[Any]] = []

    async def main(watched: Watched) -> None:
        answers.extend(await poll_all(watched, 60, 1_800, interval=30.0))

    run(head, main)

    assert head.lists > 3
    for each in answers:
        assert sum(isinstance(answer, RayJobsError) for _, answer in each) <= 1


@pytest.mark.parametrize("broken", [{"submission_id": "job-0", "type": "SUBMISSION"}, {"submission_id": 5}, 5, None])
def test_broken_record_in_a_list(broken: Any) -> None:
    """A record that cannot be read does not spoil the list. Its job is asked for."""
    head = Head()
    head.add(*names(60))
    records = [broken, *[head.jobs[name] for name in names(60)[1:]]]

    async def spoil(path: str) -> httpx.Response | None:
        return httpx.Response(200, json=records) if path == "/api/jobs/" else None

    head.answer = spoil
    answers: list[list[Any]] = []

    async def main(watched: Watched) -> None:
        answers.extend(await poll_all(watched, 60, 100))

    run(head, main)

    assert {type(answer) for each in answers for _, answer in each} == {JobDetails}
    assert head.lists > 10


def test_follower_that_leaves_disturbs_no_other() -> None:
    """Followers that are cancelled before, in and after a round take nothing from the others."""
    head = Head(latency=1.0)
    head.add(*names(100))
    answers: list[list[Any]] = []

    async def cancel_later(task: asyncio.Task[Any], seconds: float) -> None:
        await asyncio.sleep(seconds)
        task.cancel()

    async def main(watched: Watched) -> None:
        end = now() + 200
        tasks = [asyncio.create_task(watched.poll(name, until=end)) for name in names(100)]
        leaving = [cancel_later(task, 0.37 * number) for number, task in enumerate(tasks[:50])]
        _, *ended = await asyncio.gather(asyncio.gather(*leaving), *tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended[:50])
        answers.extend(ended[50:])
        assert watched.watch._asked == watched.watch._followers == 0

    run(head, main)

    assert {type(answer) for each in answers for _, answer in each} == {JobDetails}
    assert min(len(each) for each in answers) >= 6


def test_questions_without_followers_are_not_asked() -> None:
    """A question whose follower left before its round costs no request, and leaves the interval as it is."""
    head = Head(9_000)
    head.add(*names(1000))

    async def main(watched: Watched) -> None:
        await poll_all(watched, 1000, 200)
        asked, interval = len(head.asked), watched.watch.interval
        leaving = asyncio.create_task(watched.poll("job-0"))
        await asyncio.sleep(1)
        leaving.cancel()
        await asyncio.sleep(200)
        assert (len(head.asked), watched.watch.interval) == (asked, interval)

    run(head, main)


def test_each_job_is_found_while_others_join() -> None:
    """A follower that joins during a round is answered by a later one: its job may be newer than the list."""
    head = Head(1_500)
    head.add(*names(300))
    found: list[Any] = []

    async def main(watched: Watched) -> None:
        polling = asyncio.ensure_future(poll_all(watched, 300, 100))
        await asyncio.sleep(20)
        await head.listing.wait()
        await asyncio.sleep(0.4)
        head.add("new")
        found.extend(await watched.poll("new", until=now() + 1))
        await polling

    run(head, main)

    assert isinstance(found[0][1], JobDetails)


@pytest.mark.parametrize("old", [9_000, 24_000])
def test_expired_limit_does_not_wait_for_the_budget(old: int) -> None:
    """A job whose time limit has expired is asked for at once. The other questions wait for the list."""
    head = Head(old)
    head.add(*names(1000))
    answers: list[Any] = []

    async def main(watched: Watched) -> None:
        polling = asyncio.ensure_future(poll_all(watched, 1000, 200))
        await asyncio.sleep(100)
        answers.extend(await watched.poll("job-0", until=now() + 1, due=1110.0))
        await polling

    run(head, main)

    assert 1110.0 <= answers[0][0] < 1110.1


def test_expired_limits_borrow_a_bounded_time() -> None:
    """If the limits of many jobs expire at once, they are asked for early, but not without bounds."""
    head = Head(9_000)
    head.add(*names(1000))

    async def main(watched: Watched) -> None:
        end = now() + 1200
        await asyncio.gather(*(watched.poll(name, until=end, due=0.0) for name in names(1000)))

    run(head, main)

    seconds = head.asked[-1][0] - head.asked[0][0]  # 1,200 and the last rest
    assert head.busy <= BUDGET * seconds + MAX_BORROWED + 2 * 3.1
    lists = [at for at, path in head.asked if path == "/api/jobs/"]
    assert max(after - before for before, after in pairwise(lists)) <= (MAX_BORROWED + 2 * 3.1) / BUDGET


def test_expired_limit_during_an_outage() -> None:
    """A question whose limit has expired does not wait for the next round of an outage, and sends nothing."""
    head = Head()
    answers: list[Any] = []

    async def refuse(path: str) -> None:
        raise httpx.ConnectError("refused")

    head.answer = refuse

    async def main(watched: Watched) -> None:
        polling = asyncio.ensure_future(poll_all(watched, 20, 100))
        await asyncio.sleep(60)
        answers.extend(await watched.poll("job-0", until=now() + 1, due=now()))
        await polling

    run(head, main)

    assert answers[0][0] == pytest.approx(1060, abs=0.1)
    assert isinstance(answers[0][1], RayApiConnectionError)
    assert len(head.asked) < 40


def test_expired_limits_while_the_head_hangs() -> None:
    """Limits that expire one after the other do not each send a request, which would wait for the others' timeouts."""
    head = Head()
    head.add(*names(500))
    late: list[float] = []

    async def time_out(path: str) -> None:
        if head.latency:
            raise httpx.ReadTimeout("timed out")

    head.answer = time_out

    async def main(watched: Watched) -> None:
        async def expire(name: str, due: float) -> None:
            answers = await watched.poll(name, 30.0, until=due, due=due)
            late.append(answers[-1][0] - due)

        async def hang() -> None:
            await asyncio.sleep(97)
            head.latency = 30.0

        limits = (expire(name, 1100.0 + 0.12 * number) for number, name in enumerate(names(500)))
        await asyncio.gather(hang(), *limits)

    run(head, main)

    assert max(late) < 5 * 30.0


def test_waiting_for_the_watch_is_no_outage() -> None:
    """A job that waits for the budget for longer than ``unreachable_timeout`` does not fail."""
    head = Head(9_000)
    head.add(*names(1000))

    async def main(watched: Watched) -> None:
        await asyncio.sleep(1)
        polling = asyncio.ensure_future(poll_all(watched, 999, 400))
        await asyncio.sleep(100)
        ended = asyncio.ensure_future(watched.follow("job-999", unreachable_timeout=1))
        await asyncio.sleep(200)
        head.add("job-999", status="SUCCEEDED")
        assert (await ended).status == JobStatus.SUCCEEDED
        await polling

    run(head, main)


def test_head_with_long_answers() -> None:
    """With a head that needs 2 s for each answer no trigger fails, and each notices the end of its job."""
    head = Head(latency=2.0)
    head.add(*names(300))
    ends: list[Any] = []

    async def main(watched: Watched) -> None:
        following = [asyncio.create_task(watched.follow(name, unreachable_timeout=30)) for name in names(300)]
        await asyncio.sleep(300)
        head.add(*names(300), status="SUCCEEDED")
        ends.extend(await asyncio.gather(*following))
        assert now() < 1000 + 300 + 2 * 2.1 / BUDGET

    run(head, main)

    assert {details.status for details in ends} == {JobStatus.SUCCEEDED}


def test_closed_watch_ends_its_rounds() -> None:
    """A watch that is closed in the middle of a round leaves no task behind."""
    head = Head(latency=10.0)
    head.add("job-0")

    async def main(watched: Watched) -> None:
        task = asyncio.create_task(watched.poll("job-0"))
        await asyncio.sleep(5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(head, main)  # run_virtually checks that no task is left
