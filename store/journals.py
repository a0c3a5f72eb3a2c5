"""Journals: append-only JSON lines, one file per run, which make generation independent of the database.

A line is written before each request ("sent") and when its response arrives ("received"). Each line is one write to the
operating system, so a killed process loses no response that it has received. Batches are committed to the store in a
transaction that also advances the journal's offset, so nothing is committed twice.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from store.errors import InputError, StoreError


class Entry(NamedTuple):
    """One line: its record and the offset of the byte after it."""

    record: dict[str, Any]
    end: int


class JournalWriter:
    """Appends records to a run's journal. It holds the file's lock, which tells a live run from a dead one.

    Raises InputError if another process writes this journal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if not _try_lock(self._file):
            os.close(self._file)
            raise InputError(f"{path} is being written by another process; wait for it or end it, then try again")
        self.end = os.fstat(self._file).st_size
        if self.end and os.pread(self._file, 1, self.end - 1) != b"\n":
            # A kill in the middle of a write left half a line. Ended here, it is skipped when the journal is read.
            self._write(b"\n")

    def append(self, record: dict[str, Any]) -> int:
        """Append one record and return the offset after it. Raises StoreError if the disk is full."""
        self._write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        return self.end

    def close(self) -> None:
        """Flush to disk and release the lock."""
        # Only here: a write survives the death of the process without fsync, though not that of the machine.
        os.fsync(self._file)
        os.close(self._file)

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise self._cannot_write(error.strerror or str(error)) from error
        self.end += written
        if written != len(line):
            raise self._cannot_write(f"only {written} of {len(line)} bytes were written")

    def _cannot_write(self, why: str) -> StoreError:
        return StoreError(f"{self.path} cannot be written ({why}): free some space, then run the same command again")


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_live(path: Path) -> bool:
    """Whether a running process is still writing this journal."""
    # The operating system releases a lock when its process dies, however it dies.
    file = os.open(path, os.O_RDONLY)
    try:
        return not _try_lock(file)
    finally:
        os.close(file)


def read_journal(path: Path, start: int = 0) -> Iterator[Entry]:
    """Yield the complete lines from byte `start` on. Incomplete lines, left by a kill during a write, are skipped.

    A missing journal yields nothing.
    """
    if not path.exists():
        return
    end = start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            end += len(line)
            if not line.endswith(b"\n"):
                # The last line, which a live process may be writing right now.
                return
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield Entry(record, end)
