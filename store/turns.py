"""Turns: who of this process may have a DuckDB file open at the same time, and how long anybody waits."""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

from store.errors import StoreBusyError

WAIT_S = 60.0


class Turn(Enum):
    """How a file is opened: to write it, to read it by our own queries, or to read it by SQL that people wrote."""

    WRITE = auto()
    READ = auto()
    SANDBOX = auto()


class Gate:
    """Lets those of this process who want one file take turns: any number that read, or one that writes.

    DuckDB's lock keeps other processes out. In one process it refuses a second instance that would write at once, in
    place of waiting, and lets one in that reads; but as the lock is one of POSIX, the first of two instances to close
    the file frees it for both. So those who read at the same time share one instance: where a sandbox is open, they
    come into it; where none is, whoever wants one waits until the others have read.

    Who comes to read waits behind who waits to write or for a sandbox, or many readers would keep a label out; a thread
    that reads already does not.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: Counter[Turn] = Counter()
        self._waiting: Counter[Turn] = Counter()
        self._of_thread = threading.local()

    @contextmanager
    def entered(self, path: Path, turn: Turn) -> Iterator[Turn]:
        """Wait for a turn and keep it for the block: that which was asked for, or SANDBOX where one is open to READ.

        Raises StoreBusyError after WAIT_S, RuntimeError where a thread that reads would wait for itself.
        """
        with self._changed:
            if turn is Turn.SANDBOX and self._reading_here() and self._inside[Turn.READ]:
                raise RuntimeError("this thread reads the store already: leave that block before you open a sandbox")
            self._waiting[turn] += 1
            try:
                if not self._changed.wait_for(lambda: self._is_free(turn), timeout=WAIT_S):
                    raise busy(path, "a connection of this same process")
            finally:
                self._waiting[turn] -= 1
                self._changed.notify_all()
            if turn is Turn.READ and self._inside[Turn.SANDBOX]:
                turn = Turn.SANDBOX
            self._inside[turn] += 1
        reads = turn is not Turn.WRITE
        self._of_thread.readers = self._reading_here() + reads
        try:
            yield turn
        finally:
            self._of_thread.readers = self._reading_here() - reads
            with self._changed:
                self._inside[turn] -= 1
                self._changed.notify_all()

    def _is_free(self, turn: Turn) -> bool:
        if self._inside[Turn.WRITE]:
            return False
        if turn is Turn.WRITE:
            return not self._inside[Turn.READ] and not self._inside[Turn.SANDBOX]
        if turn is Turn.SANDBOX and self._inside[Turn.READ]:
            return False
        if self._reading_here():
            return True
        return not self._waiting[Turn.WRITE] and not (turn is Turn.READ and self._waiting[Turn.SANDBOX])

    def _reading_here(self) -> int:
        """Turns to read that this thread has."""
        return getattr(self._of_thread, "readers", 0)


gates: defaultdict[Path, Gate] = defaultdict(Gate)


def busy(path: Path, holder: str) -> StoreBusyError:
    """The error of who has waited in vain."""
    return StoreBusyError(
        f"{path} has been in use by {holder} for {WAIT_S:.0f} s, longer than gr2 ever holds it: "
        "close that program, then try again"
    )
