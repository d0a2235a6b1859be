"""A real nginx before a real Ray head: its own configuration, free ports, a temporary folder, ended by process id."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sandbox.processes import Program, free_port

# Debian puts it where the PATH of people who are not root does not lead.
BINARY = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


class Nginx:
    """
    One nginx; a context manager.

    :param servers: the ``server`` blocks, see :class:`Server`.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nginx-"))
        self._servers = servers
        self._program: Program | None = None

    def __enter__(self) -> Self:
        if BINARY is None:
            raise RuntimeError("nginx is not installed")
        config = self.folder / "nginx.conf"
        config.write_text(self._config())
        try:
            self._program = Program(
                [BINARY, "-p", str(self.folder), "-c", str(config), "-e", "stderr"],
                dict(os.environ),
                self.folder / "output.log",
            )
            self._program.wait_until(self._listens, "nginx", timeout=20)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop it and remove its folder."""
        if self._program is not None:
            self._program.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def log(self) -> str:
        """What it has logged: a line for each request with its ``Authorization`` headers, for the tests to see."""
        return (self.folder / "access.log").read_text()

    def _listens(self) -> bool:
        for each in self._servers:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", each.port)):
                    return False
        return True

    def _config(self) -> str:
        temporary = "\n".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""  # its workers would not be let into the folder
        return (
            f"{user}\ndaemon off;\nworker_processes 1;\npid {self.folder}/nginx.pid;\nevents {{}}\nhttp {{\n"
            'log_format seen \'$server_port $request_method $request_uri $status "$http_authorization" '
            '"$http_x_ray_authorization"\';\n'
            f"access_log {self.folder}/access.log seen;\n{temporary}\n"
            f"{''.join(each.block for each in self._servers)}}}\n"
        )


class Server:
    """
    One server of an nginx.

    :param inside: the directives of its block, but for ``listen``.
    :param tls: whether it speaks TLS.
    """

    def __init__(self, inside: str, *, tls: bool = True) -> None:
        self.port = free_port()
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.block = f"server {{\nlisten 127.0.0.1:{self.port}{' ssl' if tls else ''};\n{inside}\n}}\n"
