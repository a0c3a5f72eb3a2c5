"""People's labels: append-only events in a database file of their own; an annotator's last event on a trace wins."""

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any

import polars as pl

from store.database import Session
from store.folder import Store
from store.values import utc_now


class Label(StrEnum):
    """What an annotator says of a trace; UNDO takes back their last word."""

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
    """Append one event outside of any queue and return its id. `seconds`: how long the annotator looked."""
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
    """The same within a transaction of `Store.labelling`. shown: what the annotator saw of the trace."""
    event_id = uuid.uuid4().hex
    # Events are ordered by their time, so that a clock which was set back must not put one before what it follows.
    ((newest,),) = session.rows("newest_label_time")
    now = utc_now() if newest is None else max(utc_now(), newest + timedelta(microseconds=1))
    event = pl.DataFrame(
        {
            "event_id": [event_id],
            "trace_id": [trace_id],
            "annotator": [annotator],
            "label": [label.value],
            "tags": pl.Series([list(tags)], dtype=pl.List(pl.String)),
            "note": pl.Series([note], dtype=pl.String),
            "seconds": pl.Series([seconds], dtype=pl.Float64),
            "queue_id": pl.Series([queue_id], dtype=pl.String),
            "shown": pl.Series([None if shown is None else json.dumps(shown)], dtype=pl.String),
            "created_at": [now],
        }
    )
    session.put("label_events", event)
    return event_id
