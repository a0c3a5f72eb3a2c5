"""A name or a copy of a database file for a single reader, which removes it as soon as it has opened the file.

SQL that people write may read a file for hours, and no writer can wait that long. It may also read any path that DuckDB
has opened, with `read_blob`, even in a sandbox. A path that is gone cannot be read, and a copy keeps nobody waiting.

A file is copied while others write it: in rounds of at most ROUND_S that hold DuckDB's lock. Every block of DuckDB
begins with its checksum. Each round copies the blocks whose checksums are new, so the first round that gets through
all blocks leaves a copy of the file as it is in that round.
"""

import fcntl
import os
import random
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from store import file_locks
from store.errors import StoreBusyError
from store.file_locks import AccessMode, queued

ROUND_S = 0.5
# The layout of a DuckDB file: three headers, then blocks.
_HEADERS_BYTES = 3 * 4096
_BLOCK_BYTES = 262_144
_CHECKSUM_BYTES = 8
# Changes that are not yet in the file itself.
_LOGS = (".wal", ".wal.checkpoint", ".wal.recovery")


class LockedError(Exception):
    """A file stayed locked by another process for longer than WAIT_S. The argument is its path."""


def copy_database(file: Path, copy: Path) -> None:
    """Copy a database file and its log. `copy` must not exist. Writers wait for ROUND_S at most.

    Raises LockedError, and OSError if there is no room.
    """
    checksums: dict[int, bytes] = {}
    # Unbuffered, because blocks are read by their position.
    with file.open("rb", buffering=0) as source, copy.open("xb", buffering=0) as target:
        while True:
            with shared_lock(source.fileno(), file):
                if _copy_blocks(source.fileno(), target.fileno(), checksums):
                    _take_logs(file, copy, shutil.copyfile)
                    return
            # The others' turn.
            time.sleep(0.02)


@contextmanager
def linked_database(file: Path, link: Path) -> Iterator[None]:
    """Give a database file and its log a second name for the block, during which nobody can write to the file.

    Raises LockedError, and OSError where the file system has no hard links.
    """
    with file.open("rb", buffering=0) as source, shared_lock(source.fileno(), file):
        file = file.resolve()
        os.link(file, link)
        _take_logs(file, link, os.link)
        yield


def remove_database(file: Path) -> None:
    """Remove a name of a database file and of its log."""
    for suffix in ("", *_LOGS):
        Path(f"{file}{suffix}").unlink(missing_ok=True)


@contextmanager
def shared_lock(descriptor: int, file: Path) -> Iterator[None]:
    """Hold the lock that DuckDB's readers hold. Raises LockedError if writers keep it for longer than WAIT_S."""
    given_up = time.monotonic() + file_locks.WAIT_S
    try:
        with queued(file, AccessMode.READ, file_locks.WAIT_S, nested=False) as let_writers_pass:
            while True:
                let_writers_pass()
                with suppress(BlockingIOError, PermissionError):
                    _set_lock(descriptor, fcntl.F_RDLCK)
                    break
                if time.monotonic() > given_up:
                    raise LockedError(file)
                time.sleep(random.uniform(0.002, 0.05))
    except StoreBusyError:
        raise LockedError(file) from None
    try:
        yield
    finally:
        _set_lock(descriptor, fcntl.F_UNLCK)


def _set_lock(descriptor: int, kind: int) -> None:
    """Take or give back a lock on a whole file, which keeps out DuckDB's locks of other processes.

    On Linux the lock belongs to the opened file. A lock of the process is lost as soon as the process closes any other
    descriptor of the file, and DuckDB does that: it opens a file twice to look at it before it locks it.
    """
    if sys.platform == "linux":
        # The struct flock: type, whence, start, length (0: to the end), process (must be 0).
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_SH | fcntl.LOCK_NB)


def _copy_blocks(source: int, target: int, checksums: dict[int, bytes]) -> bool:
    """Copy the blocks whose checksums are not the known ones. False if the time of the round was not enough."""
    ends = time.monotonic() + ROUND_S
    size = os.fstat(source).st_size
    for start in range(_HEADERS_BYTES, size, _BLOCK_BYTES):
        checksum = os.pread(source, _CHECKSUM_BYTES, start)
        if checksum != checksums.get(start):
            if time.monotonic() > ends:
                return False
            _write(target, os.pread(source, _BLOCK_BYTES, start), start)
            checksums[start] = checksum
    _write(target, os.pread(source, _HEADERS_BYTES, 0), 0)
    os.ftruncate(target, size)
    return True


def _write(target: int, block: bytes, start: int) -> None:
    while block:
        written = os.pwrite(target, block, start)
        block, start = block[written:], start + written


def _take_logs(file: Path, copy: Path, take: Callable[[str, str], object]) -> None:
    for suffix in _LOGS:
        with suppress(FileNotFoundError):
            take(f"{file}{suffix}", f"{copy}{suffix}")
