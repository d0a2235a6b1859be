"""Downloads of a log, byte for byte."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rayjobs.jobs.logs.download import LogCopy, whole_file


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


def test_two_downloads_to_one_path(tmp_path: Path) -> None:
    """Each of two downloads at the same time replaces the file by its own whole log."""
    path = tmp_path / "job.log"
    with whole_file(path) as second:
        with whole_file(path) as first:
            second.write(b"second")
            first.write(b"1")
        assert path.read_bytes() == b"1"

    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]
