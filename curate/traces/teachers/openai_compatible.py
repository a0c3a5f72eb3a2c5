"""A teacher behind any OpenAI-compatible endpoint: a vendor's API, or the URL of a `vllm serve`.

Owns the HTTP client, the retries, the pause that all workers share, and the dialect of the protocol that the server
understands. Knows nothing of the contents of prompts or of what happens to completions. Retries are counted here and
not in the client library, because a rate limit concerns all workers: if each backed off alone, the rest would go on
sending requests.

Source: the chat completions API of OpenAI (status codes, `response_format`, `max_completion_tokens`) and vLLM's
departures from it (`reasoning_content`, `reasoning`).
"""

import asyncio
import json
import math
import os
import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai

from curate.traces.teachers.protocol import Completion, RequestFailedError, TeacherRequest
from curate.traces.teachers.settings import OpenAISettings
from store.errors import InputError, TeacherError

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_S = 10.0
# Uvicorn, which vLLM runs on, closes idle connections after 5 s. Closing them first avoids writing to a dead one.
KEEPALIVE_S = 4.0
# The longest excerpt of a server's text in an error message, in characters.
MESSAGE_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Dialect:
    """The parameters of a request, for servers that do not know all of them.

    limit: the name of the parameter for the maximum number of tokens. seeded: whether a seed is sent.
    """

    response_format: Literal["json_schema", "json_object", "off"]
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seeded: bool = True


class _TransientError(Exception):
    """This try failed, but the next may succeed.

    wait_s: the wait that the server asked for, or None. throttled: whether the server limits the rate of requests.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None, throttled: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.throttled = throttled


class _DialectError(Exception):
    """The server refused the dialect, which has been replaced since; send the request again."""


class OpenAITeacher:
    """A teacher that sends its requests to an OpenAI-compatible endpoint, any number of them at a time.

    Raises TeacherError if a key is needed but not set, or if the base URL is not a valid address.
    """

    name = "openai"

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self.model = settings.model
        custom_url = settings.base_url or os.environ.get("OPENAI_BASE_URL")
        self._url = _check_url(custom_url or OPENAI_URL)
        self._key = os.environ.get(settings.api_key_env, "").strip()
        # Only OpenAI itself surely needs a key. A local server mostly needs none.
        if not self._key and custom_url is None:
            raise TeacherError(
                f"there is no key for {self._url}: set the variable {settings.api_key_env}, or pass the base URL of a "
                "server that needs no key, such as http://127.0.0.1:8000/v1"
            )
        # HTTP headers carry ASCII, and the client library would fail with an encoding error at each request.
        if not self._key.isascii():
            raise TeacherError(f"{settings.api_key_env} holds characters that no key has; copy the key again")
        structured = settings.structured_output
        self._dialect = Dialect("json_schema" if structured == "auto" else structured)
        # The dialect of the last answer.
        self._understood: Dialect | None = None
        self._reached = False
        self._answers = 0
        # No worker sends a request before this time of time.monotonic().
        self._resume_at = 0.0
        limits = httpx2.Limits(
            max_connections=settings.max_connections,
            max_keepalive_connections=settings.max_connections,
            keepalive_expiry=KEEPALIVE_S,
        )
        self._client = openai.AsyncOpenAI(
            # The library insists on a key, also for servers that need none.
            api_key=self._key or "none",
            base_url=self._url,
            max_retries=0,
            # pool=None: waiting for a free connection says nothing about the server.
            timeout=openai.Timeout(settings.timeout_s, connect=min(CONNECT_TIMEOUT_S, settings.timeout_s), pool=None),
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )

    async def complete(self, request: TeacherRequest) -> Completion:
        """Draw one completion, with retries.

        A refusal has an empty text and the finish_reason "refusal". Reasoning that the server returns in a field of its
        own is put in front of the text as `<think>...</think>`.

        Raises RequestFailedError after the last retry or if the server rejects this request, and TeacherError if it
        would reject all requests.
        """
        failures = 0
        while True:
            await self._wait_for_all()
            # As they were when the request went out: other workers may change both before its answer comes.
            dialect, answers = self._dialect, self._answers
            try:
                return await self._ask(request, dialect)
            except _DialectError:
                continue
            except _TransientError as error:
                # Under a rate limit some request is always rejected. It counts as a failure only if nobody got answers.
                failures += not (error.throttled and self._answers > answers)
                if failures > self._settings.max_retries:
                    raise RequestFailedError(f"gave up after {failures} tries: {error}") from error.__cause__
                wait_s = error.wait_s or self._backoff_s(failures)
                if error.throttled:
                    # A rate limit stops all workers, any other failure only this one.
                    self._resume_at = max(self._resume_at, time.monotonic() + wait_s)
                else:
                    await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Close all connections. The teacher cannot be used afterwards."""
        await self._client.close()

    async def _wait_for_all(self) -> None:
        """Wait until the shared pause is over. The jitter keeps the workers from all returning at the same moment."""
        # A loop, because another worker may have been told to wait longer in the meantime.
        while (left_s := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left_s + random.uniform(0, self._settings.backoff_s))

    def _backoff_s(self, failures: int) -> float:
        # max(), because a throttled try may come here with no failure counted.
        doubled_s = self._settings.backoff_s * 2.0 ** max(failures - 1, 0)
        return min(doubled_s, self._settings.max_wait_s) * random.uniform(0.5, 1)

    async def _ask(self, request: TeacherRequest, dialect: Dialect) -> Completion:
        try:
            # Raw, because the library's parsing does not raise on broken JSON or web pages, but returns other objects.
            response = await self._client.chat.completions.with_raw_response.create(**self._body(request, dialect))
        except openai.APIStatusError as error:
            self._reached = True
            # Not `from error`: that holds the request with the key in its headers, and its text may repeat the key.
            raise self._failure(error, dialect) from None
        except (openai.APIConnectionError, aiohttp.ClientError) as error:
            cause = _network_cause(error)
            reason = str(cause) or type(cause).__name__
            # Before the first answer this is probably a wrong URL. Later, the server may just be restarting.
            if isinstance(cause, aiohttp.ClientConnectorError) and not self._reached:
                raise TeacherError(
                    f"cannot reach the teacher at {self._url}: {reason}; check the base URL and that the server is "
                    "running"
                ) from error
            raise _TransientError(reason) from error
        first, self._reached = not self._reached, True
        try:
            completion = read_completion(response.content, self._settings)
        except ValueError as error:
            excerpt = self._clean(response.text)
            # As a first answer, a web page means a wrong URL. Later it may come from a proxy in trouble.
            if first and response.content.lstrip().startswith(b"<"):
                raise TeacherError(
                    f"{self._url} answers with a web page ({excerpt}); check the base URL, which usually ends in /v1"
                ) from error
            raise _TransientError(f"not a chat completion, {error}: {excerpt}") from error
        self._answers += 1
        self._understood = dialect
        return completion

    def _body(self, request: TeacherRequest, dialect: Dialect) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "temperature": request.temperature,
            dialect.limit: request.max_tokens,
            "extra_body": dict(self._settings.extra_body),
        }
        if dialect.seeded:
            body["seed"] = request.seed
        if dialect.response_format == "json_schema":
            schema = {"name": "rerank", "strict": True, "schema": dict(request.response_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif dialect.response_format == "json_object":
            body["response_format"] = {"type": "json_object"}
        return body

    def _failure(self, error: openai.APIStatusError, dialect: Dialect) -> Exception:
        """The exception for an HTTP error: it ends the run, this request, this try, or the use of this dialect."""
        status = error.status_code
        words = f"HTTP {status}: {self._clean(_server_words(error.body))}"
        # First, because OpenAI reports an empty account as status 429, and retries cannot help.
        if error.code == "insufficient_quota" or error.type == "insufficient_quota" or status == 402:
            return TeacherError(f"the account at {self._url} has no credit left ({words}); raise its limit")
        if status in (401, 403):
            name = self._settings.api_key_env
            check = f"check {name}" if self._key else f"no key was sent; set {name}"
            return TeacherError(
                f"{self._url} refuses the key ({words}); {check}, and check that the key may use {self.model!r}"
            )
        if status in (404, 405) or error.code == "model_not_found":
            return TeacherError(
                f"{self._url} has no model {self.model!r} ({words}); check the model against {self._url}/models, and "
                "the base URL, which usually ends in /v1"
            )
        if status in (400, 422):
            return self._refusal(error, dialect, words)
        if status in (408, 409, 429) or status >= 500:
            retry_after_s = read_retry_after(error.response.headers.get("retry-after"), datetime.now(UTC))
            wait_s = None if retry_after_s is None else min(retry_after_s, self._settings.max_wait_s)
            return _TransientError(words, wait_s=wait_s, throttled=status == 429)
        return RequestFailedError(words)

    def _refusal(self, error: openai.APIStatusError, dialect: Dialect, words: str) -> Exception:
        if error.param == "temperature":
            return TeacherError(f"{self.model!r} does not accept this temperature ({words}); choose another one")
        # Another worker has already changed the dialect for the same reason.
        if dialect != self._dialect:
            return _DialectError()
        # If the server has understood this dialect before, it complains about this request alone.
        simpler = None if dialect == self._understood else simpler_dialect(dialect, str(error.body))
        if simpler is None:
            return RequestFailedError(words)
        structured_output = self._settings.structured_output
        # An explicit setting is a requirement: falling back would mix traces of two kinds without a word.
        if structured_output not in ("auto", simpler.response_format):
            return TeacherError(
                f"{self._url} refuses structured output as {structured_output} ({words}); set structured_output to auto"
            )
        self._dialect = simpler
        return _DialectError()

    def _clean(self, text: str) -> str:
        """A server's text as one short line, without markup and without the key, which some servers repeat."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
        return text if len(text) <= MESSAGE_LENGTH else text[:MESSAGE_LENGTH] + "..."


def make_openai_teacher(
    model: str,
    base_url: str | None = None,
    price_per_million_prompt_tokens: float | None = None,
    price_per_million_completion_tokens: float | None = None,
    extra_body: Mapping[str, Any] | None = None,
) -> OpenAITeacher:
    """A teacher with those settings that a user chooses. Raises what OpenAITeacher raises."""
    if not isinstance(extra_body or {}, Mapping):
        raise InputError(f"`extra_body` is {extra_body!r}; it must be a JSON object")
    return OpenAITeacher(
        OpenAISettings(
            model=model,
            base_url=base_url,
            price_per_million_prompt_tokens=price_per_million_prompt_tokens,
            price_per_million_completion_tokens=price_per_million_completion_tokens,
            extra_body=extra_body or {},
        )
    )


def simpler_dialect(dialect: Dialect, complaint: str) -> Dialect | None:
    """The dialect to try after a server's complaint, or None if the complaint is about something else.

    Each step drops one feature for good, so at most four steps can follow one another.
    """
    if (
        dialect.limit == "max_tokens"
        and "max_completion_tokens" in complaint
        # Servers also name both parameters when a prompt is too long for the model.
        and re.search(r"unsupported|not supported|instead", complaint, re.IGNORECASE)
    ):
        return replace(dialect, limit="max_completion_tokens")
    if dialect.seeded and re.search(r"[\"']seed[\"']", complaint):
        return replace(dialect, seeded=False)
    about_format = r"response_format|json.?schema|json.?object|structured.?output|guided|grammar"
    if dialect.response_format != "off" and re.search(about_format, complaint, re.IGNORECASE):
        return replace(dialect, response_format="json_object" if dialect.response_format == "json_schema" else "off")
    return None


def read_completion(body: bytes, settings: OpenAISettings) -> Completion:
    """Parse the first choice of a chat completion in JSON.

    settings: its prices give the cost. Raises ValueError, with the reason, on anything but a chat completion.
    """
    answer = json.loads(body)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("it holds no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("its first choice holds no message")
    text, finish_reason = _text(message.get("content")), _text(choices[0].get("finish_reason"))
    if _text(message.get("refusal")):
        # A refusal is stored as a completion, so that a rule can name it. As an error it would be requested again.
        text, finish_reason = "", "refusal"
    elif thought := _text(message.get("reasoning_content")) or _text(message.get("reasoning")):
        text = f"<think>{thought}</think>\n{text}"
    usage = answer.get("usage")
    prompt_tokens, completion_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cost_usd = _cost_usd(prompt_tokens, completion_tokens, settings)
    return Completion(text, finish_reason, prompt_tokens, completion_tokens, cost_usd)


def read_retry_after(header: str | None, now: datetime) -> float | None:
    """The seconds to wait according to a Retry-After header, which is a number of seconds or an HTTP date.

    Returns None if there is no header, or if it is neither of the two.
    """
    if header is None:
        return None
    with suppress(ValueError):
        seconds = float(header)
        # float() also reads "nan" and "inf", which nobody can wait for.
        return seconds if 0 <= seconds < math.inf else None
    with suppress(ValueError):
        date = parsedate_to_datetime(header)
        # A date in "-0000" has no zone, and means UTC.
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None


def _cost_usd(prompt_tokens: int | None, completion_tokens: int | None, settings: OpenAISettings) -> float | None:
    """The cost of a request in US dollars, or None without prices or counts. One missing price counts as 0."""
    prices = (settings.price_per_million_prompt_tokens, settings.price_per_million_completion_tokens)
    if prompt_tokens is None or completion_tokens is None or prices == (None, None):
        return None
    return (prompt_tokens * (prices[0] or 0.0) + completion_tokens * (prices[1] or 0.0)) / 1_000_000


def _check_url(url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url.rstrip("/")
    raise TeacherError(f"the base URL {url!r} is not a valid address; use one such as http://127.0.0.1:8000/v1")


def _network_cause(error: BaseException) -> BaseException:
    """The error of the transport itself. The client library reports even a refused connection as a time-out."""
    while error.__cause__ is not None and not isinstance(error, aiohttp.ClientError):
        error = error.__cause__
    return error


def _server_words(body: object) -> str:
    if isinstance(body, Mapping):
        return str(body.get("message") or body.get("detail") or dict(body))
    return str(body or "")
