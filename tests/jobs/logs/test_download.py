"""Downloading a log: what a read brings, byte for byte."""

from __future__ import annotations

from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.download import LogCopy


@given(pieces=st.lists(st.binary(max_size=50)), interrupted=st.lists(st.binary(max_size=50)))
def test_a_copy_holds_the_last_read_alone(pieces: list[bytes], interrupted: list[bytes]) -> None:
    """A read that broke off leaves nothing in the file, and a copy has no records to show."""
    file = BytesIO()
    log = LogCopy(file)
    shown: list[str] = []

    for data in (interrupted, pieces):
        log.begin()
        for piece in data:
            shown += log.feed(piece)
    shown += log.flush()

    assert file.getvalue() == b"".join(pieces)
    assert shown == []
