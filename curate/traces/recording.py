"""The path from journal records to traces and verdicts in the store, exactly once per record.

A record is judged when it arrives (by the sampler) or when its journal is read again (`read_batch`). Both end in
`commit_batch`, a single transaction that writes the rows and advances the journal's offset. If the store refuses a
trace, the trace is set aside with the reason, and the others are still stored.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import orjson
import polars as pl

from curate.traces.records import (
    DERIVED,
    ROLLOUT_SCHEMA,
    TRACE_SCHEMA,
    RecordError,
    created_at,
    parse_record,
    rollout_row,
)
from curate.traces.rules import RULE_NAMES, RULES, Answer, Verdict, judge
from curate.traces.tasks import ListedTask, PromptPlaces, load_tasks
from prompts.completion import ParsedCompletion, parse_completion
from store import InputError, Put, Session, Store
from store.journals import (
    RESERVE,
    Rejection,
    compress_journal,
    read_journal,
    read_lines,
    reject,
    rejected_file,
    restore_journal,
    taken_over,
)
from store.temporary import remove_abandoned

# When a journal is read again, a batch ends at either of these limits.
BATCH = 2_000
BATCH_BYTES = 64 * 1024 * 1024
# The errors of values that do not fit a table. Other errors mean that the store is busy, full or damaged.
_REFUSALS = (
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.InvalidInputException,
    # Half of the batch may still fit in memory.
    duckdb.OutOfMemoryException,
    pl.exceptions.PolarsError,
    TypeError,
    ValueError,
    OverflowError,
)

VERDICT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "trace_id": pl.String,
    "rule": pl.String,
    "rule_version": pl.Int32,
    "passed": pl.Boolean,
    "reason": pl.String,
    "detail": pl.String,
    "created_at": pl.Datetime("us"),
}


@dataclass(frozen=True, slots=True)
class JudgedTrace:
    """One attempt: its row in `traces`, and its verdicts. A failed request has no verdicts.

    rollout: the row in `rollouts` if a student wrote the completion in training; None for an attempt of a teacher.
    """

    row: dict[str, Any]
    verdicts: list[Verdict]
    rollout: dict[str, Any] | None = None

    def accepted(self, rules: Sequence[str]) -> bool:
        """Whether the trace has a completion and passes all of the named rules."""
        passed = {verdict.rule for verdict in self.verdicts if verdict.passed}
        # The completion is checked too, because an empty ruleset must not accept a failed request.
        return self.row["completion"] is not None and passed.issuperset(rules)


@dataclass(frozen=True, slots=True)
class Recovery:
    """The result of recovering the journal of a dead run.

    traces: newly stored traces. unknown: requests that were sent without a recorded answer; they are sent again.
    rejected: lines that cannot become a trace; they are in `rejected_file` now.
    """

    run_id: str
    traces: int
    unknown: int
    rejected: int
    rejected_file: Path


class Journalled(NamedTuple):
    """A judged record, and the offset of the byte after its line in the journal."""

    trace: JudgedTrace
    record: dict[str, Any]
    end: int


@dataclass(slots=True)
class Batch:
    """A part of a journal that ends at the offset `end`: its traces, and the lines that cannot become a trace."""

    end: int
    traces: list[Journalled] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)


class Stored(NamedTuple):
    """The result of committing a batch: the number of new traces, and the number of newly rejected lines."""

    inserted: int
    rejected: int


def judge_record(record: dict[str, Any], listed: ListedTask, rules: Sequence[str]) -> JudgedTrace:
    """Parse a "received" record of the journal and judge it by the named rules against its candidate list."""
    # get(), because journals of earlier releases lack some columns.
    row = {name: None if name in DERIVED else record.get(name) for name in TRACE_SCHEMA}
    row["created_at"] = created_at(record)
    rollout = rollout_row(record)
    if row["completion"] is None:
        return JudgedTrace(row, [], rollout)
    answer = answer_to(listed, row["completion"], row["finish_reason"] or "")
    row["reasoning"], row["ranking"] = reading_of(answer)
    return JudgedTrace(row, judge(answer, rules), rollout)


def answer_to(listed: ListedTask, completion: str, finish_reason: str) -> Answer:
    """The input of the rules: a completion, parsed, together with its task and target."""
    return Answer(listed.task, listed.target_item_id, finish_reason, parse_completion(completion, listed.task))


def reading_of(answer: Answer) -> tuple[str | None, list[str] | None]:
    """The columns `reasoning` and `ranking` of a trace, which are None if its completion cannot be parsed."""
    if isinstance(answer.parsed, ParsedCompletion):
        return answer.parsed.reasoning, list(answer.parsed.ranking)
    return None, None


def commit_traces(store: Store, run_id: str, judged: Sequence[JudgedTrace], committed_offset: int) -> Put:
    """Store judged records and the journal's new committed offset in one transaction.

    If a trace has several records, an answer wins over a failed attempt.
    """
    # Answers sort last, and the last entry of a key wins in a dict.
    by_id = {trace.row["trace_id"]: trace for trace in sorted(judged, key=lambda trace: trace.row["error"] is None)}
    judged = list(by_id.values())
    traces = pl.DataFrame([trace.row for trace in judged], schema=TRACE_SCHEMA)
    verdicts = verdict_frame(
        [(trace.row["trace_id"], trace.row["created_at"], verdict) for trace in judged for verdict in trace.verdicts]
    )
    rollouts = pl.DataFrame([trace.rollout for trace in judged if trace.rollout is not None], schema=ROLLOUT_SCHEMA)
    # One transaction, and in this order: failed attempts make room for answers, the outcomes of the batch exist before
    # the traces that refer to them, and the offset moves only if all rows are written.
    with store.writing() as session:
        session.insert("delete_failed_traces", traces)
        session.insert("find_new_traces", traces)
        session.insert("judge_batch", verdicts)
        session.execute("put_batch_outcomes")
        inserted = session.execute("append_new_traces")
        session.insert("append_verdicts_of_new_traces", verdicts)
        session.insert("append_rollouts_of_new_traces", rollouts)
        session.execute("clear_committed_offset", run_id=run_id)
        session.execute("record_committed_offset", run_id=run_id, committed_offset=committed_offset)
    return Put(inserted, len(traces) - inserted)


def verdict_frame(verdicts: Sequence[tuple[str, datetime, Verdict]]) -> pl.DataFrame:
    """Rows of the table `verdicts` for triples of trace id, the trace's created_at, and verdict."""
    rows = [(trace_id, *verdict, created_at) for trace_id, created_at, verdict in verdicts]
    return pl.DataFrame(rows, schema=VERDICT_SCHEMA, orient="row")


def read_batch(store: Store, path: Path, start: int, rules: Sequence[str], *, stop: int | None = None) -> Batch:
    """Read and judge the next answers of a journal, at most BATCH, from byte `start` on.

    The batch's `end` is `start` if nothing is left. stop: the offset to read up to; None means the end of a dead run's
    journal.
    """
    batch = Batch(start)
    records: list[tuple[dict[str, Any], bytes, int]] = []
    run_id = path.stem
    for line, end in read_lines(path, start):
        if (stop is not None and end > stop) or len(records) + len(batch.rejections) == BATCH:
            break
        if batch.end - start >= BATCH_BYTES:
            break
        batch.end = end
        try:
            record = parse_record(line, run_id)
        except RecordError as error:
            # A last line without its end was cut off by a kill. Its request counts as one without an answer.
            if line.endswith(b"\n"):
                batch.rejections.append(Rejection(line, end, str(error)))
            continue
        if record["event"] == "received":
            records.append((record, line, end))
    with store.reading() as session:
        listed = load_tasks_of_prompts(session, [record["prompt_id"] for record, _, _ in records])
    for record, line, end in records:
        if (task := listed.get(record["prompt_id"])) is None:
            batch.rejections.append(Rejection(line, end, f"the store has no prompt {record['prompt_id'][:60]!r}"))
        else:
            batch.traces.append(Journalled(_judge_again(record, task, rules), record, end))
    return batch


def _judge_again(record: dict[str, Any], listed: ListedTask, rules: Sequence[str]) -> JudgedTrace:
    try:
        return judge_record(record, listed, rules)
    except Exception:
        # Rules can be anybody's code, and one that fails must not keep answers away. `gr2 verify` adds its verdicts.
        return judge_record(record, listed, RULE_NAMES)


def commit_batch(store: Store, path: Path, batch: Batch) -> Stored:
    """Store a batch and the journal's new committed offset.

    A trace that the store refuses becomes a failed attempt with the reason as its error, and its record is kept in
    the file of rejected lines. Raises StoreError if the store or that file cannot be written.
    """
    # The lines must be kept before the offset moves past them.
    rejected = reject(path, batch.rejections)
    try:
        put = commit_traces(store, path.stem, [each.trace for each in batch.traces], batch.end)
        return Stored(put.inserted, rejected)
    except _REFUSALS as error:
        if not batch.traces:
            raise
        if len(batch.traces) == 1:
            stored = _commit_refused(store, path, batch, error)
            return Stored(stored.inserted, rejected + stored.rejected)
    # Halving the batch finds the trace that is to blame in few transactions.
    half = len(batch.traces) // 2
    first = commit_batch(store, path, Batch(batch.traces[half - 1].end, batch.traces[:half]))
    second = commit_batch(store, path, Batch(batch.end, batch.traces[half:]))
    return Stored(first.inserted + second.inserted, rejected + first.rejected + second.rejected)


def _commit_refused(store: Store, path: Path, batch: Batch, error: Exception) -> Stored:
    ((trace, record, end),) = batch.traces
    reason = f"the store refuses this trace: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    rejected = reject(path, [Rejection(orjson.dumps(record, default=repr), end, reason)])
    unknown = dict.fromkeys(("completion", "finish_reason", "prompt_tokens", "completion_tokens", "cost_usd", *DERIVED))
    failed = JudgedTrace({**trace.row, **unknown, "latency_ms": None, "error": reason}, [], trace.rollout)
    try:
        return Stored(commit_traces(store, path.stem, [failed], batch.end).inserted, rejected)
    except _REFUSALS:
        # Not even the failed attempt can be stored, for example because its prompt is gone.
        commit_traces(store, path.stem, [], batch.end)
        return Stored(0, rejected)


def recover(store: Store) -> list[Recovery]:
    """Commit the records that dead runs left in their journals. Live runs are skipped; they commit their own.

    A journal with nothing left to commit is compressed. A compressed journal is recovered too if the store knows
    nothing of its records, because the store was restored from an older copy. The contents of a journal never raise an
    error. StoreError is raised only if the store is busy, full or damaged.
    """
    recoveries = []
    # Only one process may recover at a time. The next one must not plan before the recovered answers are stored.
    with store.claim("recovery", "recovering journals", wait=True):
        remove_abandoned(store.journals)
        for run_id, known in _runs(store).items():
            path = store.journals / f"{run_id}.jsonl"
            if not (path.exists() or (known.is_uncommitted and restore_journal(path))):
                continue
            with taken_over(path) as dead:
                if not dead:
                    continue
                # The row is read only under the lock, because the run may have ended in the meantime.
                run = _runs(store)[run_id]
                # A run that ended may still have a tail to commit, if its last commit failed.
                if not run.ended or path.stat().st_size > run.committed_offset:
                    rules = _findable([*RULE_NAMES, *(run.rules or ())])
                    recoveries.append(_recover_run(store, path, run.committed_offset, rules))
                path.with_suffix(RESERVE).unlink(missing_ok=True)
                compress_journal(path)
    return recoveries


class _SamplingRun(NamedTuple):
    """What the store knows of a run: whether it ended, how much is committed, and the rules of its ruleset."""

    ended: bool
    committed_offset: int
    rules: Sequence[str] | None

    @property
    def is_uncommitted(self) -> bool:
        return not self.ended or self.committed_offset == 0


def _runs(store: Store) -> dict[str, _SamplingRun]:
    with store.reading() as session:
        return {run_id: _SamplingRun(*facts) for run_id, *facts in session.rows("sampling_runs")}


def _findable(rules: Sequence[str]) -> tuple[str, ...]:
    """Return those rules of a dead run that can be found here. A missing package must not keep the run's traces away.

    `gr2 verify` adds the verdicts of the other rules once their package is back.
    """
    findable_rules = []
    for rule in dict.fromkeys(rules):
        with suppress(InputError):
            RULES.find(rule)
            findable_rules.append(rule)
    return tuple(findable_rules)


def _recover_run(store: Store, path: Path, committed_offset: int, rules: Sequence[str]) -> Recovery:
    unknown, status = _outcome(path)
    stored = commit_rest(store, path, committed_offset, rules)
    with store.writing() as session:
        # Runs that recorded their own end keep their status.
        session.execute("end_run", run_id=path.stem, status=status)
    return Recovery(path.stem, stored.inserted, unknown, stored.rejected, rejected_file(path))


def commit_rest(store: Store, path: Path, committed_offset: int, rules: Sequence[str] = RULE_NAMES) -> Stored:
    """Commit everything that the journal of a dead run holds after an offset. Raises StoreError."""
    inserted = rejected = 0
    # Each batch commits its own offset, so that a process that is killed here continues where it stopped.
    while (batch := read_batch(store, path, committed_offset, rules)).end > committed_offset:
        stored = commit_batch(store, path, batch)
        inserted, rejected, committed_offset = inserted + stored.inserted, rejected + stored.rejected, batch.end
    return Stored(inserted, rejected)


def _outcome(path: Path) -> tuple[int, str]:
    """The number of requests of a journal without an answer, and the status that its run ended with."""
    waiting: set[str] = set()
    status = "killed"
    # The whole journal is read: a request from before the committed offset may have its answer after it, or no answer
    # at all.
    for record, _ in read_journal(path):
        event, trace_id = record.get("event"), record.get("trace_id")
        if event == "sent" and isinstance(trace_id, str):
            waiting.add(trace_id)
        elif event == "received" and isinstance(trace_id, str):
            waiting.discard(trace_id)
        elif event == "ended":
            # A run writes this if the store was busy when it ended.
            status = str(record.get("status", status))
    return len(waiting), status


def load_tasks_of_prompts(
    session: Session, prompt_ids: Sequence[str], within: PromptPlaces | None = None
) -> dict[str, ListedTask]:
    """The tasks of prompts, by prompt id.

    within: where the prompts and their lists lie, if that is known; None reads through all of them.
    """
    places = within or PromptPlaces()
    prompts = session.frame("prompts_by_id", prompt_ids=list(set(prompt_ids)), first=places.first, last=places.last)
    tasks: dict[str, ListedTask] = {}
    # Prompts over different versions of semantic IDs show the same list in different words.
    for (dataset, sid_version), group in prompts.group_by("dataset", "sid_version"):
        listed = load_tasks(session, str(dataset), str(sid_version), group["list_id"].to_list(), within=places.lists)
        tasks |= {prompt: listed[list_id] for prompt, list_id in group.select("prompt_id", "list_id").iter_rows()}
    return tasks
