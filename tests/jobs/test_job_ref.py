"""Which job is meant: what is compared, and what is stored."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs import JobDetails, JobStatus, JobType
from airflow_provider_rayjobs.jobs.job_ref import JobRef
from airflow_provider_rayjobs.jobs.submission import NONCE

ID = JobRef("http://head:8265", "a")
WHOLE = JobRef("http://head:8265", "a", "session_1", "ours", 1000)
DETAILS = JobDetails(
    JobType.SUBMISSION, JobStatus.RUNNING, submission_id="a", start_time=1000, metadata={NONCE: "ours", "team": "b"}
)
NO_NONCE = replace(DETAILS, metadata={"team": "b"})


@pytest.mark.parametrize("job", [ID, WHOLE], ids=["id", "whole"])
def test_reference_survives_json(job: JobRef) -> None:
    """A reference is the same after a round trip through JSON."""
    assert JobRef.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_stored_reference_has_stable_keys() -> None:
    """The stored form is part of triggers, events and records, so its keys never change."""
    assert WHOLE.to_json() == {
        "address": "http://head:8265",
        "submission_id": "a",
        "session": "session_1",
        "nonce": "ours",
        "start_time": 1000,
    }


@given(unknown=st.dictionaries(st.text().filter(lambda key: key not in asdict(ID)), st.none() | st.text()))
def test_keys_of_later_versions_are_ignored(unknown: dict[str, Any]) -> None:
    """Keys of later versions are ignored, and missing keys of earlier versions are unknown parts."""
    assert JobRef.from_json({**unknown, **WHOLE.to_json()}) == WHOLE
    assert JobRef.from_json({**unknown, "address": ID.address, "submission_id": "a"}) == ID


@pytest.mark.parametrize(
    ("job", "details", "is_same"),
    [
        pytest.param(ID, DETAILS, True, id="nothing to compare"),
        pytest.param(WHOLE, DETAILS, True, id="all equal"),
        pytest.param(WHOLE, NO_NONCE, False, id="no nonce"),
        pytest.param(WHOLE, replace(DETAILS, metadata={NONCE: "theirs"}), False, id="another nonce"),
        pytest.param(WHOLE, replace(DETAILS, start_time=2000), True, id="the nonce alone decides"),
        pytest.param(replace(WHOLE, nonce=None), DETAILS, True, id="same start time"),
        pytest.param(replace(WHOLE, nonce=None), NO_NONCE, True, id="same start time, no nonce"),
        pytest.param(replace(WHOLE, nonce=None), replace(DETAILS, start_time=1001), False, id="another start time"),
        pytest.param(replace(WHOLE, nonce=None), replace(DETAILS, start_time=None), False, id="no start time"),
    ],
)
def test_nonce_or_start_time_tells_the_same_job(job: JobRef, details: JobDetails, is_same: bool) -> None:
    """The nonce tells whether an answer is about the same job, and without one the start time."""
    assert job.is_same(details) is is_same


@pytest.mark.parametrize(
    ("job", "session", "is_in"),
    [
        (WHOLE, "session_1", True),
        (WHOLE, "session_2", False),
        (WHOLE, None, False),
        (ID, "session_1", True),
        (ID, None, True),
    ],
)
def test_job_is_in_its_session_only(job: JobRef, session: str | None, is_in: bool) -> None:
    """A job is in its Ray session, and may be in any session if its own is unknown."""
    assert job.is_in(session) is is_in


def test_answer_completes_a_reference() -> None:
    """The first answer adds the nonce and the start time, and the caller may add the session."""
    assert ID.seen(DETAILS) == replace(WHOLE, session=None)
    assert ID.seen(DETAILS, "session_1") == WHOLE
    assert ID.seen(NO_NONCE) == replace(ID, start_time=1000)


def test_known_parts_do_not_change() -> None:
    """What is known of a job stays as it is, whatever a later answer says."""
    later = replace(DETAILS, start_time=2000, metadata={NONCE: "theirs"})

    assert WHOLE.seen(later, "session_2") == WHOLE


@given(
    seen=st.builds(lambda time, nonce: replace(DETAILS, start_time=time, metadata={NONCE: nonce} if nonce else {}),
                   st.none() | st.integers(1), st.none() | st.just("ours")),
    job=st.sampled_from([ID, replace(ID, session="session_1")]),
)  # fmt: skip
def test_reference_is_the_same_as_what_completed_it(seen: JobDetails, job: JobRef) -> None:
    """A reference that an answer has completed is about the job of that answer."""
    completed = job.seen(seen)

    assert completed.is_same(seen)
    assert completed.seen(seen) == completed
    assert all(getattr(job, each.name) in (None, getattr(completed, each.name)) for each in fields(job))
