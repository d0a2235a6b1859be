"""
One watch for all jobs of a cluster that are followed on an event loop.

Each job keeps its own engine (:func:`~.follow.follow_job`), with its interval, its limits and its outages. Only the
request for the job's state is not sent: the engine's driver, a :class:`Follower`, asks the :class:`ClusterWatch`.

- The watch collects questions and answers them in rounds. A round begins after each of its questions was asked.
- A round lists all jobs of the cluster, or asks for each job, whichever takes the head less time. :class:`Prices`
  learns that from the rounds before. A job that is not in the list is asked for.
- Rounds take at most 5 % of the head's time: one that took t seconds is followed by the next after 20 t seconds.
- Questions wait for each other: a round begins one interval after the last one, or once all followers have asked.
- A question whose time limit has expired does not wait. The watch borrows the time for it from later rounds.
- An outage of the cluster ends the round with one error for all of its questions. The next round backs off.

While a question waits for the watch nothing has failed, so that no outage begins.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any, TypeVar

from airflow_provider_rayjobs.exceptions import (
    Delivery,
    RayApiBusyError,
    RayApiConnectionError,
    RayApiResponseError,
    RayJobNotFoundError,
    RayJobsError,
)
from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.client import AsyncRayJobsClient, drive
from airflow_provider_rayjobs.jobs.endpoints import JobRecords
from airflow_provider_rayjobs.jobs.exchange import REQUESTS_AT_ONCE
from airflow_provider_rayjobs.jobs.follow import FIRST_DELAY, MAX_OUTAGE_DELAY
from airflow_provider_rayjobs.jobs.requests import Request
from airflow_provider_rayjobs.jobs.steps import Engine, LogMessage, OnLog, Send, Step, retry_pause

T = TypeVar("T")

# Requests of a round at the same time. One turn of the client is left for the stop of a job.
LANES = REQUESTS_AT_ONCE - 1
# The part of the head's time that rounds may take.
BUDGET = 0.05
# Seconds of the head's time that questions with an expired time limit may borrow from later rounds.
MAX_BORROWED = 3.0
# Most seconds between two rounds for which a question waits for others with the same interval.
MAX_SPACING = 10.0
# Seconds that a request for one job takes a head (Ray 2.60), until the watch has measured it.
_REQUEST_SECONDS = 0.004
# Seconds that a list is taken to cost beyond one request before it was measured: about 330 jobs. So 25 followed jobs or
# fewer are never listed without knowing that the list is short.
_UNKNOWN_LIST_SECONDS = 0.1
# Seconds after which half of what was learned about the list is forgotten: jobs are submitted and deleted meanwhile.
_LIST_HALF_LIFE = 3600.0
# Seconds without lists after one that could not be used, for instance because a proxy refuses it.
_LIST_PAUSE = 600.0
# Weights of the last measurement. A measurement counts up to twice the expected seconds and these seconds.
_REQUEST_WEIGHT, _REQUEST_DOUBT = 0.2, 0.25
_LIST_WEIGHT, _LIST_DOUBT = 0.5, 1.0
# Answers that are passed on before other coroutines get a turn. The followers need about 0.2 ms for each.
_AT_ONCE = 25
# Shortest interval, in seconds, that is worth a message.
_LONG_INTERVAL = 5.0


class Prices:
    """
    The seconds that a list, or requests for each job, take the head; learned from earlier rounds.

    A single slow answer is not believed at once: the head may have been busy with something else.
    """

    def __init__(self) -> None:
        self._request = _REQUEST_SECONDS
        self._list: float | None = None
        self._listed_at = 0.0
        self._no_list_before = 0.0

    def prefers_list(self, jobs: int, now: float) -> bool:
        """Tell whether a list takes the head less time than requests for each of these jobs."""
        requests = self._request * max(1.0, jobs / LANES)
        return now >= self._no_list_before and self._expected_list(now) < requests

    def _expected_list(self, now: float) -> float:
        unknown = self._request + _UNKNOWN_LIST_SECONDS
        if self._list is None:
            return unknown
        known: float = 0.5 ** ((now - self._listed_at) / _LIST_HALF_LIFE)
        return unknown + known * (self._list - unknown)

    def learn_request(self, seconds: float) -> float:
        """Learn from a request for one job, and return the seconds to believe."""
        believed = min(seconds, 2 * self._request + _REQUEST_DOUBT)
        self._request += _REQUEST_WEIGHT * (believed - self._request)
        return believed

    def learn_list(self, seconds: float, now: float) -> float:
        """Learn from a list, and return the seconds to believe."""
        expected = self._expected_list(now)
        believed = min(seconds, 2 * expected + _LIST_DOUBT)
        self._list = believed if self._list is None else expected + _LIST_WEIGHT * (believed - expected)
        self._listed_at = now
        return believed

    def avoid_list(self, now: float) -> None:
        """Prefer no list for a while."""
        self._no_list_before = now + _LIST_PAUSE


@dataclass(eq=False)
class _Question:
    """
    An engine's request for the state of its job.

    :param begin_at: when it has waited long enough for others.
    :param due: when a time limit expires, so that it has to be answered.
    """

    request: Request[Any]
    answer: asyncio.Future[Any]
    begin_at: float
    due: float


class ClusterWatch:
    """
    Answers the questions about the jobs of one cluster.

    :param client: of the cluster. It belongs to the caller, who closes it after the watch.
    :param on_round: called after each round, and at the end, with the number of followers and :attr:`interval`.
    """

    def __init__(self, client: AsyncRayJobsClient, on_round: Callable[[int, float], object] = lambda *_: None) -> None:
        self.client = client
        self._on_round = on_round
        # seconds that the budget demands after the last round, without the borrowed time
        self.interval = 0.0
        self._prices = Prices()
        # whether the last list could not be used
        self._has_list_failed = False
        self._followers = 0
        # questions without an answer, and those of them that no round has taken yet
        self._asked = 0
        self._waiting: dict[_Question, None] = {}
        self._begin_at = self._due_at = float("inf")
        # when the last round ended, and when the next one may begin
        self._ended_at = self._free_at = 0.0
        # the error of the last round, and the seconds until the next one
        self._error: RayJobsError | None = None
        self._delay = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._round: asyncio.Task[None] | None = None
        # the round for questions whose time limit has expired
        self._extra: asyncio.Task[None] | None = None
        # of those that wait for the next list
        self._listeners: set[asyncio.Future[JobRecords]] = set()

    @contextmanager
    def following(self, poll_interval: float, due: Callable[[], float]) -> Iterator[Follower]:
        """
        Yield the driver for the engine of one job.

        :param due: returns when the job's next time limit expires, on the event loop's clock.
        """
        self._followers += 1
        try:
            yield Follower(self, poll_interval, due)
        finally:
            self._followers -= 1

    async def ask(self, request: Request[T], poll_interval: float, due: float) -> T:
        """Return the answer to a request for a job's state, or raise its error."""
        loop = asyncio.get_running_loop()
        begin_at = loop.time()
        self._asked += 1
        if self._asked < self._followers:  # wait for the others
            begin_at = max(begin_at, self._ended_at + min(poll_interval, MAX_SPACING))
        question = _Question(request, loop.create_future(), begin_at, due)
        self._waiting[question] = None
        self._begin_at, self._due_at = min(self._begin_at, question.begin_at), min(self._due_at, due)
        self._set_timer()
        try:
            answer: T = await question.answer
            return answer
        finally:
            self._asked -= 1
            self._waiting.pop(question, None)

    async def next_list(self, seconds: float) -> JobRecords | None:
        """Wait for the next list of a round. Return ``None`` if there is none for so many seconds."""
        listener: asyncio.Future[JobRecords] = asyncio.get_running_loop().create_future()
        self._listeners.add(listener)
        try:
            return await asyncio.wait_for(listener, seconds)
        except TimeoutError:
            return None
        finally:
            self._listeners.remove(listener)

    async def aclose(self) -> None:
        """End all rounds. The caller must have ended all followers before."""
        if self._timer is not None:
            self._timer.cancel()
        tasks = [task for task in (self._round, self._extra) if task is not None]
        for task in tasks:
            task.cancel()
        # before the rounds have ended, as the caller may be cancelled meanwhile
        self.interval = 0.0
        self._on_round(0, self.interval)
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- when rounds begin ----------------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        """Call :meth:`_begin_rounds` at the next moment at which a round may begin."""
        round_at = max(self._begin_at, self._free_at) if self._round is None else float("inf")
        when = min(round_at, self._limits_at())
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = None
        if when < float("inf"):
            self._timer = asyncio.get_running_loop().call_at(when, self._begin_rounds)

    def _limits_at(self) -> float:
        """Return when questions whose time limit has expired may be answered: one round for them at a time."""
        if self._extra is not None:
            return float("inf")
        return max(self._due_at, self._free_at - self.interval - MAX_BORROWED / BUDGET)

    def _begin_rounds(self) -> None:
        now = _now()
        self._timer = None
        if not self._waiting:  # their followers have left
            pass
        elif self._round is None and now >= max(self._begin_at, self._free_at):
            self._round = self._begin(list(self._waiting), is_extra=False)
        elif now >= self._limits_at():
            self._answer_due([each for each in self._waiting if each.due <= now], now)
        self._begin_at = min((each.begin_at for each in self._waiting), default=float("inf"))
        self._due_at = min((each.due for each in self._waiting), default=float("inf"))
        self._set_timer()

    def _answer_due(self, due: list[_Question], now: float) -> None:
        if self._error is not None and now < self._free_at:  # an outage; each engine decides about its time limit
            for each in due:
                del self._waiting[each]
                _fail(each, self._error)
        elif due:
            questions = list(self._waiting) if self._prices.prefers_list(len(due), now) else due
            self._extra = self._begin(questions, is_extra=True)

    def _begin(self, questions: list[_Question], *, is_extra: bool) -> asyncio.Task[None]:
        for each in questions:
            del self._waiting[each]
        # not in the context of one of the followers, by which log messages are told apart
        task = asyncio.create_task(self._answer_all(questions, is_extra), context=Context())
        task.add_done_callback(self._end_round)
        return task

    # -- a round --------------------------------------------------------------------------------------------------

    async def _answer_all(self, questions: list[_Question], is_extra: bool) -> None:
        """Answer questions, and plan the next round."""
        began = _now()
        try:
            seconds = await self._ask_head(questions)
        except RayJobsError as error:
            self._error = error
            self._delay = min(max(2 * self._delay, FIRST_DELAY), MAX_OUTAGE_DELAY)
            self._free_at = max(self._free_at, _now() + retry_pause(self._delay, error))
            for number, each in enumerate(questions, start=1):
                _fail(each, error)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
        except GeneratorExit:  # the event loop has ended, and its followers with it
            raise
        except BaseException as error:  # the watch is closed, or a bug
            for each in questions:
                _fail(each, error)
            raise
        else:
            self._error, self._delay = None, 0.0
            rest = seconds / BUDGET
            self._free_at = max(self._free_at, began) + rest
            if not is_extra:
                self.interval = rest

    def _end_round(self, task: asyncio.Task[None]) -> None:
        if task is self._round:
            self._round, self._ended_at = None, _now()
            self._on_round(self._followers, self.interval)
        else:
            self._extra = None
        self._set_timer()

    async def _ask_head(self, questions: list[_Question]) -> float:
        """Answer questions, and return the seconds that this took the head."""
        seconds, left = 0.0, questions
        # in an outage, a request for one job tells whether it is over
        if self._error is not None or not self._prices.prefers_list(len(questions), _now()):
            seconds, left = await self._request_each(questions, may_list=True)
        return seconds + (await self._find_in_list(left) if left else 0.0)

    async def _find_in_list(self, questions: list[_Question]) -> float:
        began = _now()
        try:
            records = await self.client.send(endpoints.list_records())
        except (RayApiResponseError, RayApiConnectionError) as error:
            # A proxy may refuse lists, or cut off long ones. A list may be too large, or have a broken record.
            is_response = isinstance(error, RayApiResponseError) and not isinstance(error, RayApiBusyError)
            is_second = self._has_list_failed
            self._has_list_failed = True
            if not is_response and (not is_second or error.delivery is Delivery.NOT_SENT):
                raise
            seconds = self._prices.learn_list(_now() - began, _now())
            seconds += (await self._request_each(questions))[0]  # raises in an outage, which says nothing about lists
            self._prices.avoid_list(_now())
            return seconds
        self._has_list_failed = False
        seconds = self._prices.learn_list(_now() - began, _now())
        for listener in self._listeners:
            if not listener.done():
                listener.set_result(records)
        missing = []
        for number, each in enumerate(questions, start=1):
            if (answer := records.find(each.request)) is None:
                missing.append(each)
            elif not each.answer.done():
                each.answer.set_result(answer)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
        try:
            seconds += (await self._request_each(missing))[0]
        except RayJobsError as error:  # of these jobs alone, as Ray has just answered
            for each in missing:
                _fail(each, error)
        return seconds

    async def _request_each(
        self, questions: list[_Question], *, may_list: bool = False
    ) -> tuple[float, list[_Question]]:
        """
        Send a request for each job, few at a time.

        An error of one job is its own. As many in a row as are sent at the same time are an outage of the cluster.

        :param may_list: whether to stop as soon as a list is expected to take the head less time.
        :return: the seconds that this took the head, and the questions that are left.
        """
        left = deque(questions)
        lanes = min(LANES if self._error is None else 2, len(questions))
        errors: list[RayJobsError] = []  # without an answer of Ray in between
        may_stop = may_list and self._error is None
        seconds = 0.0

        async def request_some() -> None:
            nonlocal may_stop, seconds
            while left and len(errors) < lanes and not (may_stop and self._prices.prefers_list(len(left), _now())):
                each = left.popleft()
                if each.answer.done():  # its follower has left
                    continue
                began = _now()
                try:
                    answer = await self.client.send(each.request)
                except RayJobsError as error:
                    _fail(each, error)
                    if not isinstance(error, RayJobNotFoundError):
                        errors.append(error)
                        continue
                else:
                    if not each.answer.done():
                        each.answer.set_result(answer)
                errors.clear()
                may_stop = may_list
                seconds += self._prices.learn_request(_now() - began) / lanes

        await asyncio.gather(*(request_some() for _ in range(lanes)))
        # one job alone does not tell that the cluster fails, but may tell that it still does
        if errors and len(errors) >= lanes and (lanes > 1 or self._error is not None):
            raise errors[-1]
        return seconds, list(left)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _fail(question: _Question, error: BaseException) -> None:
    """Answer a question with a copy of an error, as each follower adds to its traceback."""
    if question.answer.done():
        return
    if isinstance(error, asyncio.CancelledError):
        question.answer.cancel()
        return
    if isinstance(error, RayJobsError):
        error, cause = copy.copy(error), error.__cause__
        error.__cause__ = cause
    question.answer.set_exception(error)


class Follower:
    """Drives the engine of one job like a client. The watch answers its requests for the job's state."""

    def __init__(self, watch: ClusterWatch, poll_interval: float, due: Callable[[], float]) -> None:
        self._watch = watch
        self._client = watch.client
        self._poll_interval = poll_interval
        self._due = due
        self._has_told = False

    async def run(self, engine: Engine[T], on_log: OnLog | None = None) -> T:
        """Run an engine to its end, and call ``on_log`` with the records that it emits."""
        return await drive(engine, self._perform, on_log)

    async def _perform(self, step: Step, emit: OnLog) -> Any:
        if isinstance(step, Send) and step.request.job is not None:
            self._tell_long_interval(step.request.job)
            return await self._watch.ask(step.request, self._poll_interval, self._due())
        return await self._client.perform(step, emit)

    def _tell_long_interval(self, job: str) -> None:
        """Log once that the interval is much longer than the follower wants."""
        interval = self._watch.interval
        if self._has_told or interval <= max(2 * self._poll_interval, _LONG_INTERVAL):
            return
        self._has_told = True
        self._client.log(
            LogMessage(
                f"Ray job {job} is polled about every {interval:.0f} s instead of every {self._poll_interval:g} s. "
                f"The head needs {interval * BUDGET:.1f} s to answer about all jobs that are followed here, and polls "
                f"may take {BUDGET:.0%} of its time. If its list of jobs is long, delete the records of old ones."
            )
        )
