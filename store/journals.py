"""Journals: append-only JSON lines, one file per run, which make generation independent of the database.

A line is written before each request ("sent") and when its response arrives ("received"). Each line is one write to the
operating system, so a killed process loses no response that it has received. A thread syncs the file to disk every
SYNC_S, so a power failure loses no more than the lines of that time. Batches are committed to the store in a
transaction that also advances the journal's offset, so nothing is committed twice. Once a finished run is committed
completely, its journal is compressed to `<run>.jsonl.zst`.
"""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson
import pyarrow as pa

from store.errors import InputError, StoreError
from store.file_locks import try_lock
from store.temporary import PREFIX

# The longest time in seconds until a written line is on disk, apart from the time that the disk takes.
SYNC_S = 0.25
# Disk space that a run reserves. When the disk is full, the answers of running requests still fit into it.
RESERVE = ".reserve"
RESERVE_BYTES = 4 * 1024 * 1024
# Errors of the operating system for a full disk, an exceeded quota, or a file of the maximum size.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Entry(NamedTuple):
    """One line: its record and the offset of the byte after it."""

    record: dict[str, Any]
    end: int


class JournalWriter:
    """Appends records to a run's journal. It holds the file's lock, which tells a live run from a dead one.

    full: the reason why the run should send no more requests, or None. It is set when the disk is full and the reserved
    space is in use. Raises InputError if another process writes this journal, and StoreError if it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.full: str | None = None
        self._file = -1
        self._failure: OSError | None = None
        self._reserve = path.with_suffix(RESERVE)
        try:
            self._file = _open_locked(path)
            self.end = self._synced = os.fstat(self._file).st_size
            if self.end and os.pread(self._file, 1, self.end - 1) != b"\n":
                # A kill in the middle of a write left half a line. It is ended here, and skipped when the journal is
                # read.
                self._write(b"\n")
            # The folder is synced too. Otherwise a power failure could lose the name of a file whose content is on
            # disk.
            sync_folder(path.parent)
            _allocate(self._reserve, RESERVE_BYTES)
        except OSError as error:
            if self._file != -1:
                os.close(self._file)
                with suppress(OSError):
                    if path.stat().st_size == 0:
                        path.unlink()
            raise self._cannot_write(error) from error
        self._closing = threading.Event()
        self._syncing = threading.Thread(target=self._sync_regularly, name=f"sync {path.name}", daemon=True)
        self._syncing.start()

    def append(self, record: dict[str, Any]) -> int:
        """Append one record and return the offset after it.

        Raises StoreError if the record cannot be written, or if an earlier one did not reach the disk. The journal then
        ends with a whole line, and further records may be appended.
        """
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        try:
            self._write_with_reserve(line)
        except OSError as error:
            raise self._cannot_write(error) from error
        if self._failure is not None:
            raise self._cannot_write(self._failure) from self._failure
        return self.end

    def close(self) -> None:
        """Flush to disk, and release the lock and the reserved space. Raises StoreError if the flush fails."""
        self._closing.set()
        self._syncing.join()
        file, self._file = self._file, -1
        try:
            os.fsync(file)
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            os.close(file)
            self._reserve.unlink(missing_ok=True)

    def _write_with_reserve(self, line: bytes) -> None:
        try:
            self._write(line)
        except OSError as error:
            if error.errno not in _FULL or self.full is not None:
                raise
            self.full = str(self._cannot_write(error))
            self._reserve.unlink(missing_ok=True)
            self._write(line)

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._file, line)
            while written < len(line):
                # A disk that is almost full accepts a part of the line. The next write then raises the reason.
                written += os.write(self._file, memoryview(line)[written:])
        except OSError:
            # Remove the part that was written, because the next line must not be glued to it.
            with suppress(OSError):
                os.ftruncate(self._file, self.end)
            raise
        self.end += len(line)

    def _sync_regularly(self) -> None:
        while not self._closing.wait(SYNC_S):
            end = self.end
            if end == self._synced:
                continue
            try:
                _sync_data(self._file)
            except OSError as error:
                # The operating system reports a lost write only once, so a second try could hide the loss.
                self._failure = error
                return
            self._synced = end

    def _cannot_write(self, error: OSError) -> StoreError:
        why = error.strerror or str(error)
        return StoreError(f"{self.path} cannot be written ({why}): free some space, then run the same command again")


# macOS has no fdatasync.
_sync_data = getattr(os, "fdatasync", os.fsync)


def sync_folder(folder: Path) -> None:
    """Sync a folder to disk, so that the names of its files survive a power failure."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _open_locked(path: Path) -> int:
    """Open a journal and lock it.

    A new journal becomes visible only after it is locked, so that nobody takes its run for dead.
    """
    is_new = not path.exists()
    place = _hidden(path) if is_new else path
    file = os.open(place, os.O_RDWR | os.O_APPEND | (os.O_CREAT if is_new else 0), 0o644)
    try:
        if not try_lock(file, path):
            raise InputError(f"{path} is being written by another process; wait for it or end it, then try again")
        if is_new:
            place.rename(path)
    except BaseException:
        os.close(file)
        if is_new:
            place.unlink(missing_ok=True)
        raise
    return file


def _hidden(path: Path) -> Path:
    """A name for a file until it is complete.

    If this process is killed, the next run removes the file, because its name has this prefix.
    """
    # The ending differs too, because glob("*.jsonl") also finds hidden files.
    return path.with_name(f"{PREFIX}{os.getpid()}-{path.name}.new")


def _allocate(path: Path, size: int) -> None:
    """Create a file that takes up disk space. Raises OSError, and leaves no file, if the disk has no room for it."""
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.write(bytes(size))
    except OSError as error:
        path.unlink(missing_ok=True)
        # Other errors, such as a limit on file sizes, do not mean that a journal has no room.
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise


class Rejection(NamedTuple):
    """A line of a journal that cannot become a trace, the offset of the byte after it, and the reason."""

    line: bytes
    end: int
    reason: str


def rejected_file(journal: Path) -> Path:
    """The file for rejected lines of a journal, `<run>.rejected.jsonl`, with offset, reason and line."""
    return journal.with_suffix(".rejected.jsonl")


def reject(journal: Path, rejections: Sequence[Rejection]) -> int:
    """Append lines to the file of rejected lines. Returns the number of new lines.

    Raises StoreError if the file cannot be written.
    """
    if not rejections:
        return 0
    path = rejected_file(journal)
    # A recovery that was killed before it could commit its offset rejects the same lines again.
    offsets = {entry.record.get("offset") for entry in read_journal(path)}
    new = [rejection for rejection in rejections if rejection.end not in offsets]
    # Stored as text, because no parser reads a line that is not JSON. Bytes that are not UTF-8 appear as escapes such
    # as \\xff.
    rows = [
        {"offset": end, "reason": reason, "line": line.decode(errors="backslashreplace").rstrip("\n")}
        for line, end, reason in new
    ]
    try:
        with path.open("ab") as file:
            if file.tell() and path.read_bytes()[-1:] != b"\n":
                file.write(b"\n")
            file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}): free some space, then try again") from error
    return len(new)


def rejected_lines(journals: Path) -> dict[Path, int]:
    """The number of rejected lines by file, for a folder of journals."""
    return {path: sum(1 for _ in read_journal(path)) for path in sorted(journals.glob("*.rejected.jsonl"))}


def is_live(path: Path) -> bool:
    """Whether a running process is still writing this journal."""
    with taken_over(path) as dead:
        return not dead


@contextmanager
def taken_over(path: Path) -> Iterator[bool]:
    """Hold the journal of a dead run for the block. Yields False, and holds nothing, if its run is alive."""
    # The operating system releases a lock when its process dies, in whatever way.
    file = os.open(path, os.O_RDONLY)
    try:
        yield try_lock(file, path)
    finally:
        os.close(file)


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield each line from byte `start` on, with the offset after it. The last line may be incomplete.

    A missing journal yields nothing. Compressed journals are read too.
    """
    if not path.exists():
        return
    end = start
    with _open_to_read(path) as file:
        file.seek(start)
        for line in file:
            end += len(line)
            yield line, end


def _open_to_read(path: Path) -> IO[bytes]:
    if path.suffix != ".zst":
        return path.open("rb")
    with pa.input_stream(str(path), compression="zstd") as stream:
        return BytesIO(stream.read())


def read_journal(path: Path, start: int = 0) -> Iterator[Entry]:
    """Yield the complete lines from byte `start` on. Incomplete lines, left by a kill during a write, are skipped.

    A missing journal yields nothing. Compressed journals are read too.
    """
    for line, end in read_lines(path, start):
        if not line.endswith(b"\n"):
            # This is the last line, which a live process may still be writing.
            return
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(record, dict):
            yield Entry(record, end)


def compress_journal(path: Path) -> None:
    """Replace a journal by `<run>.jsonl.zst`, which is much smaller. The caller must hold the journal.

    The compressed journal is a second copy of the responses that were paid for; `zstdcat` shows it. An empty journal is
    removed.
    """
    with suppress(OSError):  # a full disk: the journal stays as it is, and the next run tries again
        if path.stat().st_size:
            with path.open("rb") as source:
                _rewrite(source, _compressed(path), "zstd")
        path.unlink()


def restore_journal(path: Path) -> bool:
    """Restore a journal from its compressed copy. Returns False if there is no readable copy."""
    try:
        with pa.input_stream(str(_compressed(path)), compression="zstd") as source:
            _rewrite(source, path, None)
    except OSError:
        return False
    return True


def _compressed(path: Path) -> Path:
    return path.with_name(f"{path.name}.zst")


def _rewrite(source: Any, target: Path, compression: str | None) -> None:
    """Copy an open file to `target`, which appears only once the whole copy is on disk."""
    hidden = _hidden(target)
    try:
        with pa.output_stream(str(hidden), compression=compression) as copy:
            while block := source.read(1 << 20):
                copy.write(block)
        with hidden.open("rb") as written:
            os.fsync(written.fileno())
        hidden.rename(target)
        sync_folder(target.parent)
    finally:
        hidden.unlink(missing_ok=True)
