"""OAuth's client credentials, for an ingress that wants them."""

# START oauth
import time
from collections.abc import AsyncGenerator, Generator

import httpx

Requests = Generator[httpx.Request, httpx.Response, None]
AsyncRequests = AsyncGenerator[httpx.Request, httpx.Response]


class ClientCredentials(httpx.Auth):
    """Get an access token, and use it until a minute before it expires."""

    def __init__(self, token_url: str, client_id: str, client_secret: str) -> None:
        self.login = httpx.Request(
            "POST",
            token_url,
            data={
                "grant_type": "client_credentials",
                "client_id": client_id,
                "client_secret": client_secret,
            },
        )
        self.token = ""
        self.good_until = 0.0

    # a worker uses this one, the triggerer the other
    def sync_auth_flow(self, request: httpx.Request) -> Requests:
        if time.time() > self.good_until:
            response = yield self.login
            response.read()
            self.keep_token(response)
        request.headers["Authorization"] = f"Bearer {self.token}"
        yield request

    async def async_auth_flow(self, request: httpx.Request) -> AsyncRequests:
        if time.time() > self.good_until:
            response = yield self.login
            await response.aread()
            self.keep_token(response)
        request.headers["Authorization"] = f"Bearer {self.token}"
        yield request

    def keep_token(self, response: httpx.Response) -> None:
        response.raise_for_status()
        answer = response.json()
        self.token = answer["access_token"]
        self.good_until = time.time() + answer["expires_in"] - 60


# END oauth
