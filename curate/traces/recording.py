"""The path from journal records to traces and verdicts in the store, exactly once per record.

A record is judged when it arrives (by the sampler) or when the journal of a dead run is read again (`recover`). Both
end in `commit_traces`, a single transaction that writes the rows and advances the journal's offset.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from curate.traces.rules import RULE_NAMES, RULES, Answer, Verdict, judge
from curate.traces.tasks import ListedTask, load_tasks
from prompts.completion import ParsedCompletion, parse_completion
from store import InputError, Put, Session, Store
from store.journals import is_live, read_journal

RECOVERY_BATCH = 2_000

# Given explicitly, because Polars cannot infer the type of a column that holds only None in some batch.
TRACE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "trace_id": pl.String,
    "prompt_id": pl.String,
    "run_id": pl.String,
    "teacher": pl.String,
    "model": pl.String,
    "temperature": pl.Float64,
    "max_tokens": pl.Int32,
    "sample_index": pl.Int32,
    "completion": pl.String,
    "reasoning": pl.String,
    "ranking": pl.List(pl.String),
    "finish_reason": pl.String,
    "prompt_tokens": pl.Int32,
    "completion_tokens": pl.Int32,
    "cost_usd": pl.Float64,
    "latency_ms": pl.Float64,
    "error": pl.String,
    "error_kind": pl.String,
    "created_at": pl.Datetime("us"),
    "ruleset": pl.String,
    "ruleset_version": pl.Int32,
}
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
    """One attempt: its row in `traces`, and its verdicts. A failed request has no verdicts."""

    row: dict[str, Any]
    verdicts: list[Verdict]

    def accepted(self, rules: Sequence[str]) -> bool:
        """Whether the trace has a completion and passes all of the named rules."""
        passed = {verdict.rule for verdict in self.verdicts if verdict.passed}
        # The completion is checked too, because an empty ruleset must not accept a failed request.
        return self.row["completion"] is not None and passed.issuperset(rules)


@dataclass(frozen=True, slots=True)
class Recovery:
    """The result of recovering the journal of a dead run.

    traces: newly stored traces. unknown: requests that were sent without a recorded answer; they are sent again.
    """

    run_id: str
    traces: int
    unknown: int


def judge_record(record: dict[str, Any], listed: ListedTask, rules: Sequence[str]) -> JudgedTrace:
    """Parse a "received" record of the journal and judge it by the named rules against its candidate list."""
    # get(), because journals of earlier releases lack some columns.
    row = {name: record.get(name) for name in TRACE_SCHEMA}
    row["created_at"] = datetime.fromisoformat(record["created_at"])
    if row["completion"] is None:
        return JudgedTrace(row, [])
    answer = answer_to(listed, row["completion"], row["finish_reason"] or "")
    row["reasoning"], row["ranking"] = reading_of(answer)
    return JudgedTrace(row, judge(answer, rules))


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
    # One transaction, and in this order: failed attempts make room for answers, the outcomes of the batch exist before
    # the traces that refer to them, and the offset moves only if all rows are written.
    with store.writing() as session:
        session.insert("delete_failed_traces", traces)
        session.insert("find_new_traces", traces)
        session.insert("judge_batch", verdicts)
        session.execute("put_batch_outcomes")
        inserted = session.execute("append_new_traces")
        session.insert("append_verdicts_of_new_traces", verdicts)
        session.execute("clear_committed_offset", run_id=run_id)
        session.execute("record_committed_offset", run_id=run_id, committed_offset=committed_offset)
    return Put(inserted, len(traces) - inserted)


def verdict_frame(verdicts: Sequence[tuple[str, datetime, Verdict]]) -> pl.DataFrame:
    """Rows of the table `verdicts` for triples of trace id, the trace's created_at, and verdict."""
    rows = [(trace_id, *verdict, created_at) for trace_id, created_at, verdict in verdicts]
    return pl.DataFrame(rows, schema=VERDICT_SCHEMA, orient="row")


def recover(store: Store) -> list[Recovery]:
    """Commit the records that dead runs left in their journals. Live runs are skipped; they commit their own."""
    with store.reading() as session:
        runs = session.rows("sampling_runs")
    recoveries = []
    for run_id, ended, committed_offset, rules in runs:
        path = store.journals / f"{run_id}.jsonl"
        # A run that ended may still have a tail to commit, if its last commit failed. Its lock shows whether it lives.
        if path.exists() and (not ended or path.stat().st_size > committed_offset) and not is_live(path):
            recoveries.append(_recover_run(store, run_id, committed_offset, _findable([*RULE_NAMES, *(rules or ())])))
    return recoveries


def _findable(rules: Sequence[str]) -> tuple[str, ...]:
    """Those of a dead run's rules that can be found here: a package that is gone must not keep its traces away.

    What the others would have said, `gr2 verify` adds once they are back.
    """
    found = []
    for rule in dict.fromkeys(rules):
        with suppress(InputError):
            RULES.find(rule)
            found.append(rule)
    return tuple(found)


def _recover_run(store: Store, run_id: str, committed_offset: int, rules: Sequence[str]) -> Recovery:
    traces = 0
    waiting: set[str] = set()
    records: list[dict[str, Any]] = []
    end = committed_offset
    # Read from the start: a request from before the committed offset may have its answer after it, or none at all.
    for record, line_end in read_journal(store.journals / f"{run_id}.jsonl"):
        end = max(end, line_end)
        if record.get("event") == "sent":
            waiting.add(record["trace_id"])
        elif record.get("event") == "received":
            waiting.discard(record["trace_id"])
            if line_end > committed_offset:
                records.append(record)
        if len(records) == RECOVERY_BATCH:
            # In batches with an offset each, so that a recovery that is killed too continues where it stopped.
            traces += commit_traces(store, run_id, _judge_records(store, records, rules), end).inserted
            records = []
    traces += commit_traces(store, run_id, _judge_records(store, records, rules), end).inserted
    with store.writing() as session:
        # Runs that recorded their own end keep their status.
        session.execute("end_run", run_id=run_id, status="killed")
    return Recovery(run_id, traces, len(waiting))


def _judge_records(store: Store, records: Sequence[dict[str, Any]], rules: Sequence[str]) -> list[JudgedTrace]:
    with store.reading() as session:
        listed = load_tasks_of_prompts(session, [record["prompt_id"] for record in records])
    return [judge_record(record, listed[record["prompt_id"]], rules) for record in records]


def load_tasks_of_prompts(session: Session, prompt_ids: Sequence[str]) -> dict[str, ListedTask]:
    """The tasks of prompts, by prompt id."""
    prompts = session.frame("prompts_by_id", prompt_ids=list(set(prompt_ids)))
    tasks: dict[str, ListedTask] = {}
    # Prompts over different versions of semantic IDs show the same list in different words.
    for (dataset, sid_version), group in prompts.group_by("dataset", "sid_version"):
        listed = load_tasks(session, str(dataset), str(sid_version), group["list_id"].to_list())
        tasks |= {prompt: listed[list_id] for prompt, list_id in group.select("prompt_id", "list_id").iter_rows()}
    return tasks
