"""A real nginx as reverse proxy of a Ray head, with free ports and a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sandbox.processes import Program, free_port

# Debian installs nginx in a folder that is only in root's PATH.
NGINX_BINARY = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


class Nginx:
    """
    An nginx process; a context manager.

    :param servers: the ``server`` blocks, see :class:`Server`.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nginx-"))
        self._servers = servers
        self._program: Program | None = None

    def __enter__(self) -> Self:
        if NGINX_BINARY is None:
            raise RuntimeError("nginx is not installed")
        config = self.folder / "nginx.conf"
        config.write_text(self._config())
        try:
            self._program = Program(
                [NGINX_BINARY, "-p", str(self.folder), "-c", str(config), "-e", "stderr"],
                dict(os.environ),
                self.folder / "output.log",
            )
            self._program.wait_until(self._is_listening, "nginx", timeout=20)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop nginx and remove its folder."""
        if self._program is not None:
            self._program.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _is_listening(self) -> bool:
        for server in self._servers:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", server.port)):
                    return False
        return True

    def _config(self) -> str:
        temp_paths = "\n".join(
            f"{kind}_temp_path {self.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""  # other users cannot read the folder
        return (
            f"{user}\ndaemon off;\nworker_processes 1;\npid {self.folder}/nginx.pid;\nevents {{}}\nhttp {{\n"
            f"access_log off;\n{temp_paths}\n"
            f"{''.join(server.block for server in self._servers)}}}\n"
        )


class Server:
    """
    One ``server`` block of an nginx.

    :param directives: of the block, without ``listen``.
    :param tls: whether the server speaks TLS.
    """

    def __init__(self, directives: str, *, tls: bool = True) -> None:
        self.port = free_port()
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.block = f"server {{\nlisten 127.0.0.1:{self.port}{' ssl' if tls else ''};\n{directives}\n}}\n"

    @classmethod
    def from_block(cls, block: str) -> Self:
        """Return the server of a whole block, which listens to port 443 with TLS, with a free port in its place."""
        server = cls("")
        server.block = block.replace("listen 443 ssl;", f"listen 127.0.0.1:{server.port} ssl;")
        return server
