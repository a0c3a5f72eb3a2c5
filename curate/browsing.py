"""What the trace browser shows: pages of traces by filter, and one trace with everything that belongs to it."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import orjson
import polars as pl

from curate.tasks import ListedTask, load_tasks
from store import InputError, Store

PAGE_TRACES = 50


@dataclass(frozen=True, slots=True)
class TraceFilter:
    """Which traces to show; None lets everything through. rule: one that they failed. text: found in the reasoning."""

    dataset: str | None = None
    split: str | None = None
    template: str | None = None
    teacher: str | None = None
    accepted: bool | None = None
    rule: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class TraceView:
    """One trace in full. trace: its row and its prompt's. verdicts, labels: as stored. listed: what it answers."""

    trace: dict[str, Any]
    messages: list[dict[str, str]]
    verdicts: pl.DataFrame
    labels: pl.DataFrame
    listed: ListedTask


def find_traces(
    store: Store,
    chosen: TraceFilter,
    *,
    after: tuple[datetime, str] | None = None,
    limit: int = PAGE_TRACES,
) -> pl.DataFrame:
    """One page of traces, newest first. `after`: created_at and trace_id of the last row of the page before."""
    after_time, after_id = after or (None, None)
    with store.reading() as session:
        return session.frame("browse_traces", **asdict(chosen), after_time=after_time, after_id=after_id, limit=limit)


def load_choices(store: Store) -> dict[str, list[str]]:
    """The values to filter by: dataset, template, teacher, rule."""
    with store.reading() as session:
        rows = session.rows("browse_choices")
    choices: dict[str, list[str]] = {"dataset": [], "template": [], "teacher": [], "rule": []}
    for name, value in rows:
        choices[name].append(value)
    return choices


def load_trace(store: Store, trace_id: str) -> TraceView:
    """Everything about one trace. Raises InputError where there is none of that id."""
    with store.reading() as session:
        found = session.frame("browse_trace", trace_id=trace_id)
        if found.height == 0:
            raise InputError(f"there is no trace {trace_id!r} in {store.folder}")
        trace = found.row(0, named=True)
        listed = load_tasks(session, trace["dataset"], trace["sid_version"], [trace["list_id"]])[trace["list_id"]]
        return TraceView(
            trace=trace,
            messages=orjson.loads(trace["messages"]),
            verdicts=session.frame("browse_verdicts", trace_id=trace_id),
            labels=session.frame("browse_labels", trace_id=trace_id),
            listed=listed,
        )
