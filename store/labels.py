"""People's labels: append-only events in a database file of their own; an annotator's last event on a trace wins."""

import uuid
from collections.abc import Sequence
from enum import StrEnum

import polars as pl

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
    """Append one event and return its id. `seconds`: how long the annotator looked."""
    event_id = uuid.uuid4().hex
    event = pl.DataFrame(
        {
            "event_id": [event_id],
            "trace_id": [trace_id],
            "annotator": [annotator],
            "label": [label.value],
            "tags": pl.Series([list(tags)], dtype=pl.List(pl.String)),
            "note": pl.Series([note], dtype=pl.String),
            "seconds": pl.Series([seconds], dtype=pl.Float64),
            "created_at": [utc_now()],
        }
    )
    with store.labelling() as session:
        session.put("label_events", event)
    return event_id
