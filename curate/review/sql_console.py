"""Runs SQL that people write in the store's sandbox, within limits, and describes the tables that they can query.

The sandbox blocks files, networks, settings and writes. This module allows only a single query: other statements that
DuckDB still runs there (DETACH, USE, SET SCHEMA, ROLLBACK, temporary tables) would change the sandbox for later
statements, or for all readers of the process.
"""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import duckdb
import orjson
import polars as pl
import pyarrow as pa

import store as store_package
from store import InputError, Session, Store

QUERIES = "SELECT, FROM, WITH, VALUES, PIVOT, SUMMARIZE, DESCRIBE, SHOW or EXPLAIN"


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
# Small, so that rows of a megabyte each are measured before they fill the memory.
_BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The result of a query.

    rows: with distinct column names. complete: whether these are all rows. seconds: the time that it took.
    """

    rows: pl.DataFrame
    complete: bool
    seconds: float


def run_sql(store: Store, query: str) -> pl.DataFrame:
    """All rows of one query, without a time limit. Raises InputError under the same conditions as `query_rows`."""
    return query_rows(store, query, UNLIMITED).rows


def query_rows(store: Store, query: str, limits: QueryLimits) -> QueryResult:
    """The rows of one query, up to the limits. It is interrupted after `limits.seconds`.

    Values of types that Polars, Parquet or CSV cannot hold are returned as DuckDB's text.

    Raises InputError if the text is not exactly one query, if the time is used up, or if the query fails, with DuckDB's
    own message and position.
    """
    started = time.perf_counter()
    with store.sandbox() as session, _time_limit(session.connection, limits.seconds) as expired:
        try:
            rows, complete = _fetch(session.connection, _only_query(session.connection, query), limits)
        # After the first rows, Arrow reports DuckDB's errors as OSError.
        except (duckdb.Error, OSError, pa.ArrowException) as error:
            if expired.is_set():
                raise InputError(
                    f"the query was stopped after {limits.seconds:g} s, its time limit; reduce its work (where, limit, "
                    "using sample), or run it with gr2 sql, which has no time limit"
                ) from error
            raise InputError(_shortened(str(error).strip())) from error
    return QueryResult(rows, complete, time.perf_counter() - started)


def _shortened(message: str) -> str:
    """A message without its middle. It may quote a value of any length between the reason and the position."""
    return message if len(message) <= 4_000 else f"{message[:2_000]}\n[...]\n{message[-2_000:]}"


@contextmanager
def _time_limit(connection: duckdb.DuckDBPyConnection, seconds: float | None) -> Iterator[threading.Event]:
    """Interrupts the query of this connection after a time, and then sets the event. Other readers are not affected."""
    finished, expired = threading.Event(), threading.Event()

    def watch() -> None:
        if finished.wait(seconds):
            return
        expired.set()
        # Repeatedly, because DuckDB forgets an interrupt that comes between two steps of a query.
        while not finished.wait(0.05):
            connection.interrupt()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield expired
    finally:
        finished.set()
        watcher.join()


# --- what may run ---

# MULTI is a PIVOT that looks up its columns first.
_ALLOWED = (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)
_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?(\([^()]*\))?", re.IGNORECASE)


def _only_query(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.Statement:
    """The only statement of a text. Raises InputError if there are none or several, or if it is not a query."""
    statements = connection.extract_statements(text)
    if not statements:
        raise InputError(f"there is no statement; write one query: {QUERIES}")
    if len(statements) > 1:
        raise InputError(f"there are {len(statements)} statements; run one query at a time")
    (statement,) = statements
    kind = _kind(statement)
    # EXPLAIN ANALYZE runs the statement that it explains, so that must be a query too.
    if kind == duckdb.StatementType.EXPLAIN:
        explained = connection.extract_statements(_EXPLAIN.sub("", statement.query, count=1))
        kind = _kind(explained[0]) if len(explained) == 1 else None
    if kind not in _ALLOWED:
        raise InputError(
            f"{'this' if kind is None else kind.name} is not a query and is not run; the store is read-only here: "
            f"write one query: {QUERIES}"
        )
    return statement


def _kind(statement: duckdb.Statement) -> duckdb.StatementType | None:
    try:
        return statement.type
    except ValueError:
        # DuckDB's Python client has no name for some kinds.
        return None


# --- rows ---

# Types that CSV, Parquet, Polars and Streamlit all accept as they are. Lists and structs may contain fewer of them.
_INTEGERS = {"tinyint", "smallint", "integer", "bigint", "utinyint", "usmallint", "uinteger", "ubigint"}
_NESTABLE = _INTEGERS | {"boolean", "float", "double", "varchar", "uuid"}
_TAKEN = _NESTABLE | {"hugeint", "decimal", "date", "timestamp", "timestamp with time zone"}


def _fetch(
    connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement, limits: QueryLimits
) -> tuple[pl.DataFrame, bool]:
    """The rows up to the limits, and whether these are all rows."""
    relation = _bound(connection, statement)
    names = _distinct(relation.columns)
    taken = [_is_taken(kind) for kind in relation.types]
    if not all(taken):
        # By position, because names may repeat.
        columns = [duckdb.SQLExpression(f"#{place}") for place in range(1, len(names) + 1)]
        relation = relation.select(
            *(
                (column if as_is else column.cast("varchar")).alias(name)
                for column, as_is, name in zip(columns, taken, names, strict=True)
            )
        )
    reader = relation.to_arrow_reader(_BATCH_ROWS)
    frames = [_framed(pa.Table.from_batches([], reader.schema), names, limits)]
    height = size = 0
    for batch in reader:
        frame = _framed(pa.Table.from_batches([batch]), names, limits)
        room = frame.height if limits.rows is None else limits.rows - height
        size += int(frame.estimated_size())
        if room < frame.height or (limits.bytes is not None and size > limits.bytes):
            fitting = room if limits.bytes is None else min(room, _fitting(frame, limits.bytes - size, height))
            return _joined([*frames, frame.head(fitting)], limits), False
        frames.append(frame)
        height += frame.height
    return _joined(frames, limits), True


def _bound(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> duckdb.DuckDBPyRelation:
    try:
        return connection.sql(statement)
    except (duckdb.BinderException, duckdb.CatalogException):
        # This raises the same error again, but with its position in the text.
        connection.execute(statement)
        raise


def _fitting(frame: pl.DataFrame, spare: int, height: int) -> int:
    """The number of rows to keep of a frame that is `-spare` bytes too large. The first frame keeps at least one."""
    kept = frame.height if spare >= 0 else int(frame.height * (1 + spare / frame.estimated_size()))
    return max(kept, 0 if height else 1)


def _distinct(names: Sequence[str]) -> list[str]:
    """The names, with _1, _2, ... appended to repeated ones, because frames and files need distinct names.

    >>> _distinct(["a", "a", "a_1"])
    ['a', 'a_2', 'a_1']
    """
    distinct: dict[str, None] = {}
    for place, name in enumerate(names):
        free, number = name, 0
        while free in distinct or (number and free in names[place:]):
            number += 1
            free = f"{name}_{number}"
        distinct[free] = None
    return list(distinct)


def _is_taken(kind: Any, known: set[str] = _TAKEN) -> bool:
    if kind.id in ("list", "array"):
        return _is_taken(kind.children[0][1], _NESTABLE)
    if kind.id == "struct":
        return bool(kind.children) and all(_is_taken(child, _NESTABLE) for _, child in kind.children)
    return kind.id in known


def _framed(table: pa.Table, names: list[str], limits: QueryLimits) -> pl.DataFrame:
    frame = pl.DataFrame(pl.from_arrow(table.rename_columns(names)))
    if limits.characters is None:
        return frame
    frame = frame.with_columns(
        pl.Series(name, [None if value is None else _json(value) for value in frame[name].to_list()], pl.String)
        for name, kind in frame.schema.items()
        if kind.is_nested()
    )
    texts = pl.col(pl.String)
    return frame.with_columns(
        pl.when(texts.str.len_chars() > limits.characters)
        .then(texts.str.head(limits.characters) + " …")
        .otherwise(texts)
        .name.keep()
    )


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def _joined(frames: list[pl.DataFrame], limits: QueryLimits) -> pl.DataFrame:
    return pl.DataFrame([_settled(column, limits) for column in pl.concat(frames)])


# The years of Python. DuckDB has more, but a later or earlier time cannot be rendered.
_FIRST_TIME, _LAST_TIME = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)
# JavaScript represents all integers up to here exactly. A browser rounds larger ones.
_LARGEST_EXACT = 2**53


def _settled(column: pl.Series, limits: QueryLimits) -> pl.Series:
    """The column in a type that all consumers support.

    Decimals without decimal places, such as sums of integers, become Int64, or text if a value is too large. Times
    become counts since 1970 if a value is before the year 1 or after 9999. For a screen, integers become text if a
    browser would round one of them.
    """
    kind = column.dtype
    if kind == pl.Decimal(38, 0):
        whole = column.cast(pl.Int64, strict=False)
        column = whole if whole.null_count() == column.null_count() else column.cast(pl.String)
    elif isinstance(kind, pl.Date | pl.Datetime):
        counts = column.cast(pl.Int64)
        first, last = pl.Series([_FIRST_TIME, _LAST_TIME]).dt.replace_time_zone(None).cast(kind).cast(pl.Int64)
        return column if _lies_within(counts, first, last) else counts
    if limits.characters is not None and column.dtype.is_integer():
        return column if _lies_within(column, -_LARGEST_EXACT, _LARGEST_EXACT) else column.cast(pl.String)
    return column


def _lies_within(integers: pl.Series, low: int, high: int) -> bool:
    # As Python integers, because Polars compares in the column's own type, which may be too small for the bounds.
    return all(low <= int(str(edge)) <= high for edge in (integers.min(), integers.max()) if edge is not None)


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
    """The first suggestion for a chart: the first number over a time, or else over a text or another number.

    Counts by two small integers become a heatmap. None if the result has no numbers, no rows or only one column.

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

    Columns: table, column, type, meaning. A macro is one row. Meanings are from docs/reference/data-model.md, and empty
    if that is not installed.
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
    """A meaning with "as in TABLE" replaced by the meaning in that table."""
    table = re.fullmatch(r"as in (\S+?)(; .+)?", meaning)
    there = meanings.get((table[1], column)) if table else None
    return _followed(meanings, column, there) + (table[2] or "") if table and there else meaning


def _plain(markdown: str) -> str:
    return " ".join(markdown.replace("`", "").split())
