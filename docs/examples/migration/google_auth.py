"""Authenticate at the dashboard of a Ray cluster on Vertex AI."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import Any

import google.auth
import httpx
from google.auth.transport.requests import Request


# START class
class VertexAuth(httpx.Auth):
    """Send a token of Application Default Credentials, as Google's own client for these clusters does."""

    def __init__(self) -> None:
        self.credentials: Any = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])[0]

    def authorize(self, request: httpx.Request) -> None:
        if not self.credentials.valid:
            self.credentials.refresh(Request())
        request.headers["Authorization"] = f"Bearer {self.credentials.token}"

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        self.authorize(request)
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        await asyncio.to_thread(self.authorize, request)  # a refresh must not block the triggerer
        yield request


# END class
