"""The trace browser's server: Streamlit, behind a check of the host that a request names.

A foreign web page can send requests to this machine under a host name that its owner resolves to 127.0.0.1 (DNS
rebinding). The web browser then takes the answers for that page's own. Such requests name the wrong host, and are
refused.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocketClose
from streamlit.starlette import App

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
# Host names with commas between them, set by gr2 app.
HOSTS_VARIABLE = "GR2_ALLOWED_HOSTS"


class AllowedHosts:
    """Refuses requests and WebSockets for a host that is not local, configured, or the address that they came to."""

    def __init__(self, app: Any, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = LOCAL_HOSTS | hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        # If the server listens on all addresses, the address of this connection is allowed like the configured one.
        server = scope.get("server") or ("",)
        host = host_of(named[0]) if len(named) == 1 else None
        if host is not None and (host in self._hosts or host == server[0]):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            # Closing a WebSocket before its handshake answers 403.
            await WebSocketClose(reason="host not allowed")(scope, receive, send)
        else:
            text = (
                f"The host {named[0][:100] if named else ''!r} is not allowed here. Open the address that gr2 app "
                "printed, or start gr2 app with --allowed-hosts NAME.\n"
            )
            await PlainTextResponse(text, 403)(scope, receive, send)


def host_of(header: str) -> str | None:
    """Return the host of a Host header in lower case, without its port. None if the header is not a valid host.

    >>> host_of("Example.org.:8501"), host_of("[::1]:8501"), host_of("a@b")
    ('example.org', '::1', None)
    """
    try:
        parts = urlsplit(f"//{header}")
        # An invalid port raises ValueError here.
        _ = parts.port
    except ValueError:
        return None
    if parts.netloc != header or "@" in header:
        return None
    return (parts.hostname or "").rstrip(".") or None


def allowed_hosts() -> frozenset[str]:
    """The configured hosts."""
    return frozenset(filter(None, os.environ.get(HOSTS_VARIABLE, "").split(",")))


app = App(
    Path(__file__).with_name("main.py"),
    middleware=[Middleware(AllowedHosts, hosts=allowed_hosts())],
)
