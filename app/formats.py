"""Rows as bytes for other programs."""

import io
from typing import Any

import orjson
import polars as pl


def render_rows(rows: pl.DataFrame, format: str) -> bytes:  # noqa: A002
    """A frame as csv, json (one array of objects) or parquet; in CSV, nested values are JSON."""
    if format == "parquet":
        buffer = io.BytesIO()
        rows.write_parquet(buffer, compression="zstd")
        return buffer.getvalue()
    if format == "json":
        return orjson.dumps(rows.to_dicts(), default=str, option=orjson.OPT_APPEND_NEWLINE)
    nested = [name for name, kind in rows.schema.items() if kind.is_nested()]
    flat = rows.with_columns(
        pl.Series(name, [_json(value) for value in rows[name].to_list()], dtype=pl.String) for name in nested
    )
    return flat.write_csv().encode()


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value, default=str).decode()
