"""Many deferred jobs of one cluster: a real Ray head, and what triggers share."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import psutil
import pytest
from stand_in_head import StandInHead

from airflow_provider_rayjobs import triggers
from airflow_provider_rayjobs.jobs import JobStatus, RayJobsClient
from airflow_provider_rayjobs.jobs.exchange import LOG_READS_AT_ONCE, REQUESTS_AT_ONCE
from airflow_provider_rayjobs.jobs.logs.options import LogOptions
from airflow_provider_rayjobs.triggers import RayJobTrigger, details_from_event
from sandbox.ray_head import RayHead

JOBS = 50


async def fire(trigger: RayJobTrigger) -> dict[str, Any]:
    [event] = [event async for event in trigger.run()]
    return event.payload


def connections_to(port: int) -> int:
    """Return how many connections this process has to a port, as the operating system knows them."""
    found = psutil.Process().net_connections("tcp")
    return sum(bool(each.raddr) and each.raddr.port == port and each.status == "ESTABLISHED" for each in found)


@pytest.mark.ray
def test_fifty_jobs_of_a_real_head(ray_head: RayHead, monkeypatch: pytest.MonkeyPatch):
    """
    50 jobs are followed with their logs to their end, over 8 connections at most, while the head answers others.

    The time of the head's answers to others is logged, not asserted: 50 drivers start on a machine with few cores.
    """
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", ray_head.address)
    most, answers = 0, []

    async def observe(followers: asyncio.Future[Any]) -> None:
        nonlocal most
        async with httpx.AsyncClient(base_url=ray_head.address, timeout=60) as client:
            await client.get("/api/version")
            while not followers.done():
                most = max(most, connections_to(ray_head.port) - 1)
                began = time.perf_counter()
                (await client.get("/api/version")).raise_for_status()
                answers.append(time.perf_counter() - began)
                await asyncio.sleep(0.1)

    async def follow(jobs: list[str]) -> list[dict[str, Any]]:
        each = [fire(RayJobTrigger(job, poll_interval=5, logs=LogOptions().to_json())) for job in jobs]
        followers = asyncio.gather(*each)
        await observe(followers)
        return await followers

    with RayJobsClient(ray_head.address) as client:
        jobs = [client.submit_job("echo started; sleep 20") for _ in range(JOBS)]
    events = asyncio.run(follow(jobs))
    with RayJobsClient(ray_head.address) as client:
        # the watch takes either answer for the other
        listed = {job.name: job for job in client.list_jobs()}
        assert all(replace(client.get_job(job), seen_at=None) == replace(listed[job], seen_at=None) for job in jobs[:5])

    assert [event["submission_id"] for event in events] == jobs
    assert {details_from_event(event).status for event in events} == {JobStatus.SUCCEEDED}
    assert 1 <= most <= REQUESTS_AT_ONCE + LOG_READS_AT_ONCE == 8
    answers.sort()
    p50, p99 = (1000 * answers[int(len(answers) * part)] for part in (0.5, 0.99))
    logging.getLogger(__name__).warning("/api/version: p50 %.0f ms, p99 %.0f ms, connections %d", p50, p99, most)


def test_triggers_share_their_requests(monkeypatch: pytest.MonkeyPatch):
    """Triggers of one connection poll with far fewer requests than one for each job; the last one closes the client."""
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)

    async def follow(head: StandInHead) -> list[dict[str, Any]]:
        followers = asyncio.gather(*(fire(RayJobTrigger(job, "ray", 1.0)) for job in head.jobs))
        await asyncio.sleep(6)
        for job in head.jobs.values():
            job["status"] = "SUCCEEDED"
        events = await followers
        assert not triggers._shared[asyncio.get_running_loop()]
        return events

    with StandInHead() as head:
        monkeypatch.setenv("AIRFLOW_CONN_RAY", head.connection)
        for number in range(60):
            head.add(f"job-{number}", "RUNNING")
        events = asyncio.run(follow(head))

    assert {details_from_event(event).status for event in events} == {JobStatus.SUCCEEDED}
    assert "GET /api/jobs/" in head.requests
    assert len(head.requests) < 60 * 4, "60 triggers with an interval of 1 s for 6 s"


@pytest.mark.parametrize("turns", range(1, 8, 2))
def test_trigger_that_is_cancelled_twice_closes_its_client(monkeypatch: pytest.MonkeyPatch, turns: int):
    """The client is closed even if its last trigger is cancelled again while the watch ends its round."""

    async def cancel(head: StandInHead) -> bool:
        task = asyncio.ensure_future(fire(RayJobTrigger("job-0", "ray", 0.2)))
        assert await asyncio.to_thread(asked.wait, 10)
        [shared] = triggers._shared[asyncio.get_running_loop()].values()
        task.cancel()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        answer.set()
        return shared.client._http.is_closed

    def hang(number: int) -> None:
        asked.set()
        answer.wait(10)

    asked, answer = threading.Event(), threading.Event()
    with StandInHead() as head:
        monkeypatch.setenv("AIRFLOW_CONN_RAY", head.connection)
        head.add("job-0", "RUNNING")
        head.on_poll = hang
        assert asyncio.run(cancel(head))


@pytest.mark.parametrize("limit", ["job_timeout", "execution_timeout"])
def test_time_limit_while_the_head_rests(monkeypatch: pytest.MonkeyPatch, limit: str):
    """An expired time limit is an event in time, although the next round of polls begins much later."""
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)

    async def follow(head: StandInHead) -> dict[str, Any]:
        arguments: dict[str, Any] = {"execution_deadline": time.time() + 1.5}
        if limit == "job_timeout":
            arguments = {"limits": {"job_timeout": 61.0}}  # at the first poll the job is 60 s old
        follower = asyncio.ensure_future(fire(RayJobTrigger("job-0", "ray", 0.3, **arguments)))
        await asyncio.sleep(0.6)
        assert head.polls >= 1
        [shared] = triggers._shared[asyncio.get_running_loop()].values()
        shared.watch._free_at = asyncio.get_running_loop().time() + 30
        head.jobs["job-0"]["start_time"] -= 5_000
        return await asyncio.wait_for(follower, 10)

    with StandInHead() as head:
        monkeypatch.setenv("AIRFLOW_CONN_RAY", head.connection)
        head.add("job-0", "RUNNING", metadata={"submission_nonce": "n"})
        event = asyncio.run(follow(head))

    assert (event["error"], event["limit"]) == ("RayJobTimeoutError", limit)


def test_triggers_of_different_credentials_share_nothing(monkeypatch: pytest.MonkeyPatch):
    """Connections to one head with different credentials, or different names, each poll with their own credentials."""
    monkeypatch.setattr(triggers, "MIN_DEFERRAL", 0.0)

    async def follow(head: StandInHead) -> int:
        await asyncio.gather(*(fire(RayJobTrigger("job-0", name, 0.2)) for name in ("ray_a", "ray_b", "ray_c")))
        return len(head.requests)

    with StandInHead() as head:
        head.add("job-0", "SUCCEEDED")
        for name, password in (("A", "token-one"), ("B", "token-two"), ("C", "token-one")):
            connection = json.loads(head.connection) | {"password": password}
            monkeypatch.setenv(f"AIRFLOW_CONN_RAY_{name}", json.dumps(connection))
        asyncio.run(follow(head))

    assert sorted(head.authorizations) == ["Bearer token-one", "Bearer token-one", "Bearer token-two"]
