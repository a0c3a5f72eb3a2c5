"""Drawing traces from a teacher: bounded workers, a journal, and batches committed into the store.

Each worker takes one prompt at a time and samples it until enough answers are accepted or no attempt is left, so no
answer is paid for that is not wanted. Every attempt is kept. Generation never waits for the database: a response goes
to the journal when it arrives, and a background task commits batches. What a killed run leaves behind, the next one
takes over (`curate.traces.recording`).
"""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson
import polars as pl

from curate.traces.planning import OpenPrompt, Plan, find_open_lists, open_prompts, plan_sampling
from curate.traces.recording import JudgedTrace, Recovery, commit_traces, judge_record, recover
from curate.traces.settings import REQUESTS, RequestSettings, SamplingSettings
from curate.traces.teachers.protocol import Completion, RequestFailedError, Teacher, TeacherRequest
from store import Store
from store.journals import JournalWriter
from store.values import storable_text, utc_now

COMMIT_SECONDS = 3.0
COMMIT_TRACES = 2_000
MAX_PENDING_TRACES = 20_000


@dataclass(slots=True)
class Progress:
    """How far a run is. Counts are of this run; `prompts` is how many wanted samples when it began.

    cost_usd is None until a teacher tells a cost.
    """

    run_id: str
    lists: int
    prompts: int
    done: int = 0
    attempts: int = 0
    failed: int = 0
    parsed: int = 0
    accepted: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    stored: int = 0
    stopping: bool = False
    recovered: list[Recovery] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self.started

    def count(self, judged: JudgedTrace, *, accepted: bool) -> None:
        """Take one attempt into the counts."""
        row = judged.row
        self.attempts += 1
        self.failed += row["error"] is not None
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
    """Ask `teacher` for all samples that the store lacks, `concurrency` at a time; returns the final counts.

    `on_progress` is called a few times a second. On SIGINT or SIGTERM no new request goes out and those under way are
    awaited; a second signal leaves them. Either way what arrived is stored and the same call goes on later.

    Raises InputError where the store is not ready, or another process samples the same; TeacherError where the
    teacher cannot work at all.
    """
    requests = RequestSettings(concurrency)
    recovered = recover(store)
    plan = plan_sampling(store, teacher, settings)
    with store.claim(plan.claim, f"sampling {settings.dataset} with these settings"):
        lists = find_open_lists(store, plan)
        run_id = f"trace-{utc_now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        chosen = int(lists["chosen_lists"][0]) if lists.height else 0
        progress = Progress(run_id, chosen, lists.height, recovered=recovered)
        if lists.height == 0:
            asyncio.run(teacher.close())
            return progress
        _start_run(store, plan, run_id)
        status = "failed"
        try:
            status = asyncio.run(_Run(store, teacher, plan, progress, on_progress).run(lists, requests.concurrency))
        finally:
            with store.writing() as session:
                session.execute("end_run", run_id=run_id, status=status)
        return progress


def _start_run(store: Store, plan: Plan, run_id: str) -> None:
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
    with store.writing() as session:
        session.put("runs", pl.DataFrame([row], schema_overrides={"ended_at": pl.Datetime("us")}))
        session.put("templates", pl.DataFrame([template]))


class _Run:
    """The workers of one run and what they share."""

    def __init__(
        self, store: Store, teacher: Teacher, plan: Plan, progress: Progress, on_progress: Callable[[Progress], None]
    ) -> None:
        self.store = store
        self.teacher = teacher
        self.plan = plan
        self.progress = progress
        self.on_progress = on_progress
        self.journal = JournalWriter(store.journals / f"{progress.run_id}.jsonl")
        self.pending: list[JudgedTrace] = []
        self.room = asyncio.Condition()
        self.workers: list[asyncio.Task[None]] = []

    async def run(self, lists: pl.DataFrame, concurrency: int) -> str:
        """Work until nothing is left or a signal comes; returns the run's status."""
        source = self._prompts(lists)
        lock = asyncio.Lock()
        background = [asyncio.create_task(self._commit_regularly()), asyncio.create_task(self._report())]
        self.workers = [asyncio.create_task(self._work(source, lock)) for _ in range(concurrency)]
        try:
            with self._signals():
                # The first failure ends the run; a worker cancelled by a second signal is no failure.
                done, _ = await asyncio.wait([*self.workers, *background], return_when=asyncio.FIRST_EXCEPTION)
                for task in done:
                    if not task.cancelled() and (error := task.exception()):
                        raise error
        finally:
            for worker in self.workers:
                worker.cancel()
            # The background ends by itself once no worker is left; cancelled, it would leave a write under way.
            await asyncio.gather(*self.workers, *background, return_exceptions=True)
            try:
                await self._commit()
            finally:
                self.journal.close()
                await self.teacher.close()
                self.on_progress(self.progress)
        return "interrupted" if self.progress.stopping else "done"

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal stops new requests, the second leaves those under way."""

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

    async def _prompts(self, lists: pl.DataFrame) -> AsyncIterator[OpenPrompt]:
        """All open prompts, one batch rendered ahead in a thread."""
        batches = open_prompts(self.store, self.plan, lists)
        ahead = asyncio.create_task(asyncio.to_thread(next, batches, None))
        while (batch := await ahead) is not None:
            ahead = asyncio.create_task(asyncio.to_thread(next, batches, None))
            for prompt in batch:
                yield prompt

    async def _work(self, source: AsyncIterator[OpenPrompt], lock: asyncio.Lock) -> None:
        while not self.progress.stopping:
            async with lock:
                prompt = await anext(source, None)
            if prompt is None:
                return
            await self._sample(prompt)

    async def _sample(self, prompt: OpenPrompt) -> None:
        accepted = prompt.accepted
        for index in prompt.open_indexes:
            if accepted >= self.plan.settings.num_accepted or self.progress.stopping:
                break
            request = prompt.request(self.plan, index)
            self.journal.append({"event": "sent", "trace_id": request.trace_id})
            self.progress.in_flight += 1
            try:
                record = await self._ask(prompt, request)
            finally:
                self.progress.in_flight -= 1
            self.journal.append(record)
            judged = judge_record(record, prompt.listed)
            self.pending.append(judged)
            passed = judged.accepted(self.plan.ruleset.rules)
            accepted += passed
            self.progress.count(judged, accepted=passed)
            # A teacher that never waits would otherwise keep the loop from committing and reporting.
            await asyncio.sleep(0)
            if len(self.pending) >= MAX_PENDING_TRACES:
                async with self.room:
                    await self.room.wait_for(lambda: len(self.pending) < MAX_PENDING_TRACES)
        else:
            self.progress.done += 1
            return
        self.progress.done += accepted >= self.plan.settings.num_accepted

    async def _ask(self, prompt: OpenPrompt, request: TeacherRequest) -> dict[str, Any]:
        """Draw one completion; returns the journal's record, with `error` where the request failed."""
        started = time.perf_counter()
        completion, error = Completion("", ""), None
        try:
            completion = await self.teacher.complete(request)
        except RequestFailedError as failed:
            error = str(failed) or "the request failed"
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
            "created_at": utc_now().isoformat(),
            "ruleset": self.plan.ruleset.name,
            "ruleset_version": self.plan.ruleset.version,
        }

    async def _commit_regularly(self) -> None:
        while True:
            until = time.perf_counter() + COMMIT_SECONDS
            while time.perf_counter() < until and len(self.pending) < COMMIT_TRACES:
                if all(worker.done() for worker in self.workers):
                    return
                await asyncio.sleep(0.05)
            await self._commit()

    async def _commit(self) -> None:
        """Commit all pending traces. Whatever lies before the offset taken here is in this batch or committed."""
        batch, end = self.pending, self.journal.end
        if not batch:
            return
        self.pending = []
        try:
            put = await asyncio.to_thread(commit_traces, self.store, self.progress.run_id, batch, end)
        except BaseException:
            # A later batch must not advance the offset over this one.
            self.pending = batch + self.pending
            raise
        self.progress.stored += put.inserted
        async with self.room:
            self.room.notify_all()

    async def _report(self) -> None:
        while not all(worker.done() for worker in self.workers):
            self.on_progress(self.progress)
            await asyncio.sleep(0.2)
