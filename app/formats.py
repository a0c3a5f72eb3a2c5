"""Renders rows as files for other programs."""

import io
from collections.abc import Iterable
from typing import Any, BinaryIO

import orjson
import polars as pl
import pyarrow.parquet as pq

# A spreadsheet takes this for the start of a formula. It also skips blanks and line breaks before it.
_FORMULA = r"^[\s\x00]*[=+\-@＝＋－＠]|^[\t\r\n]"
_AS_TEXT = "'"


def render_rows(rows: pl.DataFrame, format: str) -> bytes:  # noqa: A002
    """Render a frame as csv, json or parquet, see `write_rows`."""
    buffer = io.BytesIO()
    write_rows([rows], format, buffer)
    return buffer.getvalue()


def write_rows(frames: Iterable[pl.DataFrame], format: str, file: BinaryIO) -> None:  # noqa: A002
    """Write frames of the same schema as one file of csv, json (one array of objects) or parquet.

    In CSV, nested values are JSON. A text or column name gets a ' in front if a spreadsheet would run it as a formula,
    because it starts with = + - @ or a tab or line break. Numbers stay as they are. JSON and Parquet keep all texts
    unchanged.
    """
    if format == "parquet":
        _write_parquet(frames, file)
    elif format == "json":
        _write_json(frames, file)
    else:
        for place, frame in enumerate(frames):
            file.write(_for_spreadsheets(frame).write_csv(include_header=place == 0).encode())


def _write_parquet(frames: Iterable[pl.DataFrame], file: BinaryIO) -> None:
    writer = None
    try:
        for frame in frames:
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or pq.ParquetWriter(file, table.schema, compression="zstd")
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _write_json(frames: Iterable[pl.DataFrame], file: BinaryIO) -> None:
    file.write(b"[")
    separator = b""
    for frame in frames:
        if frame.height:
            # The brackets of each frame's own array are removed.
            file.write(separator + orjson.dumps(frame.to_dicts(), default=str)[1:-1])
            separator = b","
    file.write(b"]\n")


def _for_spreadsheets(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the frame with nested values as JSON, and without texts that a spreadsheet would run."""
    flat = frame.with_columns(
        pl.Series(name, [_json(value) for value in frame[name].to_list()], dtype=pl.String)
        for name, kind in frame.schema.items()
        if kind.is_nested()
    )
    texts = pl.col(pl.String)
    safe = flat.with_columns(pl.when(texts.str.contains(_FORMULA)).then(_AS_TEXT + texts).otherwise(texts).name.keep())
    formulas = pl.Series(safe.columns, dtype=pl.String).str.contains(_FORMULA)
    return safe.rename(
        {name: _AS_TEXT + name for name, is_formula in zip(safe.columns, formulas, strict=True) if is_formula}
    )


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value, default=str).decode()
