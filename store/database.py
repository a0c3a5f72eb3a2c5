"""Connections: one transaction on the store, from waiting for a lock to readable errors.

DuckDB allows either one writing process or many reading ones, so no connection stays open: open, one transaction,
close. If a file is locked, the caller waits with jitter. After `file_locks.WAIT_S` it fails with an error that names
the process that holds the file. Labels are stored in a separate file. It is attached read-only as `labels` once a
statement names them, so that labelling waits neither for a long load nor for readers of other tables.
"""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import duckdb
import polars as pl
import pyarrow as pa
import tenacity

from store import file_locks
from store.engines import SETTINGS, engine_of
from store.errors import StoreError
from store.file_locks import AccessMode, busy, locks_by_path, no_locks, queued
from store.queries import query
from store.temporary import temporary_folder

# The labels, or a view that reads them.
_NAMES_LABELS = re.compile(r"\blabels\b|\blabels_current\b|\bacceptance_funnel\b")
# Messages of the operating system on a file system without locks, where waiting would not help.
_NO_LOCKS = [os.strerror(number) for number in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)]
_LOCK_HOLDER = re.compile(r"lock is held in (.+?) \(PID (\d+)\)")

Parameters = dict[str, Any]
T = TypeVar("T")


class Put(NamedTuple):
    """The result of an idempotent write: the numbers of rows inserted and of rows whose key existed already."""

    inserted: int
    existing: int


class Session:
    """One open transaction, whose methods run named statements. It is valid only inside the `with` that created it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, attach_labels: Callable[[], None] | None = None) -> None:
        self._connection = connection
        self._attach_labels = attach_labels

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """DuckDB's own connection, for statements without a name. Labels are attached, in case they are used."""
        return self._connection_for(None)

    def _connection_for(self, text: str | None) -> duckdb.DuckDBPyConnection:
        """The connection, with labels attached if the text names them. text: None means that any text may follow."""
        if self._attach_labels is not None and (text is None or _NAMES_LABELS.search(text)):
            self._attach_labels()
            self._attach_labels = None
        return self._connection

    def execute(self, name: str, /, **parameters: Any) -> int:
        """Run one statement. Returns the number of changed rows, or the number that it selects, or 0 without either."""
        text = query(name)
        rows = self._connection_for(text).execute(text, parameters or None).fetchall()
        return int(rows[0][0]) if rows and isinstance(rows[0][0], int) else 0

    def frame(self, name: str, /, where: Sequence[str] = (), **parameters: Any) -> pl.DataFrame:
        """Run one query and return all of its rows. where: names of conditions that the rows must meet."""
        text = query(name, where)
        frame: pl.DataFrame = self._connection_for(text).sql(text, params=parameters or None).pl()
        return frame

    def rows(self, name: str, /, where: Sequence[str] = (), **parameters: Any) -> list[tuple[Any, ...]]:
        """Run one query and return its rows as tuples. where: names of conditions that the rows must meet."""
        text = query(name, where)
        return self._connection_for(text).execute(text, parameters or None).fetchall()

    def reader(self, name: str, /, **parameters: Any) -> pa.RecordBatchReader:
        """Run one query and return its rows in Arrow batches, so that they need not fit in memory."""
        text = query(name)
        return self._connection_for(text).sql(text, params=parameters or None).to_arrow_reader()

    def insert(self, name: str, batch: Any, **parameters: Any) -> int:
        """Run one statement that reads the table `batch` (Polars, Arrow or a reader). Returns the same as `execute`."""
        self._connection.register("batch", batch)
        count = self.execute(name, **parameters)
        self._connection.unregister("batch")
        return count

    def put(self, table: str, frame: Any) -> Put:
        """Insert the rows of `frame` (Polars or Arrow) that are not in `table` yet. Existing rows do not change.

        The statement `put_<table>` defines the key. Columns are matched by name, not by position. The rows of one call
        must not repeat a key.
        """
        if len(frame) == 0:
            return Put(0, 0)
        inserted = self.insert(f"put_{table}", frame)
        return Put(inserted, len(frame) - inserted)


def _is_lock_error(error: BaseException) -> bool:
    return isinstance(error, duckdb.IOException) and "Could not set lock" in str(error)


def _lacks_locks(error: BaseException) -> bool:
    return _is_lock_error(error) and any(reason in str(error) for reason in _NO_LOCKS)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


@contextmanager
def connect(
    path: Path, mode: AccessMode, *, labels: Path | None = None, wait_s: float | None = None
) -> Iterator[Session]:
    """Open one transaction on a DuckDB file. It is committed at the end of the block, or rolled back on an error.

    labels: the file of labels, or None. It is attached read-only: for a writer immediately, because views are made of
    it, and for a reader when a statement names it. wait_s: how long to wait for a file, or None for WAIT_S.

    Raises StoreBusyError if the file stays in use for longer than wait_s, and StoreError if DuckDB cannot read or write
    it (a full disk, a damaged file). In both cases nothing of the transaction is kept.
    """
    wait_s = file_locks.WAIT_S if wait_s is None else wait_s
    try:
        with ExitStack() as stack:
            nested = locks_by_path[path].reads_of_thread() > 0
            stack.enter_context(locks_by_path[path].acquire(path, mode, wait_s))
            keep_place = stack.enter_context(queued(path, mode, wait_s, nested=nested))
            reads, engine = mode is AccessMode.READ, engine_of(path.parent)

            def attach(
                file: Path, attached: Callable[[], AbstractContextManager[T]], keep_place: Callable[[], None]
            ) -> T:
                def try_to_attach() -> T:
                    keep_place()
                    # Each try enters a new context.
                    return stack.enter_context(attached())

                return _once_unlocked(file, try_to_attach, wait_s)

            # Leaving the context closes the connection, which rolls back open transactions.
            connection = attach(path, partial(engine.connected, path, read_only=reads), keep_place)

            def attach_labels() -> None:
                assert labels is not None
                nested = locks_by_path[labels].reads_of_thread() > 0
                stack.enter_context(locks_by_path[labels].acquire(labels, AccessMode.READ, wait_s))
                keep_place = stack.enter_context(queued(labels, AccessMode.READ, wait_s, nested=nested))
                # A transaction does not see files that are attached after its beginning. Committing it loses nothing,
                # because the main file cannot change while it is attached.
                connection.commit()
                attach(labels, partial(engine.attached, labels, read_only=True), keep_place)
                # A file cannot be detached while an open transaction reads it.
                stack.callback(_roll_back, connection)
                connection.begin()

            connection.begin()
            session = Session(connection, attach_labels if labels is not None else None)
            if not reads and labels is not None:
                assert session.connection is connection
            yield session
            connection.commit()
    except (duckdb.FatalException, duckdb.IOException, duckdb.TransactionException) as error:
        failure = "could not be written, and nothing was stored" if mode is AccessMode.WRITE else "could not be read"
        raise StoreError(f"{path} {failure}: {_first_line(error)}") from error


def _roll_back(connection: duckdb.DuckDBPyConnection) -> None:
    with suppress(duckdb.TransactionException):  # already committed
        connection.rollback()


def _once_unlocked(path: Path, opened: Callable[[], T], wait_s: float) -> T:
    """The result of `opened`, which is called again as long as another process has the file locked."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: _is_lock_error(error) and not _lacks_locks(error)),
        wait=tenacity.wait_random_exponential(multiplier=0.005, max=0.1),
        stop=tenacity.stop_after_delay(wait_s),
        reraise=True,
    )
    try:
        return retrying(opened)
    except duckdb.Error as error:
        if _lacks_locks(error):
            raise no_locks(path, next(reason for reason in _NO_LOCKS if reason in str(error))) from error
        if _is_lock_error(error):
            holder = _LOCK_HOLDER.search(str(error))
            raise busy(path, f"process {holder[2]} ({holder[1]})" if holder else "another process", wait_s) from error
        raise StoreError(f"{path} cannot be opened: {_first_line(error)}") from error


@contextmanager
def scratch(folder: Path, *, memory_limit: str = "1GB") -> Iterator[Session]:
    """Open an in-memory DuckDB for heavy work, so that the store stays free for others in the meantime.

    folder: where DuckDB spills to. memory_limit: how much DuckDB keeps in memory before it spills.
    """
    with temporary_folder(folder) as spill:
        connection = duckdb.connect(
            ":memory:",
            config=SETTINGS
            | {"memory_limit": memory_limit, "temp_directory": str(spill), "preserve_insertion_order": "false"},
        )
        connection.execute("set enable_progress_bar = false")
        try:
            yield Session(connection)
        except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
            raise StoreError(
                f"{folder}: the temporary database failed, and nothing was stored: {_first_line(error)}"
            ) from error
        finally:
            connection.close()
