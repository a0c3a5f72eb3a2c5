"""Journals: append-only JSON lines, one file per run, that make generation independent of the database.

A line goes out before each request ("sent") and when its response arrives ("received"); each is one write to the
operating system, so a killed process loses no response that it received. Batches are committed into the store in one
transaction that also advances the journal's offset: nothing is committed twice.
"""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from store.errors import InputError, StoreError


class Entry(NamedTuple):
    """One line: its record, and the offset of the byte after it."""

    record: dict[str, Any]
    end: int


class JournalWriter:
    """Appends records to a run's journal; holds its lock, so that others can tell a live run from a dead one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        if not _try_lock(self._file):
            os.close(self._file)
            raise InputError(f"{path} is being written by another process; wait for it or end it, then try again")
        self.end = os.fstat(self._file).st_size
        if self.end and os.pread(self._file, 1, self.end - 1) != b"\n":
            self._write(b"\n")  # close a line torn by a kill

    def append(self, record: dict[str, Any]) -> int:
        """Append one record; returns the offset after it. Raises StoreError when the disk is full."""
        self._write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        return self.end

    def close(self) -> None:
        """Flush to the disk and free the lock."""
        os.fsync(self._file)
        os.close(self._file)

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise self._cannot_write(error.strerror or str(error)) from error
        self.end += written
        if written != len(line):
            raise self._cannot_write(f"{written} of {len(line)} bytes fitted")

    def _cannot_write(self, why: str) -> StoreError:
        return StoreError(f"{self.path} cannot be written ({why}): free some space, then run the same command again")


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_live(path: Path) -> bool:
    """Whether a running process still writes this journal."""
    file = os.open(path, os.O_RDONLY)
    try:
        return not _try_lock(file)
    finally:
        os.close(file)


def read_journal(path: Path, start: int = 0) -> Iterator[Entry]:
    """Yield the whole lines from byte `start` on; a torn line (a kill in the middle of a write) is skipped.

    A journal that is not there yields nothing.
    """
    if not path.exists():
        return
    end = start
    with path.open("rb") as file:
        file.seek(start)
        for line in file:
            end += len(line)
            if not line.endswith(b"\n"):
                return
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield Entry(record, end)
