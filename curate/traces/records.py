"""The records of a journal: what a run writes about an attempt, and what a line must contain to become a trace.

A run writes only values that the store can hold: text without lone surrogates, and counts that are numbers. A line that
is read again may contain anything, because disks fail and people edit files. `parse_record` says what is wrong with it.
"""

import math
from datetime import UTC, datetime
from typing import Any

import orjson
import polars as pl

from store.values import storable_text

# The teacher name of rollouts, which are the texts that a student writes during reinforcement learning.
STUDENT = "student"
_MOST = 2**31 - 1

# The types are given explicitly, because Polars cannot infer the type of a column that holds only None in some batch.
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
# The columns of `rollouts`. In a record, `rewards` is an object with the reward of each function by its name.
ROLLOUT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "trace_id": pl.String,
    "run_id": pl.String,
    "step": pl.Int32,
    "rewards": pl.String,
    "reward": pl.Float64,
    "advantage": pl.Float64,
    "kept": pl.Boolean,
}
# These columns are parsed from the completion, and are therefore never in a record.
DERIVED = ("reasoning", "ranking")
REQUIRED = (
    "trace_id",
    "prompt_id",
    "run_id",
    "teacher",
    "model",
    "temperature",
    "max_tokens",
    "sample_index",
    "created_at",
)


class RecordError(ValueError):
    """A line is not a record of gr2. The message is the reason."""


def whole_number(value: object) -> int | None:
    """Return a count that the store can hold, or None for any other value that a server may send."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else None


def finite_number(value: object) -> float | None:
    """Return an amount that the store can hold, or None for any other value."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < math.inf else None  # type: ignore[operator,arg-type]


def text_or_none(value: object) -> str | None:
    """Return text that the store can hold, or None if the value is empty or not text."""
    return storable_text(value) if isinstance(value, str) and value else None


def created_at(record: dict[str, Any]) -> datetime:
    """The time at which a record was made, in UTC without a zone.

    Raises ValueError, TypeError or OverflowError if the record has no valid time.
    """
    time = datetime.fromisoformat(record["created_at"])
    return time.astimezone(UTC).replace(tzinfo=None) if time.tzinfo else time


def rollout_row(record: dict[str, Any]) -> dict[str, Any] | None:
    """The row of a record in `rollouts`, or None if the record is not from a rollout."""
    if (rollout := record.get("rollout")) is None:
        return None
    return {
        **{name: record[name] for name in ("trace_id", "run_id")},
        **rollout,
        "rewards": orjson.dumps(rollout["rewards"]).decode(),
    }


def parse_record(line: bytes, run_id: str) -> dict[str, Any]:
    """Parse one line of a run's journal: "sent", "ended", or "received" with everything that a trace needs.

    Raises RecordError with the reason if the line is anything else.
    """
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordError(f"not a record but {_shown(record)}")
    event = record.get("event")
    if event == "sent":
        _check(record, "trace_id")
    elif event == "received":
        for name in TRACE_SCHEMA:
            if name not in DERIVED:
                _check(record, name)
        if record["run_id"] != run_id:
            raise RecordError(f"of another run, {record['run_id']}")
        if not _is_rollout(record.get("rollout")):
            raise RecordError(f"rollout is {_shown(record['rollout'])}")
        if (record.get("completion") is None) == (record.get("error") is None):
            raise RecordError("it must hold either a completion or an error")
    elif event != "ended":
        raise RecordError(f"event is {_shown(event)}")
    return record


def _check(record: dict[str, Any], name: str) -> None:
    value, kind = record.get(name), TRACE_SCHEMA[name]
    if value is None:
        if name in REQUIRED:
            raise RecordError(f"{name} is missing")
        return
    if kind == pl.String:
        is_good = isinstance(value, str) and (value != "" or not name.endswith("_id"))
    elif kind == pl.Int32:
        is_good = whole_number(value) is not None
    elif kind == pl.Float64:
        is_good = finite_number(value) is not None
    elif kind == pl.Boolean:
        is_good = isinstance(value, bool)
    else:
        is_good = _is_time(record)
    if not is_good:
        raise RecordError(f"{name} is {_shown(value)}")


def _is_rollout(rollout: object) -> bool:
    """Whether a value is None or an object that `rollout_row` can read."""
    if rollout is None:
        return True
    if not isinstance(rollout, dict) or rollout.keys() != ROLLOUT_SCHEMA.keys() - {"trace_id", "run_id"}:
        return False
    rewards = rollout["rewards"]
    return (
        whole_number(rollout["step"]) is not None
        and isinstance(rewards, dict)
        and all(value is None or _is_number(value) for value in (*rewards.values(), rollout["reward"]))
        and _is_number(rollout["advantage"])
        and isinstance(rollout["kept"], bool)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_time(record: dict[str, Any]) -> bool:
    try:
        created_at(record)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _shown(value: object) -> str:
    """A value as a short text, of bounded depth and length."""
    text = f"a {type(value).__name__}" if isinstance(value, (list, dict)) else repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
