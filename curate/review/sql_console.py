"""Runs SQL that people write, within limits, and describes the tables that they can query.

The SQL runs in a child process (`curate.review.sql_child`), because some functions of DuckDB cannot be interrupted and
take as much memory as they like. Everybody else can use the store in the meantime: the child reads the store itself
only for a moment, and a copy if that is not enough.
"""

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import polars as pl
import pyarrow as pa

import store as store_package
from store import InputError, Session, Store, StoreError
from store.child_processes import ChildDiedError, pool_of
from store.file_locks import WAIT_S, busy
from store.temporary import temporary_folder


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """Limits of a query. None means no limit.

    bytes: size of the rows in memory. characters: length of a text. With a limit of characters, longer texts are cut
    and nested values become JSON, so that a screen can show them.
    """

    rows: int | None = None
    bytes: int | None = None
    seconds: float | None = None
    characters: int | None = None


UNLIMITED = QueryLimits()
SCREEN = QueryLimits(rows=10_000, bytes=16_000_000, seconds=20, characters=5_000)
DOWNLOAD = QueryLimits(rows=1_000_000, bytes=256_000_000, seconds=20)
# The batch is small, so that rows of a megabyte each are measured before they fill the memory.
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The result of a query.

    rows: with distinct column names. complete: whether these are all rows. seconds: how long the query took.
    """

    rows: pl.DataFrame
    complete: bool
    seconds: float


# The module that the child process runs, and its file of rows. This process does not need to import the module.
CHILD = "curate.review.sql_child"
ROWS = "rows.arrow"
# A scan fills all the memory that it gets with cached blocks, so a query gets more only if it fails with little. It
# then also holds fewer rows at a time, because rows of megabytes may have taken the memory.
_LITTLE = {"memory": "200MB", "batch_rows": 256}
_MUCH = {"memory": "700MB", "batch_rows": 8}
# Rows are yielded in frames of at least this size, if there are enough rows.
_FRAME_BYTES = 4_000_000


def run_sql(store: Store, query: str) -> pl.DataFrame:
    """All rows of one query, without a time limit. Raises InputError under the same conditions as `query_rows`."""
    return query_rows(store, query, UNLIMITED).rows


def query_rows(store: Store, query: str, limits: QueryLimits) -> QueryResult:
    """Return the rows of one query, up to the limits. The query is ended after `limits.seconds`, whatever it does.

    Values of types that Polars, Parquet or CSV cannot hold are returned as DuckDB's text.

    Raises InputError if the text is not exactly one query, if the time or the memory is used up, or if the query fails,
    with DuckDB's own message and position. Raises StoreError if the store cannot be read.
    """
    started = time.perf_counter()
    with query_frames(store, query, limits) as frames:
        rows = pl.concat(frames)
        return QueryResult(rows, frames.complete, time.perf_counter() - started)


@contextmanager
def query_frames(store: Store, query: str, limits: QueryLimits) -> "Iterator[QueryFrames]":
    """Yield the same rows as `query_rows` in frames, so that all rows need not fit in memory.

    Valid within the block.
    """
    ends = None if limits.seconds is None else time.monotonic() + limits.seconds
    # A store that is read-only can be queried too.
    parent = store.folder if os.access(store.folder, os.W_OK) else Path(tempfile.gettempdir())
    with temporary_folder(parent) as folder:
        copied, memory = False, _LITTLE
        while True:
            work = Path(tempfile.mkdtemp(dir=folder))
            source = {"query": query, "store": str(store.folder), "work": str(work), "copied": copied}
            try:
                answer = pool_of(CHILD).ask(source | asdict(limits) | memory, ends)
            except TimeoutError as error:
                raise InputError(_out_of_time(limits)) from error
            except ChildDiedError as error:
                if error.signal is signal.SIGALRM and not copied:
                    copied = True
                    continue
                raise InputError(
                    _out_of_time(limits) if error.signal is signal.SIGXCPU else _out_of_memory(f"it ended with {error}")
                ) from error
            if "out_of_memory" not in answer or memory is _MUCH:
                break
            memory = _MUCH
        yield _read(answer, work, limits)


def _read(answer: dict[str, Any], work: Path, limits: QueryLimits) -> "QueryFrames":
    """Read the rows of an answer. Raises the error that the answer reports instead."""
    if "locked" in answer:
        raise busy(Path(answer["locked"]), "another process", WAIT_S)
    if "unreadable" in answer:
        raise StoreError(_shortened(answer["unreadable"]))
    if "out_of_memory" in answer:
        # The rest of DuckDB's message advises settings, which users cannot change here.
        raise InputError(_out_of_memory(_shortened(answer["out_of_memory"].partition("\n")[0])))
    if "failed" in answer:
        raise InputError(_shortened(answer["failed"]))
    return QueryFrames(work / ROWS, limits, complete=answer["complete"])


def _out_of_time(limits: QueryLimits) -> str:
    return (
        f"the query was stopped after {limits.seconds:g} s, its time limit; reduce its work (where, limit, "
        "using sample), or run it with gr2 sql, which has no time limit"
    )


def _out_of_memory(reason: str) -> str:
    return f"the query needs more than the 1 GB of memory that it may use ({reason}); reduce its work (where, limit)"


def _shortened(message: str) -> str:
    """Cut the middle out of a long message. It may quote a value of any length between the reason and the position."""
    return message if len(message) <= 4_000 else f"{message[:2_000]}\n[...]\n{message[-2_000:]}"


# --- rows ---


class QueryFrames:
    """The rows of a query in frames of about _FRAME_BYTES. There is at least one frame, and all have the same schema.

    complete: whether these are all rows.
    """

    def __init__(self, file: Path, limits: QueryLimits, *, complete: bool) -> None:
        self.complete = complete
        self._file = file
        self._types = self._settled_types(limits)

    def __iter__(self) -> Iterator[pl.DataFrame]:
        for frame in self._raw():
            yield frame.cast(self._types)  # type: ignore[arg-type]

    def _raw(self) -> Iterator[pl.DataFrame]:
        with pa.OSFile(str(self._file)) as source, pa.ipc.open_file(source) as reader:
            batches: list[pa.RecordBatch] = []
            for place in range(reader.num_record_batches):
                batches.append(reader.get_batch(place))
                if sum(batch.nbytes for batch in batches) > _FRAME_BYTES:
                    yield _framed(batches, reader.schema)
                    batches = []
            if batches or reader.num_record_batches == 0:
                yield _framed(batches, reader.schema)

    def _settled_types(self, limits: QueryLimits) -> dict[str, pl.DataType]:
        """The columns to cast, with types that all consumers support. They depend on all values of a column."""
        schema = next(self._raw()).schema
        doubtful = [name for name, kind in schema.items() if _is_doubtful(kind, limits)]
        if not doubtful:
            return {}
        edges = [{name: _edges(frame[name]) for name in doubtful} for frame in self._raw()]
        settled = {
            name: _settled_type(
                schema[name], min(edge[name][0] for edge in edges), max(edge[name][1] for edge in edges), limits
            )
            for name in doubtful
        }
        return {name: kind for name, kind in settled.items() if kind is not None}


def _framed(batches: list[pa.RecordBatch], schema: pa.Schema) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(pa.Table.from_batches(batches, schema)))


# The range of Python's years. DuckDB has more years, but Python cannot render such times.
_FIRST_TIME, _LAST_TIME = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
# JavaScript represents all integers up to here exactly. A browser rounds larger ones.
_LARGEST_EXACT = 2**53
_WHOLE = pl.Decimal(38, 0)


def _is_doubtful(kind: pl.DataType, limits: QueryLimits) -> bool:
    return kind == _WHOLE or isinstance(kind, pl.Date | pl.Datetime) or (_is_shown(limits) and kind.is_integer())


def _settled_type(kind: pl.DataType, low: int, high: int, limits: QueryLimits) -> pl.DataType | None:
    """The type for a doubtful column whose values lie between two integers, or None if it can stay as it is.

    Decimals without decimal places, such as sums of integers, become Int64, or text if a value is too large. Times
    become counts since 1970 if a value is before the year 1 or after 9999. For a screen, integers become text if a
    browser would round one of them.
    """
    if isinstance(kind, pl.Date | pl.Datetime):
        first, last = pl.Series([_FIRST_TIME, _LAST_TIME]).dt.replace_time_zone(None).cast(kind).cast(pl.Int64)
        return None if first <= low and high <= last else pl.Int64()
    if _is_shown(limits) and not -_LARGEST_EXACT <= low <= high <= _LARGEST_EXACT:
        return pl.String()
    if kind == _WHOLE:
        return pl.Int64() if low >= -(2**63) and high < 2**63 else pl.String()
    return None


def _is_shown(limits: QueryLimits) -> bool:
    return limits.characters is not None


def _edges(column: pl.Series) -> tuple[int, int]:
    """The smallest and the largest value of a doubtful column as integers. (0, 0) if there are no values."""
    counts = column.cast(pl.Int64) if column.dtype.is_temporal() else column
    low: Any = counts.min()
    high: Any = counts.max()
    return (0, 0) if low is None else (int(low), int(high))


# --- charts ---

Mark = Literal["bar", "line", "area", "point", "heatmap"]
MARKS: tuple[Mark, ...] = get_args(Mark)


class ChartChoice(NamedTuple):
    """The columns of a result to draw. colour: None means a single colour."""

    x: str
    y: str
    colour: str | None
    mark: Mark


def suggest_chart(rows: pl.DataFrame) -> ChartChoice | None:
    """Suggest a chart: the first number over a time, or else over a text or another number.

    Counts by two small integers become a heatmap. Returns None if the result has no numbers, no rows or only one
    column.

    >>> suggest_chart(pl.DataFrame({"teacher": ["a", "b"], "traces": [3, 4]}))
    ChartChoice(x='teacher', y='traces', colour=None, mark='bar')
    """
    times = [name for name, kind in rows.schema.items() if kind.is_temporal()]
    numbers = [name for name, kind in rows.schema.items() if kind.is_numeric()]
    texts = [name for name, kind in rows.schema.items() if kind in (pl.String, pl.Boolean)]
    if not numbers or rows.width < 2 or rows.height == 0:
        return None
    if rows.columns[:3] == numbers[:3] and len(numbers) > 2 and all(_is_small(rows[name]) for name in numbers[:2]):
        return ChartChoice(numbers[0], numbers[1], numbers[2], "heatmap")
    x = next(iter([*times, *texts, *numbers]))
    y = next((name for name in numbers if name != x), None)
    if y is None:
        return None
    colour = next((name for name in texts if name != x and rows[name].n_unique() <= 20), None)
    return ChartChoice(x, y, colour, "line" if x in times else "bar" if x in texts else "point")


def _is_small(column: pl.Series) -> bool:
    return column.dtype.is_integer() and column.n_unique() <= 30


# --- the schema ---


def load_schema(store: Store, containing: str = "") -> pl.DataFrame:
    """The columns of all tables, views and macros whose description contains a text.

    Columns: table, column, type, meaning. A macro is one row. The meanings come from docs/reference/data-model.md, and
    are empty if that file is not installed.
    """
    with store.reading() as session:
        rows = _schema_rows(session)
    text = containing.strip().casefold()
    return pl.DataFrame(
        [row for row in rows if text in "\n".join(row).casefold()],
        schema={"table": pl.String, "column": pl.String, "type": pl.String, "meaning": pl.String},
        orient="row",
    )


def _schema_rows(session: Session) -> list[tuple[str, str, str, str]]:
    meanings = read_meanings()
    columns = [
        (table, column, kind, meanings.get((table, column), ""))
        for table, column, kind in session.rows("schema_columns")
    ]
    macros = [
        (f"{name}({', '.join(parameters)})", "", "macro", meanings.get((name, ""), ""))
        for name, parameters in session.rows("schema_macros")
    ]
    return columns + macros


def read_meanings() -> dict[tuple[str, str], str]:
    """The meanings in docs/reference/data-model.md by table and column. The column "" stands for the whole table."""
    # An installed wheel may contain the document beside the schema. A checkout has it in docs/.
    package = Path(store_package.__file__).parent
    for path in (package / "data-model.md", package.parent / "docs" / "reference" / "data-model.md"):
        if path.is_file():
            return _parse_meanings(path.read_text("utf-8"))
    return {}


def _parse_meanings(document: str) -> dict[tuple[str, str], str]:
    meanings: dict[tuple[str, str], str] = {}
    for part in document.split("\n### ")[1:]:
        heading, _, body = part.partition("\n")
        table = heading.partition("(")[0]
        meanings[table, ""] = _plain(body.strip().partition("\n\n")[0])
        for columns, meaning in re.findall(r"^\| ([a-z_0-9, ]+) \|[^|\n]*\| (.+) \|$", body, re.MULTILINE):
            for column in columns.split(", "):
                meanings[table, column] = _plain(meaning)
    return {key: _followed(meanings, key[1], meaning) for key, meaning in meanings.items()}


def _followed(meanings: dict[tuple[str, str], str], column: str, meaning: str) -> str:
    """Return a meaning with "as in TABLE" replaced by the meaning in that table."""
    table = re.fullmatch(r"as in (\S+?)(; .+)?", meaning)
    there = meanings.get((table[1], column)) if table else None
    return _followed(meanings, column, there) + (table[2] or "") if table and there else meaning


def _plain(markdown: str) -> str:
    return " ".join(markdown.replace("`", "").split())
