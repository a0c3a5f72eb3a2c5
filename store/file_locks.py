"""File locks: which threads of this process may have a DuckDB file open at the same time, and how long they wait."""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

from store.errors import StoreBusyError

WAIT_S = 60.0


class AccessMode(Enum):
    """How a file is opened: to write it, to read it by our own queries, or to read it by SQL that people wrote."""

    WRITE = auto()
    READ = auto()
    SANDBOX = auto()


class ReadWriteLock:
    """Lets either any number of this process's readers or one writer use a file.

    DuckDB's own lock keeps other processes out. Within one process DuckDB refuses a second writing instance at once,
    instead of waiting, and admits a second reading one. But the lock is a POSIX lock: whichever of two instances closes
    the file first frees it for both. Readers that overlap must therefore share one instance: they join a sandbox where
    one is open, and whoever wants to open a sandbox waits until the other readers have finished.

    New readers queue behind waiting writers and sandboxes, because many readers would otherwise starve a label. A
    thread that already reads does not queue, because it would wait for itself.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: Counter[AccessMode] = Counter()
        self._waiting: Counter[AccessMode] = Counter()
        self._of_thread = threading.local()

    @contextmanager
    def acquire(self, path: Path, mode: AccessMode) -> Iterator[AccessMode]:
        """Hold the lock for the block. Yields the mode granted: the one requested, or SANDBOX to a READ that joins one.

        path: the file, for error messages. Raises StoreBusyError after WAIT_S, RuntimeError where a thread that reads
        would wait for itself.
        """
        with self._changed:
            if mode is AccessMode.SANDBOX and self._reads_of_thread() and self._held[AccessMode.READ]:
                raise RuntimeError("this thread already reads the store: leave that block before you open a sandbox")
            self._waiting[mode] += 1
            try:
                if not self._changed.wait_for(lambda: self._is_free(mode), timeout=WAIT_S):
                    raise busy(path, "a connection of this same process")
            finally:
                self._waiting[mode] -= 1
                self._changed.notify_all()
            if mode is AccessMode.READ and self._held[AccessMode.SANDBOX]:
                mode = AccessMode.SANDBOX
            self._held[mode] += 1
        reads = mode is not AccessMode.WRITE
        self._of_thread.reads = self._reads_of_thread() + reads
        try:
            yield mode
        finally:
            self._of_thread.reads = self._reads_of_thread() - reads
            with self._changed:
                self._held[mode] -= 1
                self._changed.notify_all()

    def _is_free(self, mode: AccessMode) -> bool:
        if self._held[AccessMode.WRITE]:
            return False
        if mode is AccessMode.WRITE:
            return not self._held[AccessMode.READ] and not self._held[AccessMode.SANDBOX]
        if mode is AccessMode.SANDBOX and self._held[AccessMode.READ]:
            return False
        if self._reads_of_thread():
            return True
        # Fairness: a new reader lets waiting writers, and before a plain read waiting sandboxes, go first.
        return not self._waiting[AccessMode.WRITE] and not (
            mode is AccessMode.READ and self._waiting[AccessMode.SANDBOX]
        )

    def _reads_of_thread(self) -> int:
        """How many read locks this thread holds."""
        return getattr(self._of_thread, "reads", 0)


locks_by_path: defaultdict[Path, ReadWriteLock] = defaultdict(ReadWriteLock)


def busy(path: Path, holder: str) -> StoreBusyError:
    """The error for a caller that waited too long."""
    return StoreBusyError(
        f"{path} has been in use by {holder} for {WAIT_S:.0f} s, longer than gr2 ever holds it: "
        "close that program, then try again"
    )
