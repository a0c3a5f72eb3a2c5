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
    """How a file is opened: for writing, for reading with gr2's own queries, or for reading with SQL of the user."""

    WRITE = auto()
    READ = auto()
    SANDBOX = auto()


class ReadWriteLock:
    """Lets either any number of readers or one writer of this process use a file.

    DuckDB's own lock keeps other processes out. Within a process, DuckDB refuses a second writing instance immediately
    instead of waiting, and accepts a second reading one. But it uses a POSIX lock: when either instance closes the
    file, the lock is released for both. Concurrent readers must therefore share one instance. They join a sandbox if
    one is open, and a new sandbox waits until all other readers have finished.

    New readers queue behind waiting writers and sandboxes; otherwise a stream of readers could block a label for ever.
    A thread that is reading already does not queue, because it would wait for itself.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: Counter[AccessMode] = Counter()
        self._waiting: Counter[AccessMode] = Counter()
        self._of_thread = threading.local()

    @contextmanager
    def acquire(self, path: Path, mode: AccessMode) -> Iterator[AccessMode]:
        """Hold the lock for the block. Yields the granted mode: the requested one, or SANDBOX if a READ joins one.

        path: the file, for error messages. Raises StoreBusyError after WAIT_S, and RuntimeError if a reading thread
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
                # Also after a time-out: others may have queued only behind this waiter.
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
        # Two instances must not be open at once (see the class), so a sandbox cannot join plain readers.
        if mode is AccessMode.SANDBOX and self._held[AccessMode.READ]:
            return False
        if self._reads_of_thread():
            return True
        # Fairness: a new reader lets waiting writers go first, and a plain read also lets waiting sandboxes go first.
        return not self._waiting[AccessMode.WRITE] and not (
            mode is AccessMode.READ and self._waiting[AccessMode.SANDBOX]
        )

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
