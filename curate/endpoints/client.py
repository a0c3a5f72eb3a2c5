"""One HTTP request to an endpoint, and the bytes that come back, within limits of size and time.

Owns the connections. Knows nothing of what requests mean, and tries nothing again. Redirects are not followed, because
they could carry a key to another host.
"""

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
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


class Response(NamedTuple):
    """What came back, whatever its status. The names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class TransportError(Exception):
    """No complete response came.

    unreachable: there is no server at the address. costly: the server has probably worked on
    the request, and asking again would be paid again.
    """

    def __init__(self, reason: str, *, unreachable: bool = False, costly: bool = False) -> None:
        super().__init__(reason)
        self.unreachable = unreachable
        self.costly = costly


class EndpointClient:
    """Sends JSON to an endpoint, over at most `max_connections` connections.

    max_bytes: the longest response, after decompression. Raises what `find_endpoint` raises.
    """

    def __init__(self, settings: EndpointSettings, *, max_connections: int = 1, max_bytes: int = MAX_BYTES) -> None:
        self.endpoint = find_endpoint(settings)
        self._timeout_s = settings.timeout_s
        self._connect_timeout_s = min(CONNECT_TIMEOUT_S, settings.timeout_s)
        self._max_bytes = max_bytes
        # Not a limit of the pool: the deadline of a request must not run while it waits for a connection.
        self._room = asyncio.Semaphore(max_connections)
        # Made at the first request, because a session belongs to the event loop that is running.
        self._session: aiohttp.ClientSession | None = None

    async def post(self, path: str, body: Mapping[str, Any]) -> Response:
        """Send a JSON object. Raises TransportError if no complete response comes."""
        payload = json.dumps(body).encode()
        async with self._room:
            try:
                async with asyncio.timeout(2 * self._timeout_s):
                    return await self._post(URL(self.endpoint.url(path), encoded=True), payload)
            except TimeoutError as error:
                # aiohttp's own time-outs are of this class too.
                if isinstance(error, aiohttp.ConnectionTimeoutError):
                    raise TransportError(f"no connection within {self._connect_timeout_s:g} s") from None
                raise TransportError(f"no complete answer within {self._timeout_s:g} s", costly=True) from None
            # OSError: what the event loop raises by itself. ValueError: headers or names that cannot be read.
            except (aiohttp.ClientError, OSError, ValueError) as error:
                # Not `from error`: it may hold headers with a key.
                unreachable = isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL)
                raise TransportError(
                    self.excerpt(str(error)) or type(error).__name__, unreachable=unreachable
                ) from None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def excerpt(self, text: str) -> str:
        """A server's text as one short, storable line, without markup and secrets."""
        # No message needs more, and a page may be long.
        text = re.sub(r"<[^>]*>", " ", self.mask(text[: 100 * MESSAGE_LENGTH]))
        # Again, because a key may have been broken by markup.
        text = self.mask(" ".join(storable_text(text).split()))
        return text if len(text) <= MESSAGE_LENGTH else text[:MESSAGE_LENGTH] + "..."

    def mask(self, text: str) -> str:
        """The text without keys and parts of keys."""
        return self.endpoint.secrets.mask(text)

    async def _post(self, url: URL, payload: bytes) -> Response:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Some gateways send long headers.
                max_line_size=65_536,
                max_field_size=65_536,
            )
        async with self._session.post(
            url,
            data=payload,
            headers=self.endpoint.headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_s, sock_read=self._timeout_s),
            **_proxy_for(url),
        ) as response:
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > self._max_bytes:
                    start = self.excerpt(body[: 20 * MESSAGE_LENGTH].decode(errors="replace"))
                    raise TransportError(
                        f"the response is longer than {self._max_bytes / 2**20:g} MB: {start}", costly=True
                    )
            headers = {name.lower(): value for name, value in response.headers.items()}
            return Response(response.status, headers, bytes(body))


def _proxy_for(url: URL) -> dict[str, Any]:
    """The proxy of the environment for an address. aiohttp's `trust_env` would read passwords from ~/.netrc as well."""
    try:
        proxy, login = get_env_proxy_for_url(url)
    except LookupError:
        return {}
    return {"proxy": proxy, "proxy_auth": login}
