"""File locks, which decide the threads of this process that may have a DuckDB file open, and how long others wait."""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

from store.errors import StoreBusyError

WAIT_S = 60.0


class AccessMode(Enum):
    """How a file is opened: for writing or for reading."""

    WRITE = auto()
    READ = auto()


class ReadWriteLock:
    """Lets either any number of readers or one writer of this process use a file.

    DuckDB's own lock keeps other processes out. Within a process, DuckDB refuses a second writing instance immediately
    instead of waiting, and accepts a second reading one. But it uses a POSIX lock: when either instance closes the
    file, the lock is released for both. Concurrent readers must therefore share one instance.

    New readers queue behind waiting writers; otherwise a stream of readers could block a label for ever.
    A thread that is reading already does not queue, because it would wait for itself.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: Counter[AccessMode] = Counter()
        self._waiting: Counter[AccessMode] = Counter()
        self._of_thread = threading.local()

    @contextmanager
    def acquire(self, path: Path, mode: AccessMode) -> Iterator[None]:
        """Hold the lock for the block.

        path: the file, for error messages. Raises StoreBusyError after WAIT_S.
        """
        with self._changed:
            self._waiting[mode] += 1
            try:
                if not self._changed.wait_for(lambda: self._is_free(mode), timeout=WAIT_S):
                    raise busy(path, "a connection of this same process")
            finally:
                self._waiting[mode] -= 1
                # Also after a time-out: others may have queued only behind this waiter.
                self._changed.notify_all()
            self._held[mode] += 1
        reads = mode is not AccessMode.WRITE
        self._of_thread.reads = self._reads_of_thread() + reads
        try:
            yield
        finally:
            self._of_thread.reads = self._reads_of_thread() - reads
            with self._changed:
                self._held[mode] -= 1
                self._changed.notify_all()

    def _is_free(self, mode: AccessMode) -> bool:
        if self._held[AccessMode.WRITE]:
            return False
        if mode is AccessMode.WRITE:
            return not self._held[AccessMode.READ]
        # Fairness: a new reader lets waiting writers go first.
        return bool(self._reads_of_thread()) or not self._waiting[AccessMode.WRITE]

    def _reads_of_thread(self) -> int:
        """The number of read locks that this thread holds."""
        return getattr(self._of_thread, "reads", 0)


locks_by_path: defaultdict[Path, ReadWriteLock] = defaultdict(ReadWriteLock)


def busy(path: Path, holder: str) -> StoreBusyError:
    """The error for a caller that waited too long."""
    return StoreBusyError(
        f"{path} has been in use by {holder} for {WAIT_S:.0f} s, longer than gr2 ever holds it; "
        "close that program, then try again"
    )
