"""Measures benchmarks: child processes with their peak memory, and bars with the measured values."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GR2 = [sys.executable, "-m", "app.cli"]
DATA = Path(os.environ.get("GR2_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Measured:
    """One finished command. seconds: wall time. cpu_seconds: of all its threads and finished children."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str


def measure(*words: str, gr2: Sequence[str] = GR2) -> Measured:
    """Run `gr2 ...` as a separate process. gr2: the words that start the command; default: those of this checkout."""
    return measure_command([*gr2, *words])


def measure_command(command: Sequence[str], **options: Any) -> Measured:
    """Run a command as a separate process. Its peak memory is the operating system's value for that process.

    options: of `subprocess.Popen`. Exits with the end of its output if it fails.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{output[-3000:]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return Measured(time.perf_counter() - started, cpu_seconds, usage.ru_maxrss / 1024, output)


def quiet() -> None:
    """Keep the libraries of training from drawing progress bars between the lines of a benchmark."""
    import datasets  # noqa: PLC0415
    from transformers.utils import logging  # noqa: PLC0415

    datasets.disable_progress_bars()
    logging.disable_progress_bar()


class Bars:
    """Prints each bar with the measured value, and remembers whether all bars were met."""

    def __init__(self) -> None:
        self.met = True

    def at_least(self, what: str, value: float, bar: float) -> None:
        """Check a value that must not be under its bar."""
        self._print(what, value, f">= {bar:g}", value >= bar)

    def at_most(self, what: str, value: float, bar: float) -> None:
        """Check a value that must not be over its bar."""
        self._print(what, value, f"<= {bar:g}", value <= bar)

    def _print(self, what: str, value: float, bar: str, met: bool) -> None:
        self.met &= met
        print(f"{'met   ' if met else 'MISSED'} {what}: {value:,.4g} (bar {bar})", flush=True)
