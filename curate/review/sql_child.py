"""The child process that runs users' SQL in a sandbox and writes the rows to an Arrow file.

It runs only a single query. Other statements that DuckDB runs in a sandbox (DETACH, USE, SET SCHEMA, ROLLBACK,
temporary tables) would change the sandbox. `answer` describes the request and the answer. The parent's side is
`curate.review.sql_console`.
"""

import os
import re
import resource
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from store.child_processes import serve
from store.database_copies import LockedError, copy_database, linked_database
from store.engines import SandboxLimits, sandbox

QUERIES = "SELECT, FROM, WITH, VALUES, PIVOT, SUMMARIZE, DESCRIBE, SHOW or EXPLAIN"
# The maximum memory of the process. DuckDB gets less, because some of its functions do not count all their memory.
MEMORY_BYTES = 1_000_000_000
SPILL = "10GB"
# How long a query may keep writers waiting.
HOLD_S = 1.5
ROWS = "rows.arrow"
# Labels are attached only if the query may name them: the tables themselves, the lists of all tables, or a view of
# labels.
_NAMES_LABELS = re.compile(r"label|duckdb_|information_schema|show\s+all|sqlite_master|pg_", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile("^Out of Memory Error|bad_alloc")
_MISSING_LABELS = re.compile(r"[\"']?labels[\"']?[ .].*does not exist", re.IGNORECASE | re.DOTALL)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run a query, and write its rows to the file ROWS in the folder `work`.

    Request: `query`; `store`: the store's folder; `work`: an empty folder; `memory`: for DuckDB, such as "200MB";
    `batch_rows`: how many rows to hold before their size is measured; `copied`: whether to read a copy of the store. If
    not, the store itself is read for at most HOLD_S, and SIGALRM then ends the process. `rows`, `bytes`, `characters`,
    `seconds`: see `QueryLimits`.

    Answer: `complete`: whether these are all rows; or an error message, which is `failed` (of the query), `unreadable`
    (of the store) or `out_of_memory`; or `locked`: the path of the file.
    """
    try:
        _limit_cpu(request["seconds"])
        return {"complete": _run(request)}
    except LockedError as error:
        return {"locked": str(error)}
    except UnreadableError as error:
        return {"unreadable": str(error)}
    # After the first rows, Arrow reports DuckDB's errors as OSError.
    except (duckdb.Error, OSError, MemoryError, pa.ArrowException, QueryError) as error:
        message = str(error).strip()
        if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(message):
            # The process does not get back all the memory that the query took.
            return {"out_of_memory": message, "last": True}
        # Only errors of the operating system have a number, such as a full disk.
        return {"unreadable" if isinstance(error, OSError) and error.errno else "failed": message}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class QueryError(Exception):
    """The text is not exactly one query."""


class UnreadableError(Exception):
    """DuckDB cannot open the store."""


def _limit_cpu(seconds: float | None) -> None:
    """End this process if it uses more CPU time than its threads may, even if the parent does not end it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    spare = None if seconds is None else (seconds + 1) * (_threads() + 1)
    limit = hard if spare is None else int(used.ru_utime + used.ru_stime + spare) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _threads() -> int:
    return min(os.cpu_count() or 1, 4)


def _run(request: dict[str, Any]) -> bool:
    labelled = _NAMES_LABELS.search(request["query"]) is not None
    try:
        return _run_once(request, labelled=labelled)
    except (duckdb.CatalogException, duckdb.BinderException) as error:
        if labelled or not _MISSING_LABELS.search(str(error)):
            raise
    # A view refers to the labels.
    return _run_once(request, labelled=True)


def _run_once(request: dict[str, Any], *, labelled: bool) -> bool:
    with _opened(request, labelled=labelled) as connection:
        return _write_rows(connection, _only_query(connection, request["query"]), request)


@contextmanager
def _opened(request: dict[str, Any], *, labelled: bool) -> Iterator[duckdb.DuckDBPyConnection]:
    folder, work = Path(request["store"]), Path(request["work"])
    limits = SandboxLimits(request["memory"], SPILL, _threads())
    # The stems of the files are the names of the databases.
    main, labels = work / "store.duckdb", work / "labels.duckdb" if labelled else None
    with ExitStack() as stack:
        linked = False
        if not request["copied"]:
            # Some file systems have no hard links.
            with suppress(OSError):
                stack.enter_context(linked_database(folder / main.name, main))
                stack.callback(signal.setitimer, signal.ITIMER_REAL, 0)
                signal.setitimer(signal.ITIMER_REAL, HOLD_S)
                linked = True
        if not linked:
            copy_database(folder / main.name, main)
        if labels is not None:
            # Labels are always copied: there are few of them, and writing a label never waits for a query.
            copy_database(folder / labels.name, labels)
        try:
            connection = stack.enter_context(sandbox(main, labels, work / "spill", limits))
        except duckdb.Error as error:
            message = str(error).strip().partition("\n")[0]
            raise UnreadableError(f"{folder / main.name} cannot be opened: {message}") from error
        yield connection


# --- what may run ---

# MULTI is a PIVOT that looks up its columns first.
_ALLOWED = (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)
_EXPLAIN = re.compile(r"\s*explain\s+(analyze\s+)?(\([^()]*\))?", re.IGNORECASE)


def _only_query(connection: duckdb.DuckDBPyConnection, text: str) -> duckdb.Statement:
    """Return the only statement of a text. Raises QueryError if there are none or several, or if it is not a query."""
    statements = connection.extract_statements(text)
    if not statements:
        raise QueryError(f"there is no statement; write one query: {QUERIES}")
    if len(statements) > 1:
        raise QueryError(f"there are {len(statements)} statements; run one query at a time")
    (statement,) = statements
    kind = _kind(statement)
    # EXPLAIN ANALYZE runs the statement that it explains, so that must be a query too.
    if kind == duckdb.StatementType.EXPLAIN:
        explained = connection.extract_statements(_EXPLAIN.sub("", statement.query, count=1))
        kind = _kind(explained[0]) if len(explained) == 1 else None
    if kind not in _ALLOWED:
        raise QueryError(
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


def _write_rows(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement, request: dict[str, Any]) -> bool:
    """Write the rows up to the limits. Returns whether these are all rows."""
    relation = _bound(connection, statement)
    names = distinct_names(relation.columns)
    taken = [_is_taken(kind) for kind in relation.types]
    if not all(taken):
        # Columns are selected by position, because names may repeat.
        columns = [duckdb.SQLExpression(f"#{place}") for place in range(1, len(names) + 1)]
        relation = relation.select(
            *(
                (column if as_is else column.cast("varchar")).alias(name)
                for column, as_is, name in zip(columns, taken, names, strict=True)
            )
        )
    reader = relation.to_arrow_reader(request["batch_rows"])
    empty = _shown(pa.Table.from_batches([], reader.schema), names, request["characters"])
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    most_rows, most_bytes = request["rows"], request["bytes"]
    height = size = 0
    with pa.ipc.new_file(str(Path(request["work"]) / ROWS), empty.schema, options=options) as writer:
        for batch in reader:
            table = _shown(pa.Table.from_batches([batch]), names, request["characters"])
            room = table.num_rows if most_rows is None else most_rows - height
            size += table.nbytes
            if room < table.num_rows or (most_bytes is not None and size > most_bytes):
                fitting = room if most_bytes is None else min(room, _fitting(table, most_bytes - size, height))
                writer.write_table(table.slice(0, fitting))
                return False
            writer.write_table(table)
            height += table.num_rows
    return True


def _bound(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> duckdb.DuckDBPyRelation:
    try:
        return connection.sql(statement)
    except (duckdb.BinderException, duckdb.CatalogException):
        # This raises the same error again, but with its position in the text.
        connection.execute(statement)
        raise


def _fitting(table: pa.Table, spare: int, height: int) -> int:
    """The number of rows to keep of a table that is `-spare` bytes too large. The first table keeps at least one."""
    kept = table.num_rows if spare >= 0 else int(table.num_rows * (1 + spare / table.nbytes))
    return max(kept, 0 if height else 1)


def distinct_names(names: Sequence[str]) -> list[str]:
    """The names, with _1, _2, ... appended to repeated ones, because frames and files need distinct names.

    >>> distinct_names(["a", "a", "a_1"])
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


def _shown(table: pa.Table, names: list[str], characters: int | None) -> pa.Table:
    """The table with these names. With a limit of characters, longer texts are cut and nested values become JSON."""
    table = table.rename_columns(names)
    if characters is None:
        return table
    # Polars and orjson are slow to import, and only needed for screens.
    import orjson  # noqa: PLC0415
    import polars as pl  # noqa: PLC0415

    def to_json(value: Any) -> str | None:
        return None if value is None else orjson.dumps(value, default=str).decode()

    frame = pl.DataFrame(pl.from_arrow(table))
    frame = frame.with_columns(
        pl.Series(name, [to_json(value) for value in frame[name].to_list()], pl.String)
        for name, kind in frame.schema.items()
        if kind.is_nested()
    )
    texts = pl.col(pl.String)
    return frame.with_columns(
        pl.when(texts.str.len_chars() > characters).then(texts.str.head(characters) + " …").otherwise(texts).name.keep()
    ).to_arrow()


if __name__ == "__main__":
    serve(answer, data_bytes=MEMORY_BYTES, niceness=5)
