"""The protocol of a teacher, which answers a re-ranking request with a completion.

The sampler knows teachers by this protocol alone. A teacher never sees the target unless the strategy is targeted.
Completions and failures are the boundary to the store: whatever a teacher puts into them can be stored.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from prompts.tasks import RerankTask
from store.values import storable_text

# The columns of the store are signed 32-bit integers.
MAX_COUNT = 2**31 - 1
# The maximum lengths in characters. No useful answer is as long.
MAX_TEXT = 1_000_000
MAX_FINISH_REASON = 100
MAX_ERROR = 1_000


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One sample to draw.

    messages: chat messages as sent (`role`, `content`). task: the task that the messages show, for teachers that need
    no words. response_schema: JSON schema of the completion. sample_index: 0, 1, ... for repeated samples of one
    prompt. seed: differs between samples, and stays the same when a sample is requested again. list_id: the candidate
    list, for teachers that have learned from other lists; empty if the list is not in the store.
    """

    trace_id: str
    messages: tuple[Mapping[str, str], ...]
    task: RerankTask
    response_schema: Mapping[str, Any]
    sample_index: int
    temperature: float
    max_tokens: int
    seed: int
    list_id: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer of a teacher.

    Counts and cost are None if the server does not report them, or reports impossible values.

    finish_reason: "stop", "length" (cut off at `max_tokens`), or another reason of the server. Texts are made storable
    and cut at MAX_TEXT and MAX_FINISH_REASON characters. A count is a whole number from 0 to MAX_COUNT. A cost is
    finite and from 0 to MAX_COUNT.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None

    def __post_init__(self) -> None:
        checked = {
            "text": _text(self.text, MAX_TEXT),
            "finish_reason": _text(self.finish_reason, MAX_FINISH_REASON),
            "prompt_tokens": read_count(self.prompt_tokens),
            "completion_tokens": read_count(self.completion_tokens),
            "cost_usd": _cost(self.cost_usd),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


class FailureKind(StrEnum):
    """The meaning of a failed request for its prompt, as stored in traces.error_kind."""

    # The network, the server or the teacher's patience failed. The same request may succeed at any time.
    FAILED = "failed"
    # The server rejects this request. Another run may send it again.
    REJECTED = "rejected"
    # A moderation refuses the prompt, or the prompt is too long for the model. No later run sends it again.
    MODERATED = "moderated"
    TOO_LONG = "too_long"


# After failures of these kinds, a prompt is not sent again.
FOR_GOOD = (FailureKind.MODERATED, FailureKind.TOO_LONG)


class RequestFailedError(Exception):
    """One request failed after the teacher's own retries. The run goes on, and the attempt keeps this reason."""

    def __init__(self, reason: str, kind: FailureKind = FailureKind.FAILED) -> None:
        super().__init__(_text(reason, MAX_ERROR) or "the request failed")
        self.kind = kind


def commonest_errors(errors: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the three most frequent errors with their counts. Errors that differ only in numbers count as one.

    >>> commonest_errors({"HTTP 500: request 1": 1, "HTTP 500: request 2": 3, "timeout": 2})
    [('HTTP 500: request 1', 4), ('timeout', 2)]
    """
    counts: Counter[str] = Counter()
    example: dict[str, str] = {}
    for error, count in errors.items():
        kind = re.sub(r"\d+", "#", error)
        counts[kind] += count
        example.setdefault(kind, error)
    return [(example[kind], count) for kind, count in counts.most_common(3)]


class Teacher(Protocol):
    """Answers requests, any number of them at the same time.

    `complete` raises RequestFailedError if this one request failed, and TeacherError if no request can succeed.
    """

    @property
    def name(self) -> str:
        """The kind of teacher, as stored in traces.teacher."""

    @property
    def model(self) -> str:
        """The model that answers, as stored in traces.model."""

    async def complete(self, request: TeacherRequest) -> Completion:
        """Draw one completion."""

    async def close(self) -> None:
        """Close all connections."""


def read_count(value: Any) -> int | None:
    """Return a number of tokens: a whole number from 0 to MAX_COUNT, or None for any other value.

    >>> [read_count(value) for value in (12, 12.0, -1, 2**31, True, "12", float("nan"))]
    [12, 12, None, None, None, None, None]
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # The range is checked before the conversion, which fails for infinity.
    return int(value) if 0 <= value <= MAX_COUNT and value == int(value) else None


def _cost(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # An integer may be too large for a float.
    return float(value) if 0 <= value <= MAX_COUNT and math.isfinite(value) else None


def _text(value: Any, length: int) -> str:
    return storable_text(value[:length]) if isinstance(value, str) else ""
