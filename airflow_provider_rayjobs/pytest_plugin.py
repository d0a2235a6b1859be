"""The pytest fixture ``fake_ray``. pytest loads this module by its entry point; it imports nothing until it is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from airflow_provider_rayjobs.testing import FakeRay


@pytest.fixture
def fake_ray() -> Iterator[FakeRay]:
    """A Ray cluster in memory, to which all requests of the Ray operators and sensors go."""
    from airflow_provider_rayjobs.testing import FakeRay  # noqa: PLC0415

    with FakeRay() as fake:
        yield fake
