"""Connections: the one place that opens DuckDB.

DuckDB lets one process write or many read, so nobody holds a connection: open, one transaction, close. Who finds the
file locked waits with jitter and, past `WAIT_S`, fails with an error that names the process in the way. Labels live in
a file of their own, attached read-only under the name `labels`, so that labelling never waits for a long load.
"""

import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import polars as pl
import pyarrow as pa
import tenacity

from store.errors import StoreBusyError, StoreError
from store.queries import query
from store.temporary import temporary_folder

WAIT_S = 60.0
_WRITER: dict[str, str | bool | int | float | list[str]] = {"autoinstall_known_extensions": "false"}
# What people read, the browser above all, may spill but not take the machine's memory; SQL sees no Python variables.
_READER = _WRITER | {"memory_limit": "2GB", "python_enable_replacements": "false"}
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
        """Run one statement; returns how many rows it changed, or the one number it selects; 0 where there is none."""
        rows = self.connection.execute(query(name), parameters or None).fetchall()
        return int(rows[0][0]) if rows and isinstance(rows[0][0], int) else 0

    def frame(self, name: str, /, where: Sequence[str] = (), **parameters: Any) -> pl.DataFrame:
        """Run one query; returns all of its rows. where: named conditions that they meet."""
        frame: pl.DataFrame = self.connection.sql(query(name, where), params=parameters or None).pl()
        return frame

    def rows(self, name: str, /, where: Sequence[str] = (), **parameters: Any) -> list[tuple[Any, ...]]:
        """Run one query; returns its rows as tuples. where: named conditions that they meet."""
        return self.connection.execute(query(name, where), parameters or None).fetchall()

    def reader(self, name: str, /, **parameters: Any) -> pa.RecordBatchReader:
        """Run one query; its rows come in Arrow batches, so that they need not fit in memory."""
        return self.connection.sql(query(name), params=parameters or None).to_arrow_reader()

    def insert(self, name: str, batch: Any, **parameters: Any) -> int:
        """Run one statement that reads `batch` (Polars, Arrow or a reader); returns what `execute` does."""
        self.connection.register("batch", batch)
        done = self.execute(name, **parameters)
        self.connection.unregister("batch")
        return done

    def put(self, table: str, frame: Any) -> Put:
        """Insert the rows of `frame` (Polars or Arrow) that are not in `table` yet.

        The key is that of the statement `put_<table>`; column names decide, not their order.
        Rows of one call must not repeat a key.
        """
        if len(frame) == 0:
            return Put(0, 0)
        inserted = self.insert(f"put_{table}", frame)
        return Put(inserted, len(frame) - inserted)


class _Gate:
    """Lets connections of this process to one file take turns: any number that read, or one that writes.

    DuckDB's own lock keeps other processes out but not a second database instance of the same process. Who comes to
    read waits behind who waits to write, or many readers would keep a label out; a thread that reads already does not.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writing = False
        self._waiting_writers = 0
        self._of_thread = threading.local()
        self.opening = threading.Lock()

    @contextmanager
    def entered(self, path: Path, *, read_only: bool) -> Iterator[None]:
        """Wait for a turn and keep it for the block. Raises StoreBusyError after WAIT_S."""
        with self._changed:
            self._waiting_writers += not read_only
            try:
                if not self._changed.wait_for(lambda: self._is_free(read_only), timeout=WAIT_S):
                    raise _busy(path, "a connection of this same process")
            finally:
                self._waiting_writers -= not read_only
                self._changed.notify_all()
            self._readers += read_only
            self._writing = not read_only
        self._of_thread.readers = self._reading_here() + read_only
        try:
            yield
        finally:
            self._of_thread.readers = self._reading_here() - read_only
            with self._changed:
                self._readers -= read_only
                self._writing = False
                self._changed.notify_all()

    def _is_free(self, read_only: bool) -> bool:
        if self._writing:
            return False
        return (self._waiting_writers == 0 or self._reading_here() > 0) if read_only else self._readers == 0

    def _reading_here(self) -> int:
        """Connections that read, of this thread."""
        return getattr(self._of_thread, "readers", 0)


_gates: defaultdict[Path, _Gate] = defaultdict(_Gate)


def _is_lock_error(error: BaseException) -> bool:
    return isinstance(error, duckdb.IOException) and "Could not set lock" in str(error)


def _busy(path: Path, holder: str) -> StoreBusyError:
    return StoreBusyError(
        f"{path} has been in use by {holder} for {WAIT_S:.0f} s, longer than gr2 ever holds it: "
        "close that program, then try again"
    )


def _open(path: Path, *, read_only: bool, labels: Path | None) -> duckdb.DuckDBPyConnection:
    """Connect and attach the labels; waits while another process has a file locked."""

    def connect() -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(str(path), read_only=read_only, config=_READER if read_only else _WRITER)
        try:
            # Readers of one process share an instance: the second finds the labels attached and the settings locked.
            if labels is not None:
                connection.execute(f"attach if not exists {_quoted(labels)} as labels (read_only)")
            if not read_only:
                connection.execute("set timezone = 'UTC'")
                # No bar of DuckDB's own between the lines of a command.
                connection.execute("set enable_progress_bar = false")
            elif connection.execute("select not current_setting('lock_configuration')").fetchone() == (True,):
                connection.execute("set enable_progress_bar = false")
                connection.execute("set enable_external_access = false")
                connection.execute("set lock_configuration = true")
        except BaseException:
            connection.close()
            raise
        return connection

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_lock_error),
        wait=tenacity.wait_random_exponential(multiplier=0.005, max=0.1),
        stop=tenacity.stop_after_delay(WAIT_S),
        reraise=True,
    )
    try:
        return retrying(connect)
    except duckdb.Error as error:
        if _is_lock_error(error):
            holder = _LOCK_HOLDER.search(str(error))
            raise _busy(path, f"process {holder[2]} ({holder[1]})" if holder else "another process") from error
        raise StoreError(f"{path} cannot be opened: {_first_line(error)}") from error


def _quoted(path: Path) -> str:
    """A path as an SQL literal: ATTACH takes no bound values."""
    return "'" + str(path).replace("'", "''") + "'"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


@contextmanager
def connect(path: Path, *, read_only: bool, labels: Path | None = None) -> Iterator[Session]:
    """One transaction on a DuckDB file: committed at the end of the block, rolled back if the block raises.

    What is read-only is locked down too: no files, no network, no settings, no second database but the labels.

    Raises StoreBusyError when the file stays in use longer than WAIT_S, StoreError when DuckDB cannot write (a full
    disk, a damaged file); nothing of the transaction stands then.
    """
    with ExitStack() as stack:
        gate = _gates[path]
        stack.enter_context(gate.entered(path, read_only=read_only))
        if labels is not None:
            stack.enter_context(_gates[labels].entered(labels, read_only=True))
        with gate.opening:
            connection = _open(path, read_only=read_only, labels=labels)
        # Closing rolls back what was not committed.
        stack.callback(connection.close)
        try:
            connection.begin()
            yield Session(connection)
            connection.commit()
        except (duckdb.FatalException, duckdb.IOException) as error:
            raise StoreError(f"{path} could not be written, nothing was stored: {_first_line(error)}") from error


@contextmanager
def scratch(folder: Path, *, memory_limit: str = "1GB") -> Iterator[Session]:
    """An in-memory DuckDB for heavy work that may spill into `folder`; the store stays free for others meanwhile.

    `memory_limit` bounds what DuckDB keeps in memory before it spills.
    """
    with temporary_folder(folder) as spill:
        connection = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": memory_limit,
                "temp_directory": str(spill),
                "preserve_insertion_order": "false",
                "autoinstall_known_extensions": "false",
            },
        )
        connection.execute("set enable_progress_bar = false")
        try:
            yield Session(connection)
        finally:
            connection.close()
