"""Samples traces from a teacher, with a bounded number of workers, a journal, and batches committed to the store.

Each worker takes one prompt at a time and samples it until enough answers are accepted or no attempt is left, so no
superfluous answer is paid for. Every attempt is kept. A failed request uses up no attempt: it is sent again a few times
within the run, and by later runs, unless the prompt is refused for good. Generation never waits for the database: a
response goes to the journal when it arrives, and a background task (`curate.traces.writer`) commits batches. The next
run recovers the journal of a killed run (`curate.traces.recording`).
"""

import asyncio
import secrets
import signal
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson
import polars as pl

from curate.traces.planning import (
    PROMPT_BATCH,
    OpenPrompt,
    Plan,
    PromptTable,
    find_open_lists,
    open_prompts,
    plan_sampling,
)
from curate.traces.recording import JudgedTrace, Recovery, judge_record, recover
from curate.traces.settings import REQUESTS, RequestSettings, SamplingSettings
from curate.traces.teachers.outages import Outages
from curate.traces.teachers.protocol import (
    FOR_GOOD,
    Completion,
    FailureKind,
    RequestFailedError,
    Teacher,
    TeacherRequest,
)
from curate.traces.writer import TraceWriter
from store import Store, StoreBusyError, StoreError
from store.values import storable_text, utc_now

# A batch is committed when either of these is reached.
COMMIT_SECONDS = 3.0
COMMIT_TRACES = 2_000
# Above this number, traces stay in the journal alone until they are stored, so that a busy store cannot fill the
# memory.
MAX_PENDING_TRACES = 20_000


@dataclass(slots=True)
class Progress:
    """The progress of a run. All counts are of this run alone.

    lists: candidate lists of the plan. prompts: prompts that needed samples when the run began. done: how many of these
    prompts are finished. stored: traces committed to the store. waiting: answers that are only in the journal so far.
    busy: whether answers wait because others use the store. rejected: traces that the store refuses. cost_usd: None
    until the teacher reports a cost. recovered: earlier runs whose journals were committed first. refused: prompts that
    no later run sends again. errors: how often requests failed, by error. unparsed: how often an answer could not be
    read, by reason. paused: whether the run waits because the teacher answers nothing.
    """

    run_id: str
    lists: int
    prompts: int
    done: int = 0
    attempts: int = 0
    failed: int = 0
    refused: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    unparsed: Counter[str] = field(default_factory=Counter)
    parsed: int = 0
    accepted: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    stored: int = 0
    waiting: int = 0
    busy: bool = False
    rejected: int = 0
    stopping: bool = False
    paused: bool = False
    recovered: list[Recovery] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def count(self, judged: JudgedTrace, *, accepted: bool) -> None:
        """Add one attempt to the counts."""
        row = judged.row
        self.attempts += 1
        if row["error"] is not None:
            self.failed += 1
            self.refused += row["error_kind"] in FOR_GOOD
            self.errors[row["error"]] += 1
        elif row["ranking"] is None:
            self.unparsed[next((str(verdict.reason) for verdict in judged.verdicts), "not judged")] += 1
        self.parsed += row["ranking"] is not None
        self.accepted += accepted
        self.prompt_tokens += row["prompt_tokens"] or 0
        self.completion_tokens += row["completion_tokens"] or 0
        if row["cost_usd"] is not None:
            self.cost_usd = (self.cost_usd or 0.0) + row["cost_usd"]


def sample(
    store: Store,
    teacher: Teacher,
    settings: SamplingSettings,
    *,
    concurrency: int = REQUESTS.concurrency,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Draw all samples that the store lacks from `teacher`, and return the final counts.

    concurrency: the number of requests at a time. on_progress: called several times per second. After SIGINT or SIGTERM
    no new request is sent, and running ones are awaited. A second signal cancels them. In both cases all answers that
    arrived are stored, and the same call continues later.

    Raises InputError if the store is not ready or another process runs the same sampling, and TeacherError if the
    teacher cannot answer any request.
    """
    requests = RequestSettings(concurrency)
    # The journals are recovered before planning, so that recovered answers are not requested again.
    recovered = recover(store)
    plan = plan_sampling(store, teacher, settings)
    with store.claim(plan.claim, f"sampling {settings.dataset} with these settings"):
        # Recover again under the claim: the process that held it before may have answered some of these prompts, and
        # died.
        recovered += recover(store)
        lists, table = find_open_lists(store, plan)
        run_id = f"trace-{utc_now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        chosen = int(lists["chosen_lists"][0]) if lists.height else 0
        progress = Progress(run_id, chosen, lists.height, recovered=recovered)
        if lists.height == 0:
            # Without work there is no run to record.
            asyncio.run(teacher.close())
            return progress
        # The journal must exist first, because other processes take a run without a journal for dead.
        writer = TraceWriter(
            store,
            run_id,
            plan.rules,
            commit_seconds=COMMIT_SECONDS,
            commit_traces=COMMIT_TRACES,
            max_pending=MAX_PENDING_TRACES,
        )
        try:
            _start_run(store, plan, run_id, teacher)
        except BaseException:
            writer.abandon()
            raise
        status = "failed"
        try:
            run = _Run(teacher, plan, progress, writer, on_progress)
            status = asyncio.run(run.run(lists, table, requests.concurrency))
        finally:
            writer.end(status)
            writer.close()
        return progress


def _start_run(store: Store, plan: Plan, run_id: str, teacher: Teacher) -> None:
    facts = {
        **asdict(plan.settings),
        "ruleset": plan.ruleset.name,
        "ruleset_version": plan.ruleset.version,
        "template": plan.template.name,
        "template_sha256": plan.template.sha256,
        "sid_version": plan.sid_version,
        "pre_ranker": plan.pre_ranker,
        "teacher": plan.teacher,
        "model": plan.model,
        # Further facts about a teacher, such as its host.
        **getattr(teacher, "run_settings", {}),
    }
    row: dict[str, Any] = {
        "run_id": run_id,
        "kind": "trace",
        "dataset": plan.settings.dataset,
        "settings": orjson.dumps(facts).decode(),
        "status": "running",
        "started_at": utc_now(),
        "ended_at": None,
    }
    template = {"template": plan.template.name, "sha256": plan.template.sha256, "text": plan.template.text}
    # Both are stored together and before the first request, because a committed trace must find its run and its
    # template.
    with store.writing() as session:
        session.put("runs", pl.DataFrame([row], schema_overrides={"ended_at": pl.Datetime("us")}))
        session.put("templates", pl.DataFrame([template]))


class _Run:
    """The workers of one run and their shared state."""

    def __init__(
        self,
        teacher: Teacher,
        plan: Plan,
        progress: Progress,
        writer: TraceWriter,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.store = writer.store
        self.teacher = teacher
        self.plan = plan
        self.progress = progress
        self.on_progress = on_progress
        self.writer = writer
        self.workers: list[asyncio.Task[None]] = []
        self.unasked = progress.prompts
        self.outages = Outages(lambda: self._ends, lambda: self.unasked > 0)
        # Prompts with a failed request, which are sent again, with the number of answers that had arrived at the time.
        self.again: deque[tuple[int, OpenPrompt]] = deque()
        # Refusals from before the first answer. Only an answer shows whether the prompt or the whole set-up is at
        # fault.
        self.held: list[tuple[OpenPrompt, dict[str, Any]]] = []
        self.prompts_wait = False
        self.is_over = False

    async def run(self, lists: pl.DataFrame, table: PromptTable, concurrency: int) -> str:
        """Sample until all prompts are finished or a signal arrives. Returns the run's status for the store."""
        source = self._prompts(lists, table)
        # Only one worker at a time may advance an async generator.
        lock = asyncio.Lock()
        committing = asyncio.create_task(self.writer.commit_regularly(self._is_answered))
        reporting = asyncio.create_task(self._report())
        self.workers = [asyncio.create_task(self._work(source, lock)) for _ in range(concurrency)]
        hurries = True
        try:
            with self._signals():
                try:
                    # The first failure ends the run. A worker that a second signal cancelled has not failed.
                    finished, _ = await asyncio.wait([*self.workers, committing], return_when=asyncio.FIRST_EXCEPTION)
                    for task in finished:
                        if not task.cancelled() and (error := task.exception()):
                            raise error
                    hurries = False
                finally:
                    for worker in self.workers:
                        worker.cancel()
                    # `committing` ends by itself once no worker is left. Cancelling it would not stop the thread that
                    # is writing, and finish() would run beside it.
                    await asyncio.gather(*self.workers, committing, return_exceptions=True)
                    self._release_held()
                    await self.writer.finish(lambda: hurries or self.progress.stopping)
        finally:
            self.is_over = True
            await self.teacher.close()
            await reporting
            self._show()
        self._raise_failure()
        if self.progress.stopping:
            return "interrupted"
        return "done" if self.outages.answered else "failed"

    def _raise_failure(self) -> None:
        """Raise StoreError if the store or its disk ended the run. The message says where the answers are."""
        waiting = f"; {self.writer.describe_waiting()}" if self.writer.waiting else ""
        if self.writer.failure is not None:
            raise StoreError(f"{self.writer.failure}{waiting}") from self.writer.failure
        # A user who stops a run while the store is busy gets a message, but no error.
        if waiting and not self.progress.stopping:
            raise StoreBusyError(f"{self.store.main_file} is still in use by another process{waiting}")

    @property
    def _ends(self) -> bool:
        """Whether no new request may be sent."""
        return self.progress.stopping or self.writer.failure is not None

    def _is_answered(self) -> bool:
        return all(worker.done() for worker in self.workers)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Handle signals within the context: the first stops new requests, and the second cancels the running ones."""

        def stop() -> None:
            if self.progress.stopping:
                for worker in self.workers:
                    worker.cancel()
            self.progress.stopping = True

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _prompts(self, lists: pl.DataFrame, table: PromptTable) -> AsyncIterator[OpenPrompt]:
        """Yield all open prompts, in batches: while one batch is sampled, a thread renders the next."""
        slices = lists.iter_slices(PROMPT_BATCH)
        ahead = asyncio.create_task(self._open(next(slices, None), table))
        while (batch := await ahead) is not None:
            ahead = asyncio.create_task(self._open(next(slices, None), table))
            for prompt in batch:
                yield prompt

    async def _open(self, lists: pl.DataFrame | None, table: PromptTable) -> list[OpenPrompt] | None:
        """Return the prompts of some lists once the store has them.

        Returns None without lists, or if the run ends before that.
        """
        while lists is not None and not self._ends:
            try:
                prompts = await asyncio.to_thread(open_prompts, self.store, self.plan, lists, table)
            except StoreBusyError:
                self.prompts_wait = True
            except StoreError as error:
                self.writer.fail(error)
            else:
                self.prompts_wait = False
                return prompts
        return None

    async def _work(self, source: AsyncIterator[OpenPrompt], lock: asyncio.Lock) -> None:
        while not self._ends:
            prompt = None
            if not (self.again and self.outages.is_time(self.again[0][0])):
                async with lock:
                    prompt = await anext(source, None)
                    self.unasked -= prompt is not None
            if prompt is None:
                if not self.again:
                    # A worker whose request still fails will find the prompt in `again` itself.
                    return
                _, prompt = self.again.popleft()
            await self._sample(prompt)

    async def _sample(self, prompt: OpenPrompt) -> None:
        accepted = prompt.accepted
        for place, index in enumerate(prompt.open_indexes):
            if accepted >= self.plan.settings.num_accepted or self._ends:
                break
            request = prompt.request(self.plan, index)
            async with self.outages.turn():
                if self._ends:
                    break
                if not self.writer.announce(request.trace_id):
                    break
                self.progress.in_flight += 1
                try:
                    record = await self._ask(prompt, request)
                finally:
                    self.progress.in_flight -= 1
                failed_as = record["error_kind"]
                if failed_as is None:
                    self.outages.answer()
                    self._release_held()
                elif self.outages.may_ask_again(request.trace_id, failed_as):
                    self.outages.check(record["error"])
                    rest = replace(prompt, open_indexes=prompt.open_indexes[place:], accepted=accepted)
                    self.again.append((self.outages.answers, rest))
                    return
            if failed_as in FOR_GOOD and not self.outages.answered:
                self.held.append((prompt, record))
            else:
                accepted += self._keep(prompt, record)
            if failed_as is not None:
                self.outages.check(record["error"])
                # A failed request uses up no attempt, and the next attempt would fail as well.
                self.progress.done += failed_as in FOR_GOOD
                return
            # An offline teacher never awaits anything, and would keep the event loop from committing and reporting.
            await asyncio.sleep(0)
        else:
            # No attempt is left, so the prompt is finished, whether enough answers were accepted or not.
            self.progress.done += 1
            return
        self.progress.done += accepted >= self.plan.settings.num_accepted

    def _keep(self, prompt: OpenPrompt, record: dict[str, Any]) -> bool:
        """Journal a record and have it stored. Returns whether it is accepted."""
        judged = self.writer.keep(record, lambda each: judge_record(each, prompt.listed, self.plan.rules))
        passed = judged.accepted(self.plan.ruleset.rules)
        self.progress.count(judged, accepted=passed)
        return passed

    def _release_held(self) -> None:
        held, self.held = self.held, []
        for prompt, record in held:
            if not self.outages.answered:
                record["error_kind"] = FailureKind.REJECTED
            self._keep(prompt, record)

    async def _ask(self, prompt: OpenPrompt, request: TeacherRequest) -> dict[str, Any]:
        """Draw one completion and return its journal record. Its `error` is None unless the request failed."""
        started = time.perf_counter()
        completion, error, error_kind = Completion("", ""), None, None
        try:
            completion = await self.teacher.complete(request)
        except RequestFailedError as failure:
            error, error_kind = str(failure) or "the request failed", failure.kind
        return {
            "event": "received",
            "trace_id": request.trace_id,
            "prompt_id": prompt.prompt_id,
            "run_id": self.progress.run_id,
            "teacher": self.plan.teacher,
            "model": self.plan.model,
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "sample_index": request.sample_index,
            "completion": None if error else storable_text(completion.text),
            "finish_reason": completion.finish_reason or None,
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": completion.completion_tokens,
            "cost_usd": completion.cost_usd,
            "latency_ms": (time.perf_counter() - started) * 1000,
            "error": error,
            "error_kind": error_kind,
            "created_at": utc_now().isoformat(),
            "ruleset": self.plan.ruleset.name,
            "ruleset_version": self.plan.ruleset.version,
        }

    async def _report(self) -> None:
        while not self.is_over:
            self._show()
            await asyncio.sleep(0.2)

    def _show(self) -> None:
        progress, writer = self.progress, self.writer
        progress.stored, progress.waiting, progress.rejected = writer.stored, writer.waiting, writer.rejected
        progress.busy = writer.busy or self.prompts_wait
        progress.paused = self.outages.lasts
        self.on_progress(progress)
