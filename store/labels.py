"""Labels by people: append-only events in a separate database file. An annotator's last event on a trace counts."""

import json
import uuid
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from store.database import Session
from store.folder import Store
from store.values import utc_now


class Label(StrEnum):
    """An annotator's judgement of a trace. UNDO withdraws the previous one."""

    GOOD = "good"
    BAD = "bad"
    UNSURE = "unsure"
    SKIP = "skip"
    UNDO = "undo"


def put_label(
    store: Store,
    trace_id: str,
    annotator: str,
    label: Label,
    *,
    tags: Sequence[str] = (),
    note: str | None = None,
    seconds: float | None = None,
) -> str:
    """Append one event outside of any queue and return its id.

    seconds: how long the annotator looked at the trace, or None if unknown.
    """
    with store.labelling() as session:
        return append_label(session, trace_id, annotator, label, tags=tags, note=note, seconds=seconds)


def append_label(
    session: Session,
    trace_id: str,
    annotator: str,
    label: Label,
    *,
    tags: Sequence[str] = (),
    note: str | None = None,
    seconds: float | None = None,
    queue_id: str | None = None,
    shown: Mapping[str, Any] | None = None,
) -> str:
    """Append one event within a transaction of `Store.labelling` and return its id.

    queue_id: the queue that the trace was labelled in, or None. shown: facts about what the annotator saw of the trace.
    """
    event_id = uuid.uuid4().hex
    session.execute(
        "append_label_event",
        event_id=event_id,
        trace_id=trace_id,
        annotator=annotator,
        label=label.value,
        tags=list(tags),
        note=note,
        seconds=seconds,
        queue_id=queue_id,
        shown=None if shown is None else json.dumps(shown),
        now=utc_now(),
    )
    return event_id
