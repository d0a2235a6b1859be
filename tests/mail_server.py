"""A mail server for tests: it takes every mail over SMTP and keeps it."""

from __future__ import annotations

import socketserver
from email import message_from_bytes, policy
from email.message import EmailMessage

from stand_in_head import ServerThread


class MailServer(ServerThread):
    """
    Takes mails on a free port. Use it as a context manager.

    :ivar mails: the mails so far.
    """

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        mails = self.mails

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"220 ready\r\n")
                for line in self.rfile:
                    match line.split()[0].upper():
                        case b"DATA":
                            self.wfile.write(b"354 go on\r\n")
                            lines = iter(self.rfile.readline, b".\r\n")
                            content = b"".join(each.removeprefix(b".") for each in lines)
                            mails.append(message_from_bytes(content, policy=policy.default))  # type: ignore[arg-type]
                            self.wfile.write(b"250 taken\r\n")
                        case b"QUIT":
                            self.wfile.write(b"221 bye\r\n")
                            return
                        case _:
                            self.wfile.write(b"250 ok\r\n")

        server = self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.port: int = server.server_address[1]
