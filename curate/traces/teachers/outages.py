"""Whether a teacher answers at all, and what follows from it for a run: go on, pause, or stop.

A run pauses while nothing answers, and goes on when something does. It stops if the teacher rejects everything from the
beginning, or has been silent for too long. It knows no prompt and no answer.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from curate.traces.teachers.protocol import FailureKind
from store.errors import TeacherError

# A run of which the first so many requests are all rejected would have all rejected.
MAX_FIRST_REJECTIONS = 20
# After so many failed requests in a row, one request at a time finds out whether the teacher is back.
OUTAGE_FAILURES = 10
# How often that is tried if the teacher has never answered, and for how long if it has.
MAX_FIRST_PROBES = 2
MAX_OUTAGE_S = 1800.0
MAX_PAUSE_S = 30.0
# How often one request is sent within a run, not counting outages while other prompts have not been asked.
MAX_ASKED = 3
_NAP_S = 0.1


class Outages:
    """Keeps count of failures.

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
        """Within the context one request may be sent. During an outage it waits for its turn, and pauses before it.

        Once all prompts have been asked, none waits for another: each is asked again after a pause, and given up if it
        keeps failing. It is the prompts that fail then, or a run of few prompts that another run can complete.
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
        """Whether there was any answer."""
        return self.answers > 0

    @property
    def lasts(self) -> bool:
        """Whether nothing answers at present."""
        return self._in_a_row >= OUTAGE_FAILURES

    def is_time(self, answers: int) -> bool:
        """Whether to send a request again, rather than a fresh one, that failed when there were so many answers.

        Only once others were answered, or else an outage would use up its tries before it is known to be one. During
        an outage by turns, because either may be what fails: the old request, or the teacher for now.
        """
        return self.answers > answers or (self.lasts and self._probes % 2 == 0)

    def answer(self) -> None:
        """Count an answer: it ends an outage."""
        self.answers += 1
        self._in_a_row = self._probes = 0
        self._last_answer = time.monotonic()

    def may_ask_again(self, trace_id: str, kind: FailureKind) -> bool:
        """Count a failure, and tell whether the same request may be sent again within this run."""
        if kind is not FailureKind.FAILED:
            # The teacher is there; it does not want this request.
            self._rejections += 1
            self._in_a_row = self._probes = 0
            return False
        self._in_a_row += 1
        # While others wait for the end of an outage, it is nobody's fault in particular.
        self._asked[trace_id] += not (self.lasts and self._fresh())
        return self._asked[trace_id] < MAX_ASKED and not self._stopping()

    def check(self, error: str) -> None:
        """Raises TeacherError if it makes no sense to go on. error: the last one, for the message."""
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
        # In naps, because a signal must not wait for the end of a pause.
        while (left := until - time.monotonic()) > 0 and not self._stopping():
            await asyncio.sleep(min(left, _NAP_S))
