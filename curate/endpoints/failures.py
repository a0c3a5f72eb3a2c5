"""Reads the errors that servers report: the status, the message, and the subject of the error.

Servers agree on little: errors are objects, lists, texts or web pages, and some have status 200.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from curate.endpoints.client import Response

_CONTENT = re.compile(
    r"content.{0,3}(filter|polic|management|inspection|exists.risk|violat|blocked|restrict)|moderat|flagged|unsafe|"
    r"\bsafety\b|guardrail|(usage|content|safety|ai|use).{0,3}polic|violat\w*.{0,40}(polic|terms|guideline)|"
    r"(polic|terms|guideline)\w*.{0,40}violat|prohibited|inappropriate|sensitive.(content|word|info)|harmful",
    re.IGNORECASE,
)
_LENGTH = re.compile(
    r"context.{0,3}(length|window|size|limit|exceed)|maximum.(context|prompt|input|sequence)|max_?(model|input|seq)\w*len|"
    r"string_above_max_length|(prompt|input|message|request|content)s?\b.{0,40}(too.(long|large|big)|exceed)|"
    r"too many (input |prompt )?tokens|reduce the (length|size)|(exceed|longer than)\w*.{0,60}(context|token|length)|"
    r"must be <=|entity too large",
    re.IGNORECASE,
)
_COMPLETION_LENGTH = re.compile(
    r"max_?(completion_|new_|output_)?tokens.{0,40}(too (large|big|high)|must be|at most|exceed|greater|larger)",
    re.IGNORECASE,
)
_FORMAT = re.compile(
    r"response.?(format|schema)|json.?schema|json.?object|structured.?output|guided|grammar", re.IGNORECASE
)
_MODEL = re.compile(r"model|deployment", re.IGNORECASE)
_KEY = re.compile(
    r"api.?key|credential|permission|not (authorized|authenticated)|unauthorized|unauthenticated|country|region",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ServerFailure:
    """An error that the server reports.

    status: the HTTP status, or, for an error in a response with status 200 (`in_body`), the status that it corresponds
    to. words: its text, short and without secrets. code, param: "" if unknown. retry_after_s: the wait that the server
    asks for, or None.
    """

    status: int
    words: str
    code: str = ""
    param: str = ""
    retry_after_s: float | None = None
    in_body: bool = False

    @property
    def about(self) -> str:
        """All texts that indicate the subject of the error."""
        return f"{self.code} {self.param} {self.words}"

    @property
    def about_content(self) -> bool:
        """Whether a content filter refused the prompt."""
        return bool(_CONTENT.search(self.about))

    @property
    def about_length(self) -> bool:
        """Whether the prompt is too long for the model."""
        return self.status == 413 or bool(_LENGTH.search(self.about))

    @property
    def about_completion_length(self) -> bool:
        """Whether `max_tokens` is too large, which concerns every request alike."""
        return bool(_COMPLETION_LENGTH.search(self.words))

    @property
    def about_format(self) -> bool:
        """Whether the server does not support the requested structured output."""
        return bool(_FORMAT.search(self.about))

    @property
    def about_key(self) -> bool:
        """Whether the key lacks a permission."""
        return bool(_KEY.search(self.about))

    def is_about_model(self, model: str) -> bool:
        """Whether the server does not know the model, rather than the address.

        model: its name, because some messages only repeat the name.
        """
        return bool(_MODEL.search(self.about) or re.search(rf"(?<!\w){re.escape(model)}(?!\w)", self.words))

    @property
    def about_credit(self) -> bool:
        """Whether the account is empty. OpenAI reports this as a rate limit."""
        return self.status == 402 or self.code == "insufficient_quota"

    @property
    def signature(self) -> str:
        """The failure without the parts that differ from request to request."""
        return f"{self.status} {re.sub(r'[0-9a-f-]{16,}|[0-9]+', '#', self.words)[:100]}"

    def __str__(self) -> str:
        return f"an error in place of an answer: {self.words}" if self.in_body else f"HTTP {self.status}: {self.words}"


def read_failure(response: Response, excerpt: Callable[[str], str]) -> ServerFailure | None:
    """The error in a response, or None if it contains none. excerpt: makes a server's text short and safe to show."""
    text = response.body.decode(errors="replace")
    answer: Any = None
    with suppress(ValueError, RecursionError):
        answer = json.loads(text)
    # Gemini wraps its errors in a list.
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping):
        answer = answer[0]
    details = answer if isinstance(answer, Mapping) else {}
    error = details.get("error")
    is_error = bool(error) and not details.get("choices") and not details.get("data")
    if 200 <= response.status < 300 and not is_error:
        return None
    fields = error if isinstance(error, Mapping) else details
    redirect = response.headers.get("location", "") if 300 <= response.status < 400 else ""
    words = excerpt(redirect or _words(error if isinstance(error, str) else fields) or text)
    # If `code` is missing or only repeats the status, `type` contains the class of the error.
    code = next((value for value in (fields.get("code"), fields.get("type")) if isinstance(value, str)), "")
    param = fields.get("param")
    return ServerFailure(
        response.status if response.status >= 300 else _status_in(fields, code),
        words,
        "insufficient_quota" if "insufficient_quota" in (fields.get("code"), fields.get("type")) else code[:100],
        param[:100] if isinstance(param, str) else "",
        read_retry_after(response.headers.get("retry-after"), datetime.now(UTC)),
        in_body=response.status < 300,
    )


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
    with suppress(ValueError, OverflowError):
        date = parsedate_to_datetime(header)
        # A date in "-0000" has no zone, and means UTC.
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    return None


def _words(value: Any) -> str:
    """The message in an error. Not the whole error, because it may repeat the request."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "; ".join(filter(None, map(_words, value[:5])))
    if not isinstance(value, Mapping):
        return ""
    # FastAPI reports the place of the error in the request's body.
    where = value.get("loc")
    place = ".".join(map(str, where)) + ": " if isinstance(where, list) else ""
    for name in ("message", "msg", "detail", "error", "errors", "title", "reason"):
        if words := _words(value.get(name)):
            return place + words
    return ""


def _status_in(fields: Mapping[str, Any], code: str) -> int:
    """The status that corresponds to an error in a response with HTTP status 200."""
    for value in (fields.get("code"), fields.get("status"), fields.get("status_code")):
        with suppress(ValueError, TypeError, OverflowError):
            if 400 <= int(value) < 600:  # type: ignore[arg-type]
                return int(value)  # type: ignore[arg-type]
    if re.search(r"rate.?limit|throttl|overload", code, re.IGNORECASE):
        return 429
    # Any other error may be temporary.
    return 400 if re.search(r"invalid|not.?found|bad.?request|unsupported", code, re.IGNORECASE) else 502
