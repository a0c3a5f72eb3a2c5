"""Child processes that answer one request after another, and that can be ended whatever they do.

A process that has answered is kept for the next request, because Python takes half a second to start. Requests and
answers are lines of JSON. `serve` is the child's side.
"""

import atexit
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

# How many idle processes are kept for each module.
_KEPT = 2
# How many answer at the same time.
_MOST = 4


class ChildDiedError(Exception):
    """The process ended without an answer. signal: the signal that ended it, or None."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit code {code}")
        self.signal = signal.Signals(-code) if code < 0 else None


class ChildProcess:
    """A process that runs `serve` in a module of gr2."""

    def __init__(self, module: str) -> None:
        # The child imports the same gr2, wherever it was imported from. Safe path: the folder that people stand in may
        # hold a store.py of theirs.
        root = str(Path(__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            # Ctrl-C in a terminal is for the parent, which then ends the child.
            process_group=0,
        )

    def ask(self, request: dict[str, Any], ends: float | None) -> dict[str, Any]:
        """The answer to a request. ends: the time of `time.monotonic` to wait for at most, or None for ever.

        Raises TimeoutError, and ChildDiedError if the process ends instead. It can be asked no more after either.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # If the process is dead, so is its answer.
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        answer, pipe = b"", self._process.stdout.fileno()
        while not answer.endswith(b"\n"):
            patience = None if ends is None else max(0.0, ends - time.monotonic())
            if not select.select([pipe], [], [], patience)[0]:
                raise TimeoutError
            part = os.read(pipe, 65_536)
            if not part:
                raise ChildDiedError(self._process.wait())
            answer += part
        reply: dict[str, Any] = json.loads(answer)
        return reply

    @property
    def is_alive(self) -> bool:
        """Whether the process can be asked."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                # Closing flushes what a dead process never read.
                with suppress(BrokenPipeError):
                    pipe.close()


class ChildPool:
    """The processes of one module: as many as there are requests at the same time, but at most `most`."""

    def __init__(self, module: str, most: int) -> None:
        self._module = module
        self._most = most
        self._forget()
        atexit.register(self.close)
        # The pipes belong to the parent.
        os.register_at_fork(after_in_child=self._forget)

    def warm_up(self) -> None:
        """Start a process, if there is none, so that the first request does not wait for it."""
        with self._changing:
            if not self._idle and not self._busy:
                self._idle.append(ChildProcess(self._module))

    def ask(self, request: dict[str, Any], ends: float | None) -> dict[str, Any]:
        """What `ChildProcess.ask` does, with a free process.

        The process is ended after an error, and after an answer with a true value of `last`.
        """
        if not self._places.acquire(timeout=None if ends is None else max(0.0, ends - time.monotonic())):
            raise TimeoutError
        child = None
        try:
            child = self._take()
            answer = child.ask(request, ends)
            if not answer.get("last"):
                self._give_back(child)
                child = None
            return answer
        finally:
            # Also on Ctrl-C.
            if child is not None:
                with self._changing:
                    self._busy.remove(child)
                child.end()
            self._places.release()

    def close(self) -> None:
        """End all processes."""
        with self._changing:
            children = [*self._idle, *self._busy]
            self._idle.clear()
        for child in children:
            child.end()

    def _take(self) -> ChildProcess:
        with self._changing:
            while self._idle:
                child = self._idle.pop()
                if child.is_alive:
                    break
                child.end()
            else:
                child = ChildProcess(self._module)
            self._busy.append(child)
            return child

    def _give_back(self, child: ChildProcess) -> None:
        with self._changing:
            self._busy.remove(child)
            keep = len(self._idle) < _KEPT
            if keep:
                self._idle.append(child)
        if not keep:
            child.end()

    def _forget(self) -> None:
        self._changing = threading.Lock()
        self._places = threading.BoundedSemaphore(self._most)
        self._idle: list[ChildProcess] = []
        self._busy: list[ChildProcess] = []


@cache
def pool_of(module: str) -> ChildPool:
    """The processes of a module; others wait while _MOST answer."""
    return ChildPool(module, _MOST)


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], *, data_bytes: int, niceness: int) -> None:
    """Answer requests until the parent ends or closes the pipe.

    data_bytes: the most memory that this process may allocate. niceness: how far it stands back behind the parent.
    """
    # Nothing else may write into the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.nice(niceness)
    with suppress(ValueError, OSError):
        # Not the address space: libraries reserve much more of it than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
    with suppress(ValueError, OSError):
        # A core of a crash would hold the store's rows.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
        answers.flush()


def _end_with(parent: int) -> None:
    """End this process soon after its parent. A request may run for hours and look at no pipe."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
