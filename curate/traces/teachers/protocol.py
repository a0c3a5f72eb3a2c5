"""What a teacher is: something that answers a re-ranking request with a completion.

The sampler knows teachers by this protocol alone. A teacher never sees the target unless the strategy is targeted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from prompts.tasks import RerankTask


@dataclass(frozen=True, slots=True)
class TeacherRequest:
    """One sample to draw.

    messages: chat messages as sent (`role`, `content`). task: what they show, for teachers that need no words.
    response_schema: JSON schema of the completion. sample_index: 0, 1, ... for repeated samples of one prompt.
    seed: differs for each sample, the same when the same sample is asked again.
    """

    trace_id: str
    messages: tuple[Mapping[str, str], ...]
    task: RerankTask
    response_schema: Mapping[str, Any]
    sample_index: int
    temperature: float
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What came back. Counts and cost are None where the server does not tell.

    finish_reason: "stop", "length" (cut off at `max_tokens`), or what the server said.
    """

    text: str
    finish_reason: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None


class RequestFailedError(Exception):
    """One request failed for good, after the teacher's own retries; the run goes on, the attempt keeps this reason."""


class Teacher(Protocol):
    """Answers requests; many may be under way at once.

    `complete` raises RequestFailedError when this one request failed, TeacherError when none can succeed.
    """

    @property
    def name(self) -> str:
        """Kind of teacher, as stored in traces.teacher."""

    @property
    def model(self) -> str:
        """Which model answers, as stored in traces.model."""

    async def complete(self, request: TeacherRequest) -> Completion:
        """Draw one completion."""

    async def close(self) -> None:
        """Give back connections."""
