"""Addresses of endpoints, and the key that each of them gets.

A key goes only where it was meant. OPENAI_API_KEY is for OpenAI, and for the host that OPENAI_BASE_URL names. Any other
host gets a key only if the settings name a variable for it.
"""

import os
import re
from base64 import b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from curate.endpoints.secrets import Secrets
from curate.endpoints.settings import EndpointSettings
from store.errors import InputError, TeacherError

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
# A URL has no blanks and no control characters.
_URL = re.compile(r"[!-~\u00a1-\U0010ffff]+")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,40}")
_SECRET_NAME = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address with the headers that identify the user there.

    shown: the address without credentials and query, for messages. host: its host and port. key_hint: the end of a
    sentence about a refused key, which says which key was sent and what to do.
    """

    shown: str
    host: str
    headers: Mapping[str, str]
    secrets: Secrets
    key_hint: str
    _parts: SplitResult

    def url(self, path: str) -> str:
        """The address of `path`, such as "chat/completions"."""
        return urlunsplit(self._parts._replace(path=f"{self._parts.path.rstrip('/')}/{path}"))


def find_endpoint(settings: EndpointSettings) -> Endpoint:
    """The endpoint of the settings, with its key from the environment.

    Raises TeacherError if the base URL is not a valid address, or if OpenAI's key or a named key is not set. Raises
    InputError on a header that cannot be sent.
    """
    by_environment = os.environ.get("OPENAI_BASE_URL") or None
    given = settings.base_url or by_environment
    parts = _split(given or OPENAI_URL)
    name = settings.api_key_env or OPENAI_KEY
    key = os.environ.get(name, "").strip()
    # HTTP headers carry ASCII, and keys have no blanks.
    if not (key.isascii() and key.isprintable()):
        raise TeacherError(f"{name} contains characters that no key has; copy the key again")
    # The key must not be shown, even if it is not sent.
    secrets = [
        key,
        parts.password or "",
        *(value for name, value in parse_qsl(parts.query) if _SECRET_NAME.search(name)),
    ]
    shown = urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), "", ""))
    if not key and (given is None or settings.api_key_env):
        # The name is not shown if it may be the key itself, given in the place of its variable.
        variable = f"variable {name}" if _VARIABLE.fullmatch(name) else "variable that `api_key_env` names"
        raise TeacherError(
            f"there is no key for {shown}: set the {variable}, or pass the base URL of a "
            "server that needs no key, such as http://127.0.0.1:8000/v1"
        )
    is_meant = bool(settings.api_key_env) or _is_openai(parts) or _same_host(parts, by_environment)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if parts.username is not None:
        # Credentials in the address are there on purpose, so they replace a key.
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        headers["Authorization"] = f"Basic {b64encode(login).decode()}"
        secrets += [headers["Authorization"].removeprefix("Basic "), unquote(parts.password or "")]
    elif key and is_meant:
        headers["Authorization"] = f"Bearer {key}"
    for header, value in (settings.headers or {}).items():
        headers[header] = _header_value(header, value)
        if _SECRET_NAME.search(header):
            secrets += [headers[header], *headers[header].split()]
    clean = parts._replace(netloc=_host(parts), fragment="")
    hint = _key_hint(settings, name, shown, has_key=bool(key), is_sent="Authorization" in headers)
    return Endpoint(shown, _host(parts), headers, Secrets(secrets), hint, clean)


def _key_hint(settings: EndpointSettings, name: str, shown: str, *, has_key: bool, is_sent: bool) -> str:
    if is_sent:
        return f"check {name}"
    if not has_key:
        elsewhere = "" if settings.base_url is None else f" and pass `api_key_env` {name}"
        return f"no key was sent; set {name}{elsewhere}"
    return (
        f"no key was sent, because {name} is meant for OpenAI or the host of OPENAI_BASE_URL; to send it to {shown}, "
        f"pass `api_key_env` {name}"
    )


def _split(url: str) -> SplitResult:
    with suppress(ValueError):
        parts = urlsplit(url.strip())
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and _URL.fullmatch(url.strip()):
            return parts
    # The address is not repeated if it may contain a password.
    shown = repr(url) if "@" not in url else "that was given"
    raise TeacherError(f"the base URL {shown} is not a valid address; use one such as http://127.0.0.1:8000/v1")


def _host(parts: SplitResult) -> str:
    """Host and port as they were written, without credentials."""
    return parts.netloc.rpartition("@")[2]


def _is_openai(parts: SplitResult) -> bool:
    host = (parts.hostname or "").rstrip(".")
    # OpenAI's regions have hosts such as eu.api.openai.com. Without TLS, anybody on the way could read the key.
    return parts.scheme == "https" and f".{host}".endswith(".api.openai.com")


def _same_host(parts: SplitResult, by_environment: str | None) -> bool:
    if by_environment is None:
        return False
    meant = _split(by_environment)
    return (parts.scheme, parts.hostname, parts.port) == (meant.scheme, meant.hostname, meant.port)


def _header_value(header: str, value: object) -> str:
    if isinstance(value, str) and value.startswith("$"):
        value = os.environ.get(value[1:])
        if value is None:
            raise InputError(f"`headers` reads {header!r} from an environment variable that is not set")
    # The value is not shown, because it may be a key.
    if not (isinstance(value, str) and value.isascii() and value.isprintable()):
        raise InputError(f"`headers` has a value of {header!r} that is not printable ASCII text")
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", header):
        raise InputError(f"`headers` has {header!r}, which is not a valid name of an HTTP header")
    return value.strip()
