"""Engines: a DuckDB in memory for each folder, to which its files are attached only while somebody is at work on them.

To make a database instance, with all its functions, takes ten times as long as to attach a file, and every label and
every batch of a run opens one or two. An engine at rest holds no file and no lock. SQL that people write never runs on
it, but in a sandbox: an instance of its own, which attaches nothing and which no statement can open up again.
"""

import ctypes
import os
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import duckdb

from store.temporary import PREFIX

# SQL sees no Python variables.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",
}
# Who reads, the browser above all, may spill but not take the machine's memory.
_READING_MEMORY = "2GB"
_KEPT = 4


@dataclass(slots=True)
class _Attachment:
    """Those who have one file attached at the same time."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Engine:
    """The DuckDB of one folder. A file's stem is its name there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Named so that it is cleared away even where this process is killed.
        spill = folder / f"{PREFIX}{os.getpid()}-engine"
        self._database = duckdb.connect(":memory:", config=SETTINGS | {"temp_directory": str(spill)})
        self._attachments: defaultdict[Path, _Attachment] = defaultdict(_Attachment)

    @contextmanager
    def attached(self, file: Path, *, read_only: bool, labels: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection to a file and, read-only, to the labels; the first user attaches them, the last detaches.

        The caller holds the file lock. Raises duckdb.Error where a file cannot be attached.
        """
        attachment = self._attachments[file]
        try:
            with attachment.lock:
                if attachment.users == 0:
                    self._attach(file, read_only=read_only, labels=labels)
                attachment.users += 1
            try:
                with closing(self._database.cursor()) as connection:
                    connection.execute(f"use {_name(file)}")
                    connection.execute("set enable_progress_bar = false")
                    if not read_only:
                        connection.execute("set timezone = 'UTC'")
                    yield connection
            finally:
                with attachment.lock:
                    attachment.users -= 1
                    if attachment.users == 0:
                        self._detach(file, labels)
        except (duckdb.InternalException, duckdb.FatalException):
            # DuckDB refuses everything from here on.
            _give_up(self)
            raise

    def close(self) -> None:
        """Make no more connections; those there are keep it alive."""
        self._database.close()

    def _attach(self, file: Path, *, read_only: bool, labels: Path | None) -> None:
        with self._whole(), closing(self._database.cursor()) as connection:
            connection.execute(f"attach {_quoted(file)} as {_name(file)}{' (read_only)' if read_only else ''}")
            if labels is not None:
                try:
                    connection.execute(f"attach {_quoted(labels)} as {_name(labels)} (read_only)")
                except duckdb.IOException:  # locked
                    connection.execute(f"detach {_name(file)}")
                    raise
            if read_only:
                connection.execute(f"set memory_limit = '{_READING_MEMORY}'")

    def _detach(self, file: Path, labels: Path | None) -> None:
        with self._whole(), closing(self._database.cursor()) as connection:
            if labels is not None:
                connection.execute(f"detach {_name(labels)}")
            # Where the disk is too full for a checkpoint it is detached all the same, and what was committed stays in
            # the file's log.
            with suppress(duckdb.IOException):
                connection.execute(f"detach {_name(file)}")
            connection.execute("reset memory_limit")

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Have the engine replaced where the block breaks off, by Ctrl-C too: a file may still be attached then."""
        try:
            yield
        except duckdb.IOException:
            raise  # A file is locked, and none attached.
        except BaseException:
            _give_up(self)
            raise


# An engine lives while somebody uses it and, for those who come next, while it is among the last few.
_engines: WeakValueDictionary[Path, Engine] = WeakValueDictionary()
_last: deque[Engine] = deque(maxlen=_KEPT)
_choosing = threading.Lock()


def engine_of(folder: Path) -> Engine:
    """The engine of a folder: there is one at a time in a process."""
    with _choosing:
        engine = _engines.get(folder)
        if engine is None:
            engine = _engines[folder] = Engine(folder)
        if engine not in _last:
            _last.append(engine)
        return engine


def _give_up(engine: Engine) -> None:
    """Let the next who comes have a new engine, and this one go as soon as nobody works on it."""
    with _choosing:
        if _engines.get(engine.folder) is engine:
            del _engines[engine.folder]
        if engine in _last:
            _last.remove(engine)
    engine.close()


def _start_afresh() -> None:
    """After a fork: an engine's threads stayed in the parent, so that the child can neither use nor close it."""
    for engine in _engines.values():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))  # It is never closed, not even at exit.
    _last.clear()
    _engines.clear()


os.register_at_fork(after_in_child=_start_afresh)

_locking_down = threading.Lock()


@contextmanager
def sandbox(file: Path, labels: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that reads a file and the labels: no other files, no network, no settings.

    All that are open to a file at the same time share one instance: the second finds the labels attached and the
    settings locked. The caller holds the file lock. Raises duckdb.Error where a file cannot be opened.
    """
    config = SETTINGS | {"memory_limit": _READING_MEMORY}
    with closing(duckdb.connect(str(file), read_only=True, config=config)) as connection:
        with _locking_down:
            if labels is not None:
                connection.execute(f"attach if not exists {_quoted(labels)} as {_name(labels)} (read_only)")
            if connection.execute("select not current_setting('lock_configuration')").fetchone() == (True,):
                connection.execute("set enable_progress_bar = false")
                connection.execute("set enable_external_access = false")
                connection.execute("set lock_configuration = true")
        yield connection


def _name(file: Path) -> str:
    return '"' + file.stem.replace('"', '""') + '"'


def _quoted(path: Path) -> str:
    """A path as an SQL literal: ATTACH takes no bound values."""
    return "'" + str(path).replace("'", "''") + "'"
