"""Ended jobs in a list, and the memory of a watcher."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs import endpoints
from airflow_provider_rayjobs.jobs.ended import SLACK, EndedJob, EndedMemory, find_ended

TIME = 1_767_312_000_000


def record(name: str | None, status: str = "SUCCEEDED", **fields: Any) -> dict[str, Any]:
    given = {
        "type": "SUBMISSION",
        "submission_id": name,
        "status": status,
        "start_time": 1,
        "end_time": 2,
        "metadata": {},
    }
    return given | fields


def ended(*records: Any) -> list[EndedJob]:
    request = endpoints.list_records()
    content = json.dumps(records).encode()
    return asyncio.run(find_ended(replace(request.read(request.decode(content)), time=TIME)))


def test_ended_jobs_of_a_list():
    """Jobs that run or have a broken record are left out. A submission with a driver appears once."""
    found = ended(
        record("second", end_time=5, job_id="02000000"),
        record("running", "RUNNING"),
        record("new status of Ray", "PAUSED"),
        record("broken", end_time="today"),
        record(None, type="DRIVER", job_id="01000000", end_time=4),
        record("first", "FAILED", end_time=None),
        record("stopped", "STOPPED", end_time=3),
    )

    assert [(job.name, job.ended_at) for job in found] == [("first", 1), ("stopped", 3), ("01000000", 4), ("second", 5)]
    assert found[-1].details().job_id == "02000000"


def job(name: str, ended_at: int, started_at: int = 0) -> EndedJob:
    [found] = ended(record(name, start_time=started_at, end_time=ended_at))
    return found


def names(found: list[EndedJob]) -> list[str]:
    return [each.name for each in found]


def test_memory():
    """A job is new once, however late its end is found within 10 minutes, and so is another job with its id."""
    memory = EndedMemory.starting(TIME)
    early, late = job("early", TIME - SLACK - 1), job("late", TIME - SLACK)

    assert names(memory.find_new([early], TIME)) == []
    assert names(memory.find_new([early, late], TIME)) == ["late"]
    assert names(memory.find_new([early, late, job("late", TIME, started_at=1)], TIME)) == ["late"]
    assert names(memory.find_new([late, job("too late", TIME - SLACK)], TIME + 1)) == ["too late"]
    assert names(memory.find_new([late], TIME + 1)) == []
    assert names(memory.find_new([late, job("much too late", TIME - SLACK)], TIME + 2)) == []


@pytest.mark.parametrize("times", [[9, 0], [0, 9, 0], [0, -9, 0]], ids=["first", "ahead", "behind"])
def test_single_wrong_time(times: list[int]):
    """One list with a wrong time hides no job that ends afterwards, and repeats none."""
    memory = EndedMemory.starting(TIME + times[0] * SLACK)
    old = job("old", TIME - 5 * SLACK)
    for time in times:
        assert memory.find_new([old], TIME + time * SLACK) == []
    memory.find_new([old], TIME)

    assert names(memory.find_new([old, job("new", TIME)], TIME)) == ["new"]


def test_times_that_are_wrong_for_a_while():
    """A head whose clock is wrong for several lists repeats no job, and hides none that ends afterwards."""
    memory = EndedMemory.starting(TIME)
    one = job("one", TIME)
    [found] = memory.find_new([one], TIME)
    memory.take(found)
    for offset in (3, 3, 0, 0, -3, -3, 0, 0):
        assert memory.find_new([one], TIME + offset * SLACK) == []

    assert names(memory.find_new([one, job("two", TIME)], TIME)) == ["two"]


@given(st.lists(st.tuples(st.integers(0, 3 * SLACK), st.integers(0, SLACK), st.booleans())), st.data())
def test_restarts(jobs: list[tuple[int, int, bool]], data: st.DataObject):
    """With a restart after any list, each wanted job is taken once, if Ray writes its end within 10 minutes."""
    every = [
        (job(f"job-{number}", TIME + end), end + delay, wanted) for number, (end, delay, wanted) in enumerate(jobs)
    ]
    memory, stored = EndedMemory.starting(TIME), EndedMemory.starting(TIME).to_json()
    taken: list[str] = []
    times = data.draw(st.lists(st.integers(0, 4 * SLACK)).map(sorted))
    for now in [*times, 4 * SLACK]:
        listed = sorted((each for each, seen, _ in every if seen <= now), key=lambda each: each.ended_at)
        for found in memory.find_new(listed, TIME + now):
            if every[int(found.name[4:])][2]:
                memory.take(found)
                taken.append(found.name)
                stored = json.loads(json.dumps(memory.to_json()))
        if data.draw(st.booleans()):
            memory = EndedMemory.from_json(stored)

    in_time = [each.name for each, seen, wanted in every if wanted and _was_listed_in_time(each, seen, times)]
    assert len(taken) == len({*taken})
    assert {*in_time} <= {*taken} <= {each.name for each, _, wanted in every if wanted}


def _was_listed_in_time(each: EndedJob, seen: int, times: list[int]) -> bool:
    """Tell whether no list between a job's end and its appearance was more than 10 minutes after its end."""
    earlier = [now for now in times if now < seen]
    return not earlier or TIME + earlier[-1] - SLACK <= each.ended_at
