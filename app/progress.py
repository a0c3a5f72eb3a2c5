"""Shows the progress of long work: bars and live lines on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from store.progress import Counted, Notice

if TYPE_CHECKING:
    from curate.traces.sampling import Progress as SamplingProgress

PLAIN_SECONDS = 5.0


class ProgressView(Protocol):
    """Draws the counts of a run each time that it gets them."""

    def update(self, progress: "SamplingProgress") -> None:
        """Draw."""


def describe(progress: "SamplingProgress") -> str:
    """Describe acceptance, speed, tokens and cost in one line."""
    seconds = max(progress.seconds, 1e-9)
    accepted = progress.accepted / progress.attempts if progress.attempts else 0.0
    parts = [f"accepted {accepted:.1%}", f"{progress.attempts / seconds:,.1f} traces/s"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.completion_tokens:
        parts.append(f"{progress.prompt_tokens + progress.completion_tokens:,} tokens")
    if progress.cost_usd:
        parts.append(f"${progress.cost_usd:,.2f}")
    if progress.paused:
        parts.append("paused: the teacher does not answer; trying again")
    if progress.busy:
        parts.append(f"store busy, {progress.waiting:,} answers waiting")
    if progress.stopping and progress.in_flight:
        parts.append(f"stopping: waiting for {progress.in_flight:,} answers; press Ctrl-C again to drop them")
    return ", ".join(parts)


class TerminalProgress:
    """Draws one live bar: finished prompts, acceptance, speed, cost, elapsed and remaining time."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("prompts"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, progress: "SamplingProgress") -> None:
        """Draw."""
        self._bar.update(self._task, total=progress.prompts, completed=progress.done, description=describe(progress))


class PlainProgress:
    """Prints a line every few seconds, for logs."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PLAIN_SECONDS

    def update(self, progress: "SamplingProgress") -> None:
        """Print a line if the last one is old enough."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PLAIN_SECONDS
        prompts_left = progress.prompts - progress.done
        eta = f", ETA {prompts_left / (progress.done / progress.seconds):,.0f} s" if progress.done else ""
        Console(stderr=True, soft_wrap=True).print(
            f"{progress.done:,} of {progress.prompts:,} prompts, {describe(progress)}{eta}", highlight=False
        )


class TimeLeft:
    """Estimates the time left of counted work, at its speed since the first message."""

    def __init__(self) -> None:
        self._total = self._first = self._last = 0
        self._began = 0.0

    def describe(self, message: str) -> str:
        """Return the message, followed by the time left if the message counts and the speed is known."""
        if not isinstance(message, Counted):
            return message
        now = time.monotonic()
        if message.total != self._total or message.done < self._last:
            # The counts of another piece of work begin here.
            self._total, self._first, self._began = message.total, message.done, now
        self._last = message.done
        finished = message.done - self._first
        if not finished or message.done >= message.total:
            return message
        seconds = (message.total - message.done) * (now - self._began) / finished
        return f"{message}, {f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min'} left"


@contextmanager
def status_line(about: str = "") -> Iterator[Callable[[str], None]]:
    """Show the newest message in one line. Without a terminal, print a line every few seconds.

    about: the beginning of every line. Messages that are `Counted` are shown with the time left. A `Notice` is printed
    at once and stays.
    """
    console = Console(stderr=True, soft_wrap=True)
    time_left = TimeLeft()
    before = f"{about}: " if about else ""

    def keep(notice: Notice) -> None:
        console.print(before + notice, highlight=False, markup=False)

    if console.is_terminal:
        with console.status(escape(about)) as status:

            def show(message: str) -> None:
                if isinstance(message, Notice):
                    keep(message)
                else:
                    status.update(escape(before + time_left.describe(message)))

            yield show
        return
    last = time.monotonic()

    def tell(message: str) -> None:
        nonlocal last
        line = before + time_left.describe(message)
        if isinstance(message, Notice):
            keep(message)
        elif time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            console.print(line, highlight=False, markup=False)

    yield tell
