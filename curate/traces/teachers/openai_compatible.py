"""A teacher behind any OpenAI-compatible endpoint: a vendor's, or `vllm serve` reached by its URL.

Owns the HTTP client, what is retried, how workers hold back together, and which dialect of the protocol the server
speaks. Knows nothing of what prompts say or of where completions go. Retries are counted here and not by the client
library, because a rate limit concerns all workers: each would otherwise back off alone, and hammer together.

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
from store.errors import TeacherError

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_S = 10.0
# Uvicorn, under vLLM, closes idle connections after 5 s; letting go first avoids writing into one that just closed.
KEEPALIVE_S = 4.0
MESSAGE_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a request is worded for a server that may not know every parameter."""

    response_format: Literal["json_schema", "json_object", "off"]
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    seeded: bool = True


class _TransientError(Exception):
    """This try failed and the next may not. `wait_s`: what the server asked for; `throttled`: it wants fewer of us."""

    def __init__(self, reason: str, *, wait_s: float | None = None, throttled: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.throttled = throttled


class _DialectError(Exception):
    """The server refused the wording; it is to be asked again in the dialect now current."""


class OpenAITeacher:
    """Asks an OpenAI-compatible endpoint; any number of requests may be under way.

    Raises TeacherError where no key is set though one is needed, or where the base URL is no address.
    """

    name = "openai"

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self.model = settings.model
        given_url = settings.base_url or os.environ.get("OPENAI_BASE_URL")
        self._url = _check_url(given_url or OPENAI_URL)
        self._key = os.environ.get(settings.api_key_env, "").strip()
        if not self._key and given_url is None:
            raise TeacherError(
                f"there is no key for {self._url}: set the variable {settings.api_key_env}, or give the base URL of a "
                "server that needs none, such as http://127.0.0.1:8000/v1"
            )
        if not self._key.isascii():
            raise TeacherError(f"{settings.api_key_env} holds characters that no key has; copy the key again")
        structured = settings.structured_output
        self._dialect = Dialect("json_schema" if structured == "auto" else structured)
        self._understood: Dialect | None = None
        self._reached = False
        self._answers = 0
        self._resume_at = 0.0
        limits = httpx2.Limits(
            max_connections=settings.max_connections,
            max_keepalive_connections=settings.max_connections,
            keepalive_expiry=KEEPALIVE_S,
        )
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none",
            base_url=self._url,
            max_retries=0,
            # Waiting for a free connection is no silence of the server.
            timeout=openai.Timeout(settings.timeout_s, connect=min(CONNECT_TIMEOUT_S, settings.timeout_s), pool=None),
            http_client=openai.DefaultAioHttpClient(limits=limits),
        )

    async def complete(self, request: TeacherRequest) -> Completion:
        """Draw one completion, however many tries it takes.

        A refusal has empty text and finish_reason "refusal"; reasoning that the server returns apart stands in front
        as `<think>...</think>`. Raises RequestFailedError after the last try or where the server rejects this request,
        TeacherError where it would reject all.
        """
        failures = 0
        while True:
            await self._wait_for_all()
            dialect, answers = self._dialect, self._answers
            try:
                return await self._ask(request, dialect)
            except _DialectError:
                continue
            except _TransientError as failed:
                # Under a rate limit somebody is always turned away; while others get answers, that is no failure.
                failures += not (failed.throttled and self._answers > answers)
                if failures > self._settings.max_retries:
                    raise RequestFailedError(f"gave up after {failures} tries: {failed}") from failed.__cause__
                wait_s = failed.wait_s or self._backoff_s(failures)
                if failed.throttled:
                    self._resume_at = max(self._resume_at, time.monotonic() + wait_s)
                else:
                    await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Give back connections; the teacher is of no use afterwards."""
        await self._client.close()

    async def _wait_for_all(self) -> None:
        """Wait while the server has asked for a pause; the jitter keeps all workers from coming back at once."""
        while (left_s := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left_s + random.uniform(0, self._settings.backoff_s))

    def _backoff_s(self, failures: int) -> float:
        doubled_s = self._settings.backoff_s * 2.0 ** max(failures - 1, 0)
        return min(doubled_s, self._settings.max_wait_s) * random.uniform(0.5, 1)

    async def _ask(self, request: TeacherRequest, dialect: Dialect) -> Completion:
        try:
            # Raw, because the library's own parsing lets JSON errors and web pages through in shapes of their own.
            response = await self._client.chat.completions.with_raw_response.create(**self._body(request, dialect))
        except openai.APIStatusError as error:
            self._reached = True
            # Not `from error`: it carries the request with the key in its headers, and maybe a text that repeats it.
            raise self._failure(error, dialect) from None
        except (openai.APIConnectionError, aiohttp.ClientError) as error:
            cause = _network_cause(error)
            reason = str(cause) or type(cause).__name__
            if isinstance(cause, aiohttp.ClientConnectorError) and not self._reached:
                raise TeacherError(
                    f"cannot reach the teacher at {self._url}: {reason}; check the base URL, and that the server runs"
                ) from error
            raise _TransientError(reason) from error
        first, self._reached = not self._reached, True
        try:
            completion = read_completion(response.content, self._settings)
        except ValueError as error:
            seen = self._clean(response.text)
            if first and response.content.lstrip().startswith(b"<"):
                raise TeacherError(
                    f"{self._url} answers with a web page ({seen}); check the base URL, which mostly ends in /v1"
                ) from error
            raise _TransientError(f"not a chat completion, {error}: {seen}") from error
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
        """What an HTTP error means: the end of the run, of this request, of this try, or of this dialect."""
        status = error.status_code
        words = f"HTTP {status}: {self._clean(_server_words(error.body))}"
        if error.code == "insufficient_quota" or error.type == "insufficient_quota" or status == 402:
            return TeacherError(f"the account at {self._url} has no credit left ({words}); raise its limit")
        if status in (401, 403):
            name = self._settings.api_key_env
            check = f"check {name}" if self._key else f"no key was sent; set {name}"
            return TeacherError(f"{self._url} refuses the key ({words}); {check}, and that it may use {self.model!r}")
        if status in (404, 405) or error.code == "model_not_found":
            return TeacherError(
                f"{self._url} has no model {self.model!r} ({words}); check the model against {self._url}/models, "
                "and the base URL, which mostly ends in /v1"
            )
        if status in (400, 422):
            return self._refusal(error, dialect, words)
        if status in (408, 409, 429) or status >= 500:
            asked_s = read_retry_after(error.response.headers.get("retry-after"), datetime.now(UTC))
            wait_s = None if asked_s is None else min(asked_s, self._settings.max_wait_s)
            return _TransientError(words, wait_s=wait_s, throttled=status == 429)
        return RequestFailedError(words)

    def _refusal(self, error: openai.APIStatusError, dialect: Dialect, words: str) -> Exception:
        if error.param == "temperature":
            return TeacherError(f"{self.model!r} takes no such temperature ({words}); choose another")
        if dialect != self._dialect:
            return _DialectError()
        # Once a dialect has been understood, a complaint is about this request alone.
        simpler = None if dialect == self._understood else simpler_dialect(dialect, str(error.body))
        if simpler is None:
            return RequestFailedError(words)
        wanted = self._settings.structured_output
        if wanted not in ("auto", simpler.response_format):
            return TeacherError(
                f"{self._url} refuses structured output as {wanted} ({words}); set structured_output to auto"
            )
        self._dialect = simpler
        return _DialectError()

    def _clean(self, text: str) -> str:
        """A server's text in one short line, without mark-up and without the key, which some servers repeat."""
        if self._key:
            text = text.replace(self._key, "[key]")
        text = " ".join(re.sub(r"<[^>]*>", " ", text).split())
        return text if len(text) <= MESSAGE_LENGTH else text[:MESSAGE_LENGTH] + "..."


def simpler_dialect(dialect: Dialect, complaint: str) -> Dialect | None:
    """What to try after a server's complaint; None where it is not about a wording that can be given up.

    Each step gives something up for good, so that no more than four can follow one another.
    """
    if (
        dialect.limit == "max_tokens"
        and "max_completion_tokens" in complaint
        # Servers name both parameters too where the prompt is too long for the model.
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
    """The first choice of a chat completion in JSON. Raises ValueError, saying why, on anything else."""
    answer = json.loads(body)
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("it holds no choices")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("its first choice holds no message")
    text, finish_reason = _text(message.get("content")), _text(choices[0].get("finish_reason"))
    if _text(message.get("refusal")):
        text, finish_reason = "", "refusal"
    elif thought := _text(message.get("reasoning_content")) or _text(message.get("reasoning")):
        text = f"<think>{thought}</think>\n{text}"
    usage = answer.get("usage")
    prompt_tokens, completion_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cost_usd = _cost_usd(prompt_tokens, completion_tokens, settings)
    return Completion(text, finish_reason, prompt_tokens, completion_tokens, cost_usd)


def read_retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or an HTTP date; None where it says neither."""
    if header is None:
        return None
    with suppress(ValueError):
        seconds = float(header)
        return seconds if 0 <= seconds < math.inf else None
    with suppress(ValueError):
        date = parsedate_to_datetime(header)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) else None


def _cost_usd(prompt_tokens: int | None, completion_tokens: int | None, settings: OpenAISettings) -> float | None:
    """A price left out beside one that is given counts as free."""
    prices = (settings.price_per_million_prompt_tokens, settings.price_per_million_completion_tokens)
    if prompt_tokens is None or completion_tokens is None or prices == (None, None):
        return None
    return (prompt_tokens * (prices[0] or 0.0) + completion_tokens * (prices[1] or 0.0)) / 1_000_000


def _check_url(url: str) -> str:
    with suppress(ValueError):
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return url.rstrip("/")
    raise TeacherError(f"the base URL {url!r} is no address; it looks like http://127.0.0.1:8000/v1")


def _network_cause(error: BaseException) -> BaseException:
    """The transport's own error: the client library calls even a refused connection a time-out."""
    while error.__cause__ is not None and not isinstance(error, aiohttp.ClientError):
        error = error.__cause__
    return error


def _server_words(body: object) -> str:
    if isinstance(body, Mapping):
        return str(body.get("message") or body.get("detail") or dict(body))
    return str(body or "")
