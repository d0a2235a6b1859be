"""
A secrets backend that can be switched off.

The processes of Airflow import this module, as the folder is on their PYTHONPATH.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from airflow.secrets import BaseSecretsBackend

# While this file exists, no connection can be read.
OFF = "connections-off"
CONNECTIONS = "connections.json"


class FileSecretsBackend(BaseSecretsBackend):
    """Reads connections from a JSON file in the folder CHAOS_DIR."""

    def get_conn_value(self, conn_id: str) -> str | None:
        folder = Path(os.environ["CHAOS_DIR"])
        if (folder / OFF).exists():
            raise ConnectionError("the secrets backend does not answer")
        fields = json.loads((folder / CONNECTIONS).read_text()).get(conn_id)
        return json.dumps(fields) if fields else None
