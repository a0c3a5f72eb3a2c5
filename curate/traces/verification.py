"""Runs the rules over stored completions again, in batches and without a teacher.

Verdicts are kept per rule and version. A rule with a new version adds its new verdicts; an unchanged rule adds none.
A completion that the parser reads differently than when it was stored is judged by all rules, and gets its new reading.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl

from curate.datasets.catalogue import find_dataset
from curate.traces.recording import answer_to, load_tasks_of_prompts, reading_of, verdict_frame
from curate.traces.records import TRACE_SCHEMA
from curate.traces.rules import RULE_NAMES, check_rule_names, judge
from curate.traces.tasks import Places, PromptPlaces
from store import Store

VERIFY_BATCH = 5_000
READING_SCHEMA = {name: TRACE_SCHEMA[name] for name in ("trace_id", "created_at", "reasoning", "ranking")}
# created_at and trace_id, because traces lie approximately in this order.
Key = tuple[datetime, str]
BEGINNING: Key = (datetime(1, 1, 1), "")  # noqa: DTZ001 (times of the store are UTC without a zone)


@dataclass(slots=True)
class VerifySummary:
    """The result of judging stored completions again.

    traces: judged traces. new_verdicts: verdicts that the store did not have. passed, failed: traces by rule. reasons:
    failed traces by rule and reason. new_readings: traces whose reasoning or ranking is read differently than before.
    """

    traces: int = 0
    new_verdicts: int = 0
    new_readings: int = 0
    passed: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)


def verify(store: Store, dataset: str, rules: Sequence[str] | None = None) -> VerifySummary:
    """Judge all stored completions of a dataset by the named rules, and store the missing verdicts.

    rules: None means gr2's own rules and all rules that the store's rulesets name.

    Raises InputError on an unknown dataset or rule.
    """
    with store.reading() as session:
        find_dataset(session, dataset)
        if rules is None:
            rules = [*RULE_NAMES, *(rule for (rule,) in session.rows("rules_of_rulesets"))]
    rules = check_rule_names(dict.fromkeys(rules))
    summary = VerifySummary()
    for after, until, places in _ranges(store, dataset):
        with store.reading() as session:
            traces = session.rows(
                "completions_to_judge",
                dataset=dataset,
                after_time=after[0],
                after_id=after[1],
                until_time=until[0],
                until_id=until[1],
            )
            tasks = load_tasks_of_prompts(session, [prompt_id for _, _, prompt_id, *_ in traces], within=places)
        # Judging happens between the transactions, so that the store is locked only to read and to write.
        verdicts, readings = [], []
        for trace_id, created_at, prompt_id, completion, finish_reason, *stored, _ in traces:
            answer = answer_to(tasks[prompt_id], completion, finish_reason or "")
            reading = reading_of(answer)
            judges = rules
            if reading != tuple(stored):
                readings.append((trace_id, created_at, *reading))
                judges = tuple(dict.fromkeys([*rules, *RULE_NAMES]))
            verdicts += [(trace_id, created_at, verdict) for verdict in judge(answer, judges)]
        summary.traces += len(traces)
        for _, _, verdict in verdicts:
            (summary.passed if verdict.passed else summary.failed)[verdict.rule] += 1
            if verdict.reason:
                summary.reasons[verdict.rule, verdict.reason] += 1
        with store.writing() as session:
            new_verdicts = session.put("verdicts", verdict_frame(verdicts)).inserted
            if readings:
                session.insert("update_readings", pl.DataFrame(readings, schema=READING_SCHEMA, orient="row"))
            # An outcome sums up all rules of a trace, so it is computed again from every current verdict, old and new.
            if new_verdicts or any(unjudged for *_, unjudged in traces):
                times = {"first_time": traces[0][1], "last_time": traces[-1][1]}
                current = session.frame("verdicts_of_batch", trace_ids=[trace_id for trace_id, *_ in traces], **times)
                session.insert("judge_batch", current)
                session.execute("put_batch_outcomes")
                session.execute("update_outcomes", **times)
        summary.new_verdicts += new_verdicts
        summary.new_readings += len(readings)
    return summary


def _ranges(store: Store, dataset: str) -> Iterator[tuple[Key, Key, PromptPlaces]]:
    """Yield ranges of keys with VERIFY_BATCH completions each, and where their prompts lie.

    A range begins after its first key and includes its second. DuckDB reads only the rows of a range, while a query for
    the first rows after a key would scan all later rows. Traces that a run adds in the meantime get further ranges at
    the end.
    """
    after = BEGINNING
    while True:
        with store.reading() as session:
            ends = session.rows(
                "ranges_to_judge", dataset=dataset, after_time=after[0], after_id=after[1], batch=VERIFY_BATCH
            )
        if not ends:
            return
        for time, trace_id, first, last, *lists in ends:
            until = (time, trace_id)
            yield after, until, PromptPlaces(first, last, Places(*lists))
            after = until
