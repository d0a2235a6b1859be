"""The simulated Airflow is 3.3: it has a task state store."""

from __future__ import annotations

from airflow import __version__ as airflow_version
from packaging.version import Version

collect_ignore = ["test_simulation.py", "test_shared_watch.py"] if Version(airflow_version).release < (3, 3) else []
