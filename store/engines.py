"""Engines: one in-memory DuckDB per folder, to which files are attached only while somebody uses them.

Creating a database instance with all its functions takes ten times as long as attaching a file, and every label and
every batch of a run opens one or two files. An idle engine holds no file and no lock. SQL that people write never runs
on it, but in a sandbox: a separate instance, which attaches nothing and which no statement can unlock.
"""

import ctypes
import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from weakref import WeakValueDictionary

import duckdb

from store.database_copies import remove_database
from store.temporary import PREFIX

# Without replacements, a table name in SQL cannot refer to a Python variable.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
}
# Readers, above all the browser, should spill to disk before they use up the machine's memory.
_READING_MEMORY = "2GB"
# How many recently used engines stay alive.
_KEPT = 4


@dataclass(slots=True)
class _Attachment:
    """The number of users who have a file attached, with the lock that guards it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Engine:
    """The DuckDB instance of one folder. A file is attached under its stem."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # With this prefix the folder is removed later, even if this process is killed.
        spill = folder / f"{PREFIX}{os.getpid()}-engine"
        self._database = duckdb.connect(":memory:", config=SETTINGS | {"temp_directory": str(spill)})
        # DuckDB refuses a second call of `cursor` while another thread is in one.
        self._making_cursor = threading.Lock()
        self._attachments: defaultdict[Path, _Attachment] = defaultdict(_Attachment)
        self._is_closed = False

    @contextmanager
    def connected(self, file: Path, *, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection whose database is a file, which is attached as in `attached`."""
        with self.attached(file, read_only=read_only), self._cursor() as connection:
            connection.execute(f"use {_name(file)}")
            connection.execute("set enable_progress_bar = false")
            if not read_only:
                connection.execute("set timezone = 'UTC'")
            yield connection

    @contextmanager
    def attached(self, file: Path, *, read_only: bool) -> Iterator[None]:
        """Keep a file attached for the block. The first user attaches it, the last one detaches it.

        The caller must hold the file lock. Raises duckdb.Error if the file cannot be attached.
        """
        attachment = self._attachments[file]
        try:
            with attachment.lock:
                if attachment.users == 0:
                    self._attach(file, read_only=read_only)
                attachment.users += 1
            try:
                yield
            finally:
                with attachment.lock:
                    attachment.users -= 1
                    if attachment.users == 0:
                        self._detach(file)
        except (duckdb.InternalException, duckdb.FatalException):
            # After such an error, DuckDB refuses all further statements.
            _give_up(self)
            raise

    def close(self) -> None:
        """Create no more connections. Open ones keep the instance alive."""
        self._is_closed = True
        self._database.close()

    def _attach(self, file: Path, *, read_only: bool) -> None:
        with self._whole(), self._cursor() as connection:
            connection.execute(f"attach {_quoted(file)} as {_name(file)}{' (read_only)' if read_only else ''}")
            if read_only:
                connection.execute(f"set memory_limit = '{_READING_MEMORY}'")

    def _detach(self, file: Path) -> None:
        if self._is_closed:
            # The last connection closes all files.
            return
        with self._whole(), self._cursor() as connection:
            # On a full disk the checkpoint fails, but the file is detached, and committed data stays in its log.
            with suppress(duckdb.IOException):
                connection.execute(f"detach {_name(file)}")
            if not any(attachment.users for attachment in list(self._attachments.values())):
                connection.execute("reset memory_limit")

    def _cursor(self) -> closing[duckdb.DuckDBPyConnection]:
        """A connection of its own to the instance, closed after the block."""
        with self._making_cursor:
            return closing(self._database.cursor())

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Replace the engine if the block fails, also on Ctrl-C, because a file may still be attached then."""
        try:
            yield
        except duckdb.IOException:
            raise  # A file is locked, and none attached.
        except BaseException:
            _give_up(self)
            raise


# An engine lives while it is in use, and a while longer if it is one of the last _KEPT engines used.
_engines: WeakValueDictionary[Path, Engine] = WeakValueDictionary()
_last: deque[Engine] = deque(maxlen=_KEPT)
_choosing = threading.Lock()


def engine_of(folder: Path) -> Engine:
    """The engine of a folder. A process has at most one engine per folder."""
    with _choosing:
        engine = _engines.get(folder)
        if engine is None:
            engine = _engines[folder] = Engine(folder)
        if engine not in _last:
            _last.append(engine)
        return engine


def _give_up(engine: Engine) -> None:
    """Give the next user a new engine, and close this one as soon as nobody uses it."""
    with _choosing:
        if _engines.get(engine.folder) is engine:
            del _engines[engine.folder]
        if engine in _last:
            _last.remove(engine)
    engine.close()


def _start_afresh() -> None:
    """Forget all engines after a fork: their threads stayed in the parent, so the child cannot use or close them."""
    for engine in _engines.values():
        # An extra reference keeps the destructor from running, even at exit.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
    _last.clear()
    _engines.clear()


os.register_at_fork(after_in_child=_start_afresh)


class SandboxLimits(NamedTuple):
    """What SQL of people may use. memory, spill: sizes as DuckDB writes them, such as "1GB". threads: their number."""

    memory: str
    spill: str
    threads: int


@contextmanager
def sandbox(file: Path, labels: Path | None, spill: Path, limits: SandboxLimits) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that can only read a file and the labels: no other files, no network, no settings.

    file, labels: names of this reader alone (see `database_copies`), which are removed before the block, because the
    sandbox could read every path that DuckDB has opened. spill: the folder to spill to, which it can read. Raises
    duckdb.Error if a file cannot be opened.
    """
    config = SETTINGS | {
        "memory_limit": limits.memory,
        "threads": limits.threads,
        "temp_directory": str(spill),
        "max_temp_directory_size": limits.spill,
    }
    with closing(duckdb.connect(str(file), read_only=True, config=config)) as connection:
        if labels is not None:
            connection.execute(f"attach {_quoted(labels)} as labels (read_only)")
        connection.execute("set enable_progress_bar = false")
        # In this order: nothing can be set after the lock, and external access is still needed to attach.
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        for name in (file, labels):
            if name is not None:
                remove_database(name)
        yield connection


def _name(file: Path) -> str:
    return '"' + file.stem.replace('"', '""') + '"'


def _quoted(path: Path) -> str:
    """A path as an SQL literal, because ATTACH takes no bound values."""
    return "'" + str(path).replace("'", "''") + "'"
