"""Authenticate at the dashboard of a Ray cluster on Vertex AI."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Any

import google.auth
import httpx
from google.auth.transport.requests import Request

# START class
SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
Flow = Generator[httpx.Request, httpx.Response, None]
AsyncFlow = AsyncGenerator[httpx.Request, httpx.Response]


class VertexAuth(httpx.Auth):
    """Send a token of Application Default Credentials."""

    def __init__(self) -> None:
        self.credentials: Any = google.auth.default(scopes=SCOPES)[0]

    def authorize(self, request: httpx.Request) -> None:
        if not self.credentials.valid:
            self.credentials.refresh(Request())
        request.headers["Authorization"] = f"Bearer {self.credentials.token}"

    def sync_auth_flow(self, request: httpx.Request) -> Flow:
        self.authorize(request)
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncFlow:
        # A refresh must not block the event loop of the triggerer.
        await asyncio.to_thread(self.authorize, request)
        yield request


# END class
