"""The trace writer of a run: each answer is journalled at once, and stored a little later.

The journal is the buffer. Answers keep arriving while the store is busy. If they no longer fit in memory, they are read
from the journal again. If the disk is full, or the store is damaged, the run must end (`failure`), but the answers of
requests under way are still kept.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from curate.traces.recording import Batch, Journalled, JudgedTrace, Stored, commit_batch, read_batch
from store import Store, StoreBusyError, StoreError
from store.journals import JournalWriter

# How long a run with all of its answers waits for a busy store. After that, the next run stores them.
LAST_WAIT_S = 600.0
_NAP_S = 0.05
# The maximum size, in bytes, of the answers that are kept in memory, because single answers may be long.
_MOST_BYTES = 256 * 1024 * 1024


class TraceWriter:
    """Journals and stores the answers of one run. Its methods must be called from one event loop.

    commit_seconds, commit_traces: a batch is committed when either is reached. max_pending: the number of traces kept
    in memory; the others are read from the journal again. waiting: the number of answers that are not in the store yet.
    stored: the number of stored traces. rejected: the number of traces that the store refused. busy: whether the store
    was in use at the last attempt to store. failure: why the run must end, or None.

    Raises StoreError if the journal cannot be created.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        rules: Sequence[str],
        *,
        commit_seconds: float,
        commit_traces: int,
        max_pending: int,
    ) -> None:
        self.waiting = self.stored = self.rejected = 0
        self.busy = False
        self.failure: StoreError | None = None
        self.path = store.journals / f"{run_id}.jsonl"
        self.store = store
        self._rules = rules
        self._commit_seconds, self._commit_traces, self._max_pending = commit_seconds, commit_traces, max_pending
        self._journal = JournalWriter(self.path)
        self._pending: list[Journalled] = []
        # Answers that did not fit into the journal. They are only in memory.
        self._unjournalled: list[Journalled] = []
        # The offset after the last committed answer. If the pending answers no longer fit in memory, the later ones are
        # only in the journal.
        self._committed = 0
        self._overflows = False

    def announce(self, trace_id: str) -> bool:
        """Journal that a request is about to be sent. Returns False, and sets `failure`, if it must not be sent."""
        # After a crash, the journal then tells which requests may have been billed.
        return self._append({"event": "sent", "trace_id": trace_id}) and self.failure is None

    def keep(self, record: dict[str, Any], judge: Callable[[dict[str, Any]], JudgedTrace]) -> JudgedTrace:
        """Journal the record of an answer, judge it, and have it stored.

        Sets `failure` if it does not fit into the journal.
        """
        is_journalled = self._append(record)
        self.waiting += 1
        try:
            trace = judge(record)
        except Exception:
            # A broken rule ends the run. The answer is read again from the journal and stored without this rule's
            # verdict.
            self._overflows = True
            raise
        answer = Journalled(trace, record, self._journal.end)
        if not is_journalled:
            self._unjournalled.append(answer)
        elif not self._overflows:
            self._pending.append(answer)
            size = self._journal.end - self._committed
            self._overflows = len(self._pending) >= self._max_pending or size >= _MOST_BYTES
        return trace

    async def commit_regularly(self, is_over: Callable[[], bool]) -> None:
        """Commit batches until `is_over` returns True. `finish` commits the rest."""
        until = time.perf_counter() + self._commit_seconds
        # Short naps, because one long sleep would delay the end of every run.
        while not is_over():
            # A busy or full store is left alone for a while, however many answers wait.
            is_full = len(self._pending) >= self._commit_traces and not (self.busy or self.failure)
            if is_full or time.perf_counter() >= until:
                await self.commit()
                until = time.perf_counter() + self._commit_seconds
            else:
                await asyncio.sleep(_NAP_S)

    async def commit(self) -> None:
        """Store the waiting answers. Sets `busy` if the store is in use, and `failure` if it cannot be written."""
        try:
            if self._pending:
                await self._commit_pending()
            while self._overflows and not self._pending:
                await self._catch_up()
            if self._unjournalled:
                await self._commit_unjournalled()
            self.busy = False
        except StoreBusyError:
            self.busy = True
        except StoreError as error:
            self.fail(error)

    async def finish(self, must_hurry: Callable[[], bool]) -> None:
        """Store the rest. While the store is busy, try again for LAST_WAIT_S, or once if `must_hurry` returns True."""
        until = time.monotonic() + LAST_WAIT_S
        await self.commit()
        while self.busy and not must_hurry() and time.monotonic() < until:
            await asyncio.sleep(_NAP_S)
            await self.commit()

    def end(self, status: str) -> None:
        """Record how the run ended. If the store is in use, the next run records it."""
        with suppress(StoreError):
            if not (self.busy or self.failure):
                with self.store.writing() as session:
                    session.execute("end_run", run_id=self.path.stem, status=status)
                return
        with suppress(StoreError):
            self._journal.append({"event": "ended", "status": status})

    def close(self) -> None:
        """Release the journal. The next run then recovers the answers that are not stored."""
        # All records are written. If the disk fails only now, `failure` reports it.
        try:
            self._journal.close()
        except StoreError as error:
            self.fail(error)

    def abandon(self) -> None:
        """Release and remove the journal of a run that could not begin."""
        self.close()
        self.path.unlink(missing_ok=True)

    def describe_waiting(self) -> str:
        """Describe where the answers are that could not be stored, for an error message."""
        lost = len(self._unjournalled)
        journalled = f"{self.waiting - lost:,} answers wait in {self.path}, and the next gr2 trace stores them"
        return journalled + (f"; {lost:,} answers are lost, because the journal had no room for them" if lost else "")

    def _append(self, record: dict[str, Any]) -> bool:
        try:
            self._journal.append(record)
        except StoreError as error:
            self.fail(error)
            return False
        if self._journal.full is not None:
            self.fail(StoreError(self._journal.full))
        return True

    def fail(self, error: StoreError) -> None:
        """End the run because of an error. No new request is sent, and those under way are awaited."""
        # The first error is the cause, and later ones are its consequences.
        self.failure = self.failure or error

    async def _commit_pending(self) -> None:
        batch = Batch(self._pending[-1].end, self._pending)
        self._pending = []
        try:
            await self._commit(batch)
        except BaseException:
            # A later batch must not advance the offset past this one, so put it back in front.
            self._pending = batch.traces + self._pending
            raise

    async def _catch_up(self) -> None:
        """Store the next answers that are only in the journal."""
        end = self._journal.end
        batch = await asyncio.to_thread(read_batch, self.store, self.path, self._committed, self._rules, stop=end)
        if batch.end > self._committed:
            await self._commit(batch)
        # There is no await before this line, so the next answer goes to memory only if no earlier one waits in the
        # journal.
        self._overflows = self._committed < self._journal.end

    async def _commit_unjournalled(self) -> None:
        batch = Batch(self._committed, list(self._unjournalled))
        await self._commit(batch)
        self._unjournalled = self._unjournalled[len(batch.traces) :]

    async def _commit(self, batch: Batch) -> None:
        stored: Stored = await asyncio.to_thread(commit_batch, self.store, self.path, batch)
        self._committed = batch.end
        self.waiting -= len(batch.traces) + len(batch.rejections)
        self.stored += stored.inserted
        self.rejected += stored.rejected
