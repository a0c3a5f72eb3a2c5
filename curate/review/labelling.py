"""Queues of traces to label: fixed lists that several people work through at the same time.

The traces of a queue are selected by filter and order when it is created, so later traces do not change it. Everything
that is needed to continue after a reload or on another machine is in labels.duckdb: the queue, the label events, and
assignments, which keep two people from getting the same trace at the same time. A label and the next assignment are one
transaction, so the next trace appears only if the label is stored.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import orjson
import polars as pl

from curate.traces.filter import TraceFilter, check_filter
from store import InputError, Session, Store
from store.labels import Label, append_label
from store.names import check_name
from store.values import utc_now

# After this time an assignment is free again, because its annotator has probably left.
ASSIGNMENT_TIMEOUT = timedelta(minutes=15)
DEFAULT_TAGS = ("wrong facts", "generic", "ignores history", "contradicts its order", "well argued")
MOST_TAGS = 9
# The maximum length of an email address.
MOST_NAME = 254


class Order(StrEnum):
    """The order of a queue's traces, which decides the selection if there are too many."""

    RANDOM = "random"
    LOWEST_PASS_RATE = "lowest_pass_rate"  # noqa: S105
    DISPUTED = "disputed"
    NEWEST = "newest"


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """The settings of a queue.

    name: the name for people. order: Order.DISPUTED puts those traces first on which the rulesets paper and strict, and
    all labels, disagree most. size: the maximum number of traces. seed: decides where the order leaves a choice.
    overlap: how many people judge each trace. blind: hides teacher, verdicts and others' labels. tags: the tags that
    the keys 1 to 9 set.
    """

    name: str
    traces: TraceFilter = field(default_factory=TraceFilter)
    order: Order = Order.RANDOM
    size: int = 200
    seed: int = 0
    overlap: int = 1
    blind: bool = True
    tags: tuple[str, ...] = DEFAULT_TAGS

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("a queue needs a name")
        for what, value, most in (("size", self.size, 100_000), ("overlap", self.overlap, 100)):
            if not 1 <= value <= most:
                raise InputError(f"the {what} of a queue is {value:,}; it must be from 1 to {most:,}")
        if len(set(self.tags)) < len(self.tags) or len(self.tags) > MOST_TAGS or not all(self.tags):
            raise InputError(f"the tags of a queue are {list(self.tags)}; give up to {MOST_TAGS} different ones")


@dataclass(frozen=True, slots=True)
class Queue:
    """A stored queue. traces: the number of its traces."""

    queue_id: str
    settings: QueueSettings
    traces: int


class Assignment(NamedTuple):
    """The trace that an annotator is looking at.

    place: position in the queue, from 1. made_at: when the trace was created.
    """

    place: int
    trace_id: str
    made_at: datetime


class Progress(NamedTuple):
    """The progress of a queue, in traces.

    traces: all traces of the queue. finished: traces with enough labels. mine: traces that the annotator has labelled
    or skipped. open: traces that the annotator may still get, including those that others are looking at.
    """

    traces: int
    finished: int
    mine: int
    open: int


def make_queue(store: Store, settings: QueueSettings, author: str) -> Queue:
    """Select the traces and store the queue. Raises InputError if no trace matches, or on an unusable author name."""
    check_annotator(author)
    check_name("queue", settings.name)
    chosen = settings.traces
    statement = {
        Order.RANDOM: "choose_random",
        Order.LOWEST_PASS_RATE: "choose_lowest_pass_rate",
        Order.DISPUTED: "choose_disputed",
        Order.NEWEST: "choose_newest",
    }[settings.order]
    seed = {} if settings.order is Order.NEWEST else {"seed": settings.seed}
    with store.reading() as session:
        check_filter(session, chosen)
        traces = session.frame(statement, where=chosen.where, size=settings.size, **seed, **chosen.parameters)
    if traces.height == 0:
        raise InputError("no answered trace matches the filter, so there is nothing to label; widen the filter")
    queue = Queue(uuid.uuid4().hex[:12], settings, traces.height)
    row = {
        "queue_id": queue.queue_id,
        "name": settings.name,
        "settings": orjson.dumps(_write(settings)).decode(),
        "traces": traces.height,
        "author": author,
        "created_at": utc_now(),
    }
    places = traces.select(
        pl.lit(queue.queue_id).alias("queue_id"), pl.int_range(1, pl.len() + 1).alias("place"), "trace_id", "created_at"
    )
    with store.labelling() as session:
        session.insert("append_label_queue", pl.DataFrame([row]))
        session.insert("append_label_queue_traces", places)
    return queue


def find_queue(store: Store, queue_id: str) -> Queue:
    """Load a queue by id. Raises InputError if there is none."""
    with store.reading() as session:
        rows = session.rows("label_queue", queue_id=queue_id)
    if not rows:
        raise InputError(f"there is no label queue {queue_id!r} in this store; the page Label lists all queues")
    ((settings, traces),) = rows
    return Queue(queue_id, _read(orjson.loads(settings)), traces)


def list_queues(store: Store, annotator: str) -> pl.DataFrame:
    """A table of all queues, newest first, with their progress in total and for one annotator."""
    with store.reading() as session:
        return session.frame("label_queue_list", annotator=annotator)


def claim_next(store: Store, queue: Queue, annotator: str) -> tuple[Assignment | None, Progress]:
    """Assign the next trace to an annotator. Returns the assignment, or None if nothing is left, and the progress."""
    check_annotator(annotator)
    with store.labelling() as session:
        return _claim_next(session, queue, annotator)


def label_assigned(
    store: Store,
    queue: Queue,
    annotator: str,
    assignment: Assignment,
    label: Label,
    *,
    tags: Sequence[str] = (),
    note: str | None = None,
    seconds: float | None = None,
    on_stale: Callable[[], None] | None = None,
) -> tuple[Assignment | None, Progress]:
    """Store a label for the assigned trace, and assign the next one like `claim_next`.

    If the trace is no longer assigned to the annotator, because another window of theirs has labelled it or it was
    left for too long, no label is stored. `on_stale` is then called, so that the annotator can be told.
    """
    check_annotator(annotator)
    if label is Label.UNDO:
        raise ValueError("a trace is labelled good, bad, unsure or skip")
    with store.labelling() as session:
        if session.rows("has_assignment", queue_id=queue.queue_id, trace_id=assignment.trace_id, annotator=annotator):
            append_label(
                session,
                assignment.trace_id,
                annotator,
                label,
                tags=tags,
                note=note or None,
                seconds=seconds,
                queue_id=queue.queue_id,
                shown={"place": assignment.place, "blind": queue.settings.blind},
            )
        elif on_stale is not None:
            on_stale()
        return _claim_next(session, queue, annotator)


def undo_last(store: Store, queue: Queue, annotator: str) -> tuple[Assignment | None, Progress]:
    """Undo the annotator's newest label and assign its trace again.

    Returns None as the assignment if there is no label to undo.
    """
    check_annotator(annotator)
    with store.labelling() as session:
        rows = session.rows("last_label", queue_id=queue.queue_id, annotator=annotator)
        if not rows:
            return None, _queue_state(session, queue, annotator)[1]
        trace_id, taken_back = rows[0]
        append_label(
            session,
            trace_id,
            annotator,
            Label.UNDO,
            queue_id=queue.queue_id,
            shown={"taken_back": taken_back},
        )
        (place,) = session.rows("place_in_queue", queue_id=queue.queue_id, trace_id=trace_id)
        _assign(session, queue, annotator, trace_id)
        return Assignment(*place), _queue_state(session, queue, annotator)[1]


def check_annotator(name: str) -> None:
    """Raise InputError if a name cannot be an annotator's name."""
    if not name.strip() or name != name.strip() or len(name) > MOST_NAME or not name.isprintable():
        raise InputError(f"{name!r} cannot be an annotator's name: use 1 to {MOST_NAME} printable characters")


def _claim_next(session: Session, queue: Queue, annotator: str) -> tuple[Assignment | None, Progress]:
    assignment, progress = _queue_state(session, queue, annotator)
    _assign(session, queue, annotator, None if assignment is None else assignment.trace_id)
    return assignment, progress


def _assign(session: Session, queue: Queue, annotator: str, trace_id: str | None) -> None:
    """Move an annotator's assignment to a trace. None removes the assignment."""
    session.execute("release_assignment", queue_id=queue.queue_id, annotator=annotator)
    if trace_id is not None:
        session.execute(
            "claim_next", queue_id=queue.queue_id, trace_id=trace_id, annotator=annotator, assigned_at=utc_now()
        )


def _queue_state(session: Session, queue: Queue, annotator: str) -> tuple[Assignment | None, Progress]:
    """The next possible assignment of an annotator, and the progress of the queue. Nothing is changed."""
    ((*counts, assignment),) = session.rows(
        "look_at_queue",
        queue_id=queue.queue_id,
        annotator=annotator,
        overlap=queue.settings.overlap,
        assigned_since=utc_now() - ASSIGNMENT_TIMEOUT,
    )
    return None if assignment is None else Assignment(*assignment), Progress(*counts)


def _write(settings: QueueSettings) -> dict[str, Any]:
    """The settings in their stored form. The filter has the same form as in links."""
    return {
        "name": settings.name,
        "traces": settings.traces.to_query(),
        "order": settings.order.value,
        "size": settings.size,
        "seed": settings.seed,
        "overlap": settings.overlap,
        "blind": settings.blind,
        "tags": list(settings.tags),
    }


def _read(stored: dict[str, Any]) -> QueueSettings:
    return QueueSettings(
        **(
            stored
            | {
                "traces": TraceFilter.from_query(stored["traces"]),
                "order": Order(stored["order"]),
                "tags": tuple(stored["tags"]),
            }
        )
    )
