"""Data for the trace browser: pages of traces by filter, and single traces with everything that belongs to them."""

import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import orjson
import polars as pl

from curate.traces.filter import TraceFilter, check_filter
from curate.traces.tasks import ListedTask, load_tasks
from store import InputError, Session, Store

PAGE_TRACES = 50
# A search in texts divides the store into this many windows, newest first, and pauses when its time is used up.
SEARCH_WINDOWS = 40
SEARCH_SECONDS = 0.4
WHOLE_SEARCH_TRACES = 100_000


class Position(NamedTuple):
    """A position among traces, newest first: before older traces, and before smaller ids of the same moment."""

    created_at: datetime
    trace_id: str


@dataclass(frozen=True, slots=True)
class TracePage:
    """One page of traces.

    rows: traces, newest first. next: where the next page begins, or None at the end. unfinished: whether a search in
    texts ran out of time before the page was full; `next` is then the position that it has reached.
    """

    rows: pl.DataFrame
    next: Position | None
    unfinished: bool = False


class Judgement(NamedTuple):
    """The stored verdicts of rules and labels of people on a trace."""

    verdicts: pl.DataFrame
    labels: pl.DataFrame


@dataclass(frozen=True, slots=True)
class TraceView:
    """One trace. trace: its row. listed: the list that it answers. judgement: None if it was not requested."""

    trace: dict[str, Any]
    listed: ListedTask
    judgement: Judgement | None


def find_traces(
    store: Store, chosen: TraceFilter, *, after: Position | None = None, limit: int = PAGE_TRACES
) -> TracePage:
    """Load one page of traces, newest first. after: the `next` of the previous page, or None for the first page.

    Raises InputError on an unknown ruleset or an invalid regular expression.
    """
    with store.reading() as session:
        check_filter(session, chosen)
        if chosen.reads_texts:
            return _search(session, chosen, after, limit)
        rows = _page(session, chosen, after, limit + 1)
    more = rows.height > limit
    rows = rows.head(limit)
    return TracePage(rows, _last(rows) if more else None)


def _page(session: Session, chosen: TraceFilter, after: Position | None, limit: int) -> pl.DataFrame:
    where, parameters = list(chosen.where), chosen.parameters
    if after is not None:
        # This condition comes first, so that DuckDB compares times before it searches texts.
        where.insert(0, "where_before")
        parameters |= {"before_time": after.created_at, "before_id": after.trace_id}
    return session.frame("browse_traces", where=where, limit=limit, **parameters)


def _search(session: Session, chosen: TraceFilter, after: Position | None, limit: int) -> TracePage:
    """Search a page by text: window by window, newest first, until it is full or SEARCH_SECONDS are used up."""
    started = time.perf_counter()
    frames: list[pl.DataFrame] = []
    height = 0
    for start in _window_starts(session, chosen, after):
        window = replace(chosen, since=start)
        rows = _page(session, window, after, limit + 1 - height)
        frames.append(rows)
        height += rows.height
        if height > limit:
            rows = pl.concat(frames).head(limit)
            return TracePage(rows, _last(rows))
        if start is None or start == chosen.since:
            break
        after = Position(start, "")
        if time.perf_counter() - started > SEARCH_SECONDS:
            return TracePage(pl.concat(frames), after, unfinished=True)
    return TracePage(pl.concat(frames), None)


def _window_starts(session: Session, chosen: TraceFilter, after: Position | None) -> list[datetime | None]:
    """The starts of windows with about equally many traces, newest first. The last one is the end of the search."""
    ((traces, edges),) = session.rows(
        "search_windows", shares=[place / SEARCH_WINDOWS for place in range(SEARCH_WINDOWS - 1, 0, -1)]
    )
    starts = edges if traces > WHOLE_SEARCH_TRACES else []
    newest = min((moment for moment in (after and after.created_at, chosen.until) if moment), default=None)
    return [
        *(
            start
            for start in starts
            if (newest is None or start < newest) and (chosen.since is None or start > chosen.since)
        ),
        chosen.since,
    ]


def _last(rows: pl.DataFrame) -> Position:
    return Position(*rows.select("created_at", "trace_id").row(-1))


def load_choices(store: Store) -> dict[str, list[Any]]:
    """Load the values to filter by, for each field of TraceFilter.

    Rules are those that any trace failed or was lost at.
    """
    with store.reading() as session:
        return session.frame("browse_choices").row(0, named=True)


def count_traces(store: Store, chosen: TraceFilter) -> int:
    """The number of matching traces. A filter on texts has to read all of them."""
    with store.reading() as session:
        check_filter(session, chosen)
        ((traces,),) = session.rows("count_traces", where=chosen.where, **chosen.parameters)
    return int(traces)


def load_trace(store: Store, trace_id: str, made_at: datetime | None = None, *, judged: bool = True) -> TraceView:
    """Load one trace with the list that it answers. judged: also load its verdicts and labels.

    made_at: the trace's created_at, if known, which avoids a search. Raises InputError on an unknown id, or if the
    items of the list no longer have semantic IDs.
    """
    with store.reading() as session:
        return load_trace_view(session, trace_id, made_at, judged=judged)


def load_trace_view(
    session: Session, trace_id: str, made_at: datetime | None = None, *, judged: bool = False
) -> TraceView:
    """Load one trace within a transaction, see `load_trace`."""
    parameters = {} if made_at is None else {"made_at": made_at}
    rows = session.frame("browse_trace", where=["made_at"] if parameters else [], trace_id=trace_id, **parameters)
    if rows.height == 0:
        raise InputError(f"there is no trace {trace_id!r} in this store; copy its id again")
    trace = rows.row(0, named=True)
    try:
        listed = load_tasks(session, trace["dataset"], trace["sid_version"], [trace["list_id"]])[trace["list_id"]]
    except KeyError as lost:
        raise InputError(
            f"trace {trace_id} shows {lost}, which no longer has a semantic ID of version {trace['sid_version']!r}"
        ) from lost
    judgement = None
    if judged:
        judgement = Judgement(
            verdicts=session.frame("browse_verdicts", trace_id=trace_id, created_at=trace["created_at"]),
            labels=session.frame("browse_labels", trace_id=trace_id),
        )
    return TraceView(trace, listed, judgement)


def load_messages(store: Store, prompt_id: str) -> list[dict[str, str]]:
    """Load the chat messages of a prompt (role and content), exactly as they were sent.

    They are separate from the trace, because reading them takes as long as reading all the rest of it. Raises
    InputError on an unknown prompt.
    """
    with store.reading() as session:
        rows = session.rows("prompt_messages", prompt_id=prompt_id)
    if not rows:
        raise InputError(f"there is no prompt {prompt_id!r} in this store; copy its id again")
    messages: list[dict[str, str]] = orjson.loads(rows[0][0])
    return messages
