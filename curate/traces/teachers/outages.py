"""Tracks whether a teacher answers at all, and decides whether a run goes on, pauses or stops.

A run pauses while no request is answered, and goes on with the first answer. It stops if the teacher rejects everything
from the beginning, or has been silent for too long. This module knows neither prompts nor answers.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from curate.traces.teachers.protocol import FailureKind
from store.errors import TeacherError

# If this many first requests are all rejected, the others would probably be rejected too.
MAX_FIRST_REJECTIONS = 20
# After this many failed requests in a row, one request at a time finds out whether the teacher is back.
OUTAGE_FAILURES = 10
# The number of such probes if the teacher has never answered, and the length of an outage if it has.
MAX_FIRST_PROBES = 2
MAX_OUTAGE_S = 1800.0
MAX_PAUSE_S = 30.0
# How often one request is sent within a run. Tries during an outage do not count while other prompts are still unasked.
MAX_ASKED = 3
_NAP_S = 0.1


class Outages:
    """Counts failures and detects outages.

    stopping: whether the run is to end; pauses end with it. fresh: whether any prompt has not been asked yet.
    """

    def __init__(self, stopping: Callable[[], bool], fresh: Callable[[], bool]) -> None:
        self.answers = 0
        self._stopping = stopping
        self._fresh = fresh
        self._in_a_row = 0
        self._probes = 0
        self._rejections = 0
        self._asked: Counter[str] = Counter()
        self._last_answer = time.monotonic()
        self._probing = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Allow one request within the context.

        During an outage, requests wait for their turn, and pause before they are sent. Once all prompts have been
        asked, no request waits for another. Each is sent again after a pause, and given up if it keeps failing. In that
        case the prompts themselves fail, or the run has so few prompts that another run can complete it.
        """
        if self.lasts and self._fresh():
            async with self._probing:
                if self.lasts and self._fresh():
                    await self._pause()
                    yield
                    return
        if self.lasts:
            await self._pause()
        yield

    @property
    def answered(self) -> bool:
        """Whether the teacher has answered any request."""
        return self.answers > 0

    @property
    def lasts(self) -> bool:
        """Whether an outage lasts: the last OUTAGE_FAILURES requests all failed."""
        return self._in_a_row >= OUTAGE_FAILURES

    def is_time(self, answers: int) -> bool:
        """Whether to send a failed request again, rather than a fresh one.

        answers: the number of answers when it failed. A failed request is sent again only once other requests were
        answered. Otherwise an outage would use up its tries before the outage is detected. During an outage, old and
        fresh requests take turns, because either the old request or the teacher may be at fault.
        """
        return self.answers > answers or (self.lasts and self._probes % 2 == 0)

    def answer(self) -> None:
        """Count an answer, which ends an outage."""
        self.answers += 1
        self._in_a_row = self._probes = 0
        self._last_answer = time.monotonic()

    def may_ask_again(self, trace_id: str, kind: FailureKind) -> bool:
        """Count a failure. Returns whether the same request may be sent again within this run."""
        if kind is not FailureKind.FAILED:
            # The teacher works, but rejects this request.
            self._rejections += 1
            self._in_a_row = self._probes = 0
            return False
        self._in_a_row += 1
        # While other prompts wait for the end of an outage, the failure does not count against this request.
        self._asked[trace_id] += not (self.lasts and self._fresh())
        return self._asked[trace_id] < MAX_ASKED and not self._stopping()

    def check(self, error: str) -> None:
        """Raise TeacherError if the run cannot succeed. error: the last error, for the message."""
        if not self.answered and self._rejections >= MAX_FIRST_REJECTIONS:
            raise TeacherError(f"the teacher rejected the first {MAX_FIRST_REJECTIONS} requests; it says: {error}")
        if not self.answered and self._probes >= MAX_FIRST_PROBES:
            raise TeacherError(f"the teacher has answered nothing so far; the last error: {error}")
        silent_s = time.monotonic() - self._last_answer
        if self.lasts and silent_s > MAX_OUTAGE_S:
            raise TeacherError(
                f"the teacher has answered nothing for {silent_s / 60:.0f} minutes; the last error: {error}. Run the "
                "same command again to continue"
            )

    async def _pause(self) -> None:
        until = time.monotonic() + min(2.0**self._probes, MAX_PAUSE_S)
        self._probes += 1
        # The pause consists of short naps, because a signal must not wait for its end.
        while (left := until - time.monotonic()) > 0 and not self._stopping():
            await asyncio.sleep(min(left, _NAP_S))
