"""File locks, which decide who may have a DuckDB file open, and how long others wait.

`ReadWriteLock` orders the threads of this process. `queued` orders processes: a writer announces itself, and readers
that come later wait for it. So the writer waits only for readers that were there before. DuckDB alone would refuse the
writer as long as there is any reader, and overlapping readers could keep it out for ever.
"""

import fcntl
import os
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

from store.errors import StoreBusyError, StoreError

WAIT_S = 60.0
# The same for results that took long to compute. They must not be lost because another process reads.
PATIENT_WAIT_S = 600.0
# A writer delays new readers for at most this part of WAIT_S. If an old reader stays longer than that, the other
# readers may read beside it until it ends. So no reader times out because of a writer that times out.
_ANNOUNCED_PART = 0.5
# Seconds between two tries to lock a file.
_NAP_S = (0.002, 0.02)


def try_lock(file: int, path: Path, *, wait: bool = False) -> bool:
    """Lock an open file for this process, until it closes the file or ends.

    Returns False if another process has locked it. path: the file, for the message. wait: wait until no other process
    has locked it. Raises StoreError on a file system without locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise no_locks(path, error.strerror or str(error)) from error
    return True


def no_locks(path: Path, reason: str) -> StoreError:
    """The error for a file system without locks, where two processes would overwrite each other's work."""
    return StoreError(
        f"{path} cannot be locked ({reason}): keep the store on a file system with locks, such as a local disk"
    )


class AccessMode(Enum):
    """The mode in which a file is opened: for writing or for reading."""

    WRITE = auto()
    READ = auto()


class ReadWriteLock:
    """Lets either any number of readers or one writer of this process use a file.

    DuckDB's own lock keeps other processes out. Within a process, DuckDB refuses a second writing instance immediately
    instead of waiting, and accepts a second reading instance. But it uses a POSIX lock: when either instance closes the
    file, the lock is released for both. Concurrent readers must therefore share one instance.

    New readers queue behind waiting writers. Otherwise a stream of readers could block a label for ever. A thread that
    is reading already does not queue, because it would wait for itself.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: Counter[AccessMode] = Counter()
        self._waiting: Counter[AccessMode] = Counter()
        self._of_thread = threading.local()

    @contextmanager
    def acquire(self, path: Path, mode: AccessMode, wait_s: float) -> Iterator[None]:
        """Hold the lock for the block.

        path: the file, for error messages. Raises StoreBusyError after wait_s.
        """
        with self._changed:
            self._waiting[mode] += 1
            try:
                if not self._changed.wait_for(lambda: self._is_free(mode), timeout=wait_s):
                    raise busy(path, "a connection of this same process", wait_s)
            finally:
                self._waiting[mode] -= 1
                # Also after a time-out, because others may have queued only behind this waiter.
                self._changed.notify_all()
            self._held[mode] += 1
        reads = mode is not AccessMode.WRITE
        self._of_thread.reads = self.reads_of_thread() + reads
        try:
            yield
        finally:
            self._of_thread.reads = self.reads_of_thread() - reads
            with self._changed:
                self._held[mode] -= 1
                self._changed.notify_all()

    def _is_free(self, mode: AccessMode) -> bool:
        if self._held[AccessMode.WRITE]:
            return False
        if mode is AccessMode.WRITE:
            return not self._held[AccessMode.READ]
        # Fairness: a new reader lets waiting writers go first.
        return bool(self.reads_of_thread()) or not self._waiting[AccessMode.WRITE]

    def reads_of_thread(self) -> int:
        """The number of read locks that this thread holds."""
        return getattr(self._of_thread, "reads", 0)


@contextmanager
def queued(path: Path, mode: AccessMode, wait_s: float, *, nested: bool) -> Iterator[Callable[[], None]]:
    """Take a place in the queue of processes that use a file, before it is opened.

    A writer keeps its place for the block. A reader that comes later waits for it here. nested: whether this thread
    already reads the file. Such a reader does not wait, because the writer waits for it.

    Yields a function to call before each try to open the file. A writer that has delayed readers for too long then
    gives up its place. A reader lets a writer go first that has come in the meantime.

    Raises StoreBusyError after wait_s.
    """
    place = _Place(path, wait_s)
    try:
        if mode is AccessMode.WRITE:
            place.announce()
            yield place.give_up_if_late
        else:
            if not nested:
                place.let_writers_pass()
            yield (lambda: None) if nested else place.let_writers_pass
    finally:
        place.give_up()


class _Place:
    """A place in the queue: the lock of the file `journals/<name>.lock`, held by the writer that is next or at work."""

    def __init__(self, path: Path, wait_s: float) -> None:
        self._path = path
        # Beside the other locks of the store.
        self._marker = path.parent / "journals" / f"{path.name}.lock"
        self._file: int | None = None
        self._wait_s = wait_s
        self._until = time.monotonic() + wait_s
        self._announced_until = self._until

    def announce(self) -> None:
        try:
            file = os.open(self._marker, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            # The folder is not writable. DuckDB reports this with a better message.
            return
        self._file = file
        try:
            self._lock(file, fcntl.LOCK_EX)
        except OSError:
            # The file system has no locks. DuckDB reports this too.
            self.give_up()
            return
        self._announced_until = time.monotonic() + WAIT_S * _ANNOUNCED_PART
        # For the error messages of waiting processes. A full disk must not stop a writer, because it may free some
        # space.
        with suppress(OSError):
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)

    def let_writers_pass(self) -> None:
        # Without the marker, no writer has ever been here.
        with suppress(OSError):
            file = os.open(self._marker, os.O_RDONLY)
            try:
                self._lock(file, fcntl.LOCK_SH)
            finally:
                os.close(file)

    def give_up_if_late(self) -> None:
        if time.monotonic() > self._announced_until:
            self.give_up()

    def give_up(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lock(self, file: int, kind: int) -> None:
        while True:
            with suppress(BlockingIOError):
                return fcntl.flock(file, kind | fcntl.LOCK_NB)
            if time.monotonic() > self._until:
                raise busy(self._path, f"process {os.pread(file, 20, 0).decode() or '?'}, which writes,", self._wait_s)
            time.sleep(random.uniform(*_NAP_S))


locks_by_path: defaultdict[Path, ReadWriteLock] = defaultdict(ReadWriteLock)


def busy(path: Path, holder: str, wait_s: float) -> StoreBusyError:
    """The error for a caller that waited too long."""
    return StoreBusyError(
        f"{path} has been in use by {holder} for {wait_s:.0f} s, longer than gr2 ever holds it; "
        "close that program, then try again"
    )
