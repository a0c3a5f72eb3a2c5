"""Connections: the one place that opens DuckDB.

DuckDB lets one process write or many read, so nobody holds a connection: open, one transaction, close. Who finds the
file locked waits with jitter and, past `WAIT_S`, fails with an error that names the process in the way. Labels live in
a file of their own, attached read-only under the name `labels`, so that labelling never waits for a long load.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import polars as pl
import pyarrow as pa
import tenacity

from store.errors import StoreBusyError, StoreError
from store.queries import query

WAIT_S = 60.0
_LOCK_HOLDER = re.compile(r"lock is held in (.+?) \(PID (\d+)\)")

Parameters = dict[str, Any]


class Put(NamedTuple):
    """What an idempotent write did: rows `inserted`, and rows `existing` there under the same key already."""

    inserted: int
    existing: int


class Session:
    """One open transaction; its methods run named statements. Valid only inside the `with` that made it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection

    def execute(self, name: str, /, **parameters: Any) -> int:
        """Run one statement; returns how many rows it changed (0 where DuckDB does not count)."""
        row = self.connection.execute(query(name), parameters or None).fetchone()
        return int(row[0]) if row and isinstance(row[0], int) else 0

    def frame(self, name: str, /, **parameters: Any) -> pl.DataFrame:
        """Run one query; returns all of its rows."""
        frame: pl.DataFrame = self.connection.sql(query(name), params=parameters or None).pl()
        return frame

    def rows(self, name: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run one query; returns its rows as tuples."""
        return self.connection.execute(query(name), parameters or None).fetchall()

    def reader(self, name: str, /, **parameters: Any) -> pa.RecordBatchReader:
        """Run one query; its rows come in Arrow batches, so that they need not fit in memory."""
        return self.connection.sql(query(name), params=parameters or None).to_arrow_reader()

    def insert(self, name: str, batch: Any, **parameters: Any) -> int:
        """Run one statement that reads `batch` (Polars, Arrow or a reader); returns what `execute` does."""
        self.connection.register("batch", batch)
        try:
            return self.execute(name, **parameters)
        finally:
            self.connection.unregister("batch")

    def put(self, table: str, frame: Any) -> Put:
        """Insert the rows of `frame` (Polars or Arrow) that are not in `table` yet.

        The key is that of the statement `put_<table>`; column names decide, not their order.
        Rows of one call must not repeat a key.
        """
        if len(frame) == 0:
            return Put(0, 0)
        inserted = self.insert(f"put_{table}", frame)
        return Put(inserted, len(frame) - inserted)


def _is_lock_error(error: BaseException) -> bool:
    """Whether waiting can help: another process holds the file, or this one has it open in the other mode."""
    if isinstance(error, duckdb.IOException):
        return "Could not set lock" in str(error)
    if isinstance(error, duckdb.ConnectionException | duckdb.BinderException):
        text = str(error)
        return "different configuration" in text or "already attached" in text
    return False


def _busy(path: Path, error: BaseException) -> StoreBusyError:
    holder = _LOCK_HOLDER.search(str(error))
    who = f"process {holder[2]} ({holder[1]})" if holder else "a connection of this same process"
    return StoreBusyError(
        f"{path} has been in use by {who} for {WAIT_S:.0f} s, longer than gr2 ever holds it: "
        "close that program, then try again"
    )


def _open(path: Path, *, read_only: bool, labels: Path | None) -> duckdb.DuckDBPyConnection:
    """Connect and attach the labels; waits while another process has a file locked."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_lock_error),
        wait=tenacity.wait_random_exponential(multiplier=0.005, max=0.1),
        stop=tenacity.stop_after_delay(WAIT_S),
        reraise=True,
    )

    def connect() -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(str(path), read_only=read_only, config={"autoinstall_known_extensions": "false"})
        try:
            connection.execute("set timezone = 'UTC'")
            if labels is not None:
                connection.execute(f"attach {_quoted(labels)} as labels (read_only)")
        except BaseException:
            connection.close()
            raise
        return connection

    try:
        return retrying(connect)
    except duckdb.Error as error:
        if _is_lock_error(error):
            raise _busy(path, error) from error
        raise StoreError(f"{path} cannot be opened: {_first_line(error)}") from error


def _quoted(path: Path) -> str:
    """A path as an SQL literal: ATTACH takes no bound values."""
    return "'" + str(path).replace("'", "''") + "'"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


@contextmanager
def connect(path: Path, *, read_only: bool, labels: Path | None = None) -> Iterator[Session]:
    """One transaction on a DuckDB file: committed at the end of the block, rolled back if the block raises.

    Raises StoreBusyError when another process keeps the file longer than WAIT_S, StoreError when DuckDB cannot write
    (a full disk, a damaged file); nothing of the transaction stands then.
    """
    connection = _open(path, read_only=read_only, labels=labels)
    try:
        connection.begin()
        yield Session(connection)
        connection.commit()
    except duckdb.FatalException as error:
        raise StoreError(f"{path} could not be written, nothing was stored: {_first_line(error)}") from error
    except duckdb.IOException as error:
        raise StoreError(f"{path} could not be written, nothing was stored: {_first_line(error)}") from error
    finally:
        # Closing rolls back what was not committed.
        connection.close()


@contextmanager
def connect_locked_down(path: Path, labels: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A read-only connection for SQL that people write: no files, no network, no settings, no second database."""
    connection = _open(path, read_only=True, labels=labels)
    try:
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        yield connection
    finally:
        connection.close()


@contextmanager
def scratch(folder: Path, *, memory_limit: str = "1GB") -> Iterator[Session]:
    """An in-memory DuckDB for heavy work that may spill into `folder`; the store stays free for others meanwhile.

    `memory_limit` bounds what DuckDB keeps in memory before it spills.
    """
    connection = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": memory_limit,
            "temp_directory": str(folder / "scratch"),
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
        },
    )
    try:
        yield Session(connection)
    finally:
        connection.close()
