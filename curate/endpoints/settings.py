"""Settings of an endpoint. This module does not import the libraries that an endpoint needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store.errors import InputError
from store.settings import check, option


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSettings:
    """The address of an endpoint, the user's identification there, and limits for waiting.

    base_url: None means the variable OPENAI_BASE_URL, or OpenAI itself if that is not set. api_key_env: the environment
    variable that holds the key; None means OPENAI_API_KEY, whose key is sent only to OpenAI and to the host of
    OPENAI_BASE_URL. headers: sent with each request; a value such as $NAME is read from that environment variable.
    timeout_s: the longest silence of the server; a response that keeps coming may take twice as long in total.
    max_retries: further tries of a request after the first one. backoff_s: the first wait between tries, doubled each
    time. max_wait_s: the longest wait, even if the server asks for more.
    """

    base_url: str | None = option(
        None,
        help="Base URL of the endpoint, such as http://127.0.0.1:8000/v1. Default: the variable OPENAI_BASE_URL, or "
        "OpenAI.",
        group="Endpoint",
    )
    api_key_env: str | None = option(
        None,
        help="Environment variable that contains the key. Default: OPENAI_API_KEY, whose key is sent only to OpenAI "
        "and to the host in OPENAI_BASE_URL.",
        group="Endpoint",
    )
    headers: Mapping[str, str] | None = option(
        None,
        help="HTTP headers of each request, as a JSON object. A value $NAME is read from that environment variable.",
        group="Endpoint",
    )
    timeout_s: float = option(
        600.0,
        help="Maximum time without data from the server, in seconds. A response that keeps coming may take twice as "
        "long.",
        low=0.001,
        group="Endpoint",
        flag="timeout",
    )
    max_retries: int = option(
        6,
        help="Maximum number of retries of a request that failed because of the network, the server or a rate limit.",
        low=0,
        group="Endpoint",
    )
    backoff_s: float = 1.0
    max_wait_s: float = 60.0

    def __post_init__(self) -> None:
        check(self)
        check_object("headers", self.headers, is_secret=True)


def check_object(name: str, value: Any, *, is_secret: bool = False) -> None:
    """Raise InputError unless the value of the field `name` is a mapping with texts as keys, or None.

    is_secret: whether the message must not repeat the value.
    """
    if value is not None and not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        shown = type(value).__name__ if is_secret else repr(value)
        raise InputError(f"`{name}` is {shown}; it must be a JSON object")
