"""Sends one HTTP request to an endpoint, and returns the response within limits of size and time.

OpenAI's client library sends the request through gr2's own transport. Without it, the library would read a body of any
length and send one key to every host. Requests are not repeated here. Redirects are not followed, because they could
carry a key to another host.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
import httpx2
import openai
from aiohttp.helpers import get_env_proxy_for_url
from yarl import URL

from curate.endpoints.addresses import find_endpoint
from curate.endpoints.settings import EndpointSettings
from store.values import storable_text

CONNECT_TIMEOUT_S = 10.0
# Uvicorn, which vLLM runs on, closes idle connections after 5 s. Closing them first avoids writing to a dead one.
KEEPALIVE_S = 4.0
# The longest response to a chat request, in bytes after decompression.
MAX_BYTES = 8 * 2**20
# The longest excerpt of a server's text in an error message, in characters.
MESSAGE_LENGTH = 300
# Headers about the bytes on the wire, which are no longer true once the body is decompressed.
_OF_THE_WIRE = ("content-encoding", "content-length", "transfer-encoding")


class Response(NamedTuple):
    """A response with any status. The names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TransportError(Exception):
    """No complete response was received.

    unreachable: there is no server at the address. costly: the server has probably worked on the request, so that a
    repeated request would be paid for again.
    """

    def __init__(self, reason: str, *, unreachable: bool = False, costly: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable
        self.costly = costly


class EndpointClient:
    """Sends JSON to an endpoint, over at most `max_connections` connections.

    max_bytes: the longest response, after decompression. Raises the errors of `find_endpoint`.
    """

    def __init__(self, settings: EndpointSettings, *, max_connections: int = 1, max_bytes: int = MAX_BYTES) -> None:
        self.endpoint = find_endpoint(settings)
        self.timeout_s = settings.timeout_s
        self.connect_timeout_s = min(CONNECT_TIMEOUT_S, settings.timeout_s)
        self.max_bytes = max_bytes
        # This is not a limit of the pool, because the deadline of a request must not run while it waits for a
        # connection.
        self._room = asyncio.Semaphore(max_connections)
        # Made at the first request, because connections belong to the event loop that is running.
        self._openai: openai.AsyncOpenAI | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        """Send a JSON object. Raises TransportError if no complete response comes."""
        payload = json.dumps(body).encode()
        async with self._room:
            try:
                async with asyncio.timeout(2 * self.timeout_s):
                    return await self._send(self.endpoint.url(path), payload)
            except TimeoutError as error:
                # aiohttp's own time-outs are of this class too.
                if isinstance(error, aiohttp.ConnectionTimeoutError):
                    raise TransportError(f"no connection within {self.connect_timeout_s:g} s") from None
                # aiohttp's is of a silent server, and the other one is of a server that is too slow altogether.
                is_silent = isinstance(error, aiohttp.ServerTimeoutError)
                message = (
                    f"nothing came for {self.timeout_s:g} s"
                    if is_silent
                    else f"no complete answer within {2 * self.timeout_s:g} s"
                )
                raise TransportError(message, costly=True) from None
            # The event loop itself raises OSError. ValueError: headers or names that cannot be read.
            except (aiohttp.ClientError, OSError, ValueError) as error:
                # Not `from error`, because the error may contain headers with a key.
                unreachable = isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL)
                raise TransportError(
                    self.excerpt(str(error)) or type(error).__name__, unreachable=unreachable
                ) from None

    async def close(self) -> None:
        """Close all connections."""
        if self._openai is not None:
            await self._openai.close()

    def excerpt(self, text: str) -> str:
        """A server's text as one short, storable line, without markup and secrets."""
        # No message needs more text, and a page may be long.
        text = re.sub(r"<[^>]*>", " ", self.mask(text[: 100 * MESSAGE_LENGTH]))
        # Masked again, because markup may have split a key.
        text = self.mask(" ".join(storable_text(text).split()))
        return text if len(text) <= MESSAGE_LENGTH else text[:MESSAGE_LENGTH] + "..."

    def mask(self, text: str) -> str:
        """The text without keys and parts of keys."""
        return self.endpoint.secrets.mask(text)

    async def _send(self, url: str, payload: bytes) -> Response:
        if self._openai is None:
            self._openai = openai.AsyncOpenAI(
                # The library insists on a key. The transport sends the endpoint's own headers.
                api_key="unused",
                base_url=self.endpoint.shown,
                max_retries=0,
                timeout=None,
                http_client=httpx2.AsyncClient(transport=_Transport(self)),
            )
        try:
            response = await self._openai.post(url, cast_to=httpx2.Response, content=payload)
        except openai.APIStatusError as error:
            response = error.response
        except openai.APIConnectionError as error:
            raise error.__cause__ or error from None
        return Response(response.status_code, dict(response.headers), response.content)


class _Transport(httpx2.AsyncBaseTransport):
    """Sends the library's requests with aiohttp, within the limits of an `EndpointClient` and with its headers."""

    def __init__(self, client: EndpointClient) -> None:
        self._client = client
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            # Some gateways send long headers.
            max_line_size=65_536,
            max_field_size=65_536,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """The response with its whole body, decompressed. Raises TransportError and the errors of aiohttp."""
        client, url = self._client, URL(str(request.url), encoded=True)
        async with self._session.post(
            url,
            data=request.content,
            headers=client.endpoint.headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=client.connect_timeout_s, sock_read=client.timeout_s
            ),
            **_proxy_for(url),
        ) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > client.max_bytes:
                    start = client.excerpt(body[: 20 * MESSAGE_LENGTH].decode(errors="replace"))
                    raise TransportError(
                        f"the response is longer than {client.max_bytes / 2**20:g} MB: {start}", costly=True
                    )
            headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _OF_THE_WIRE]
            return httpx2.Response(response.status, headers=headers, content=bytes(body), request=request)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._session.close()


def _proxy_for(url: URL) -> dict[str, Any]:
    """The proxy for an address, from the environment.

    aiohttp's `trust_env` is not used, because it would also read passwords from ~/.netrc.
    """
    try:
        proxy, login = get_env_proxy_for_url(url)
    except LookupError:
        return {}
    return {"proxy": proxy, "proxy_auth": login}
