"""Downloads of a log, byte for byte."""

from __future__ import annotations

from io import BytesIO

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.download import LogCopy


@given(pieces=st.lists(st.binary(max_size=50)), interrupted=st.lists(st.binary(max_size=50)))
def test_copy_contains_only_the_last_read(pieces: list[bytes], interrupted: list[bytes]) -> None:
    """An interrupted read leaves no bytes in the file, and a copy yields no records."""
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
