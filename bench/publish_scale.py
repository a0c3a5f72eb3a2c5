"""`gr2 snapshot publish` of many traces, against its bars: memory, and how long it keeps writers out of the store.

    python bench/publish_scale.py [--traces 200000 1000000] [--keep FOLDER]

For each number of traces, this makes a store as bench/two_million.py does, publishes all of its traces in a separate
process, and verifies the snapshot. Then `gr2 verify` judges them again, and the CPU seconds per trace of both sizes are
compared: if the cost is linear in the number of traces, the ratio is 1. At last `gr2 sql "from traces"` prints all of
them, and its memory is that of both of its processes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import two_million
from measure import GR2, Bars

from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.verification import verify
from store import Session, Store
from store.snapshots import verify_snapshot

BASE_TRACES = 20_000


class TimedStore(Store):
    """A store that remembers its longest transaction, in wall time and in CPU seconds."""

    longest = (0.0, 0.0)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a timed read-only transaction."""
        with self._timed(), super().reading() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """Open a timed transaction that may write."""
        with self._timed(), super().writing() as session:
            yield session

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started, worked = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            held = (time.perf_counter() - started, time.process_time() - worked)
            TimedStore.longest = max(TimedStore.longest, held)


def work(step: str, folder: Path) -> None:
    """Run one step in this process, and print its measurements as JSON."""
    store = TimedStore.open(folder)
    TimedStore.longest, started, worked = (0.0, 0.0), time.perf_counter(), time.process_time()
    if step == "publish":
        snapshot = publish(store, f"scale-{os.getpid()}", SnapshotSettings("big", ruleset="answered"))
        rows = sum(split["rows"] for split in snapshot.manifest["splits"].values())
    else:
        rows = verify(store, "big").traces
    figures = {
        "rows": rows,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - worked,
        "longest_s": TimedStore.longest[0],
        "longest_cpu_s": TimedStore.longest[1],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    if step == "publish":
        verify_snapshot(snapshot.path)
    print(json.dumps(figures))


def measure(step: str, folder: Path, bars: Bars) -> dict[str, float]:
    """Measure one step in a separate process, and check its bars."""
    process = subprocess.run(
        [sys.executable, __file__, "--step", step, "--keep", str(folder)], stdout=subprocess.PIPE, check=True, text=True
    )
    figures: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    name = f"{step} of {figures['rows']:,} traces"
    print(
        f"       {name}: {figures['seconds']:.0f} s, {figures['cpu_seconds']:.0f} s of processors; in the longest hold "
        f"{figures['longest_cpu_s']:.1f} s of processors",
        flush=True,
    )
    bars.at_most(f"{name}, peak memory, GB", figures["peak_gb"], 1.0)
    bars.at_most(f"{name}, longest hold of the store, s", figures["longest_s"], 2.0)
    return figures


def measure_sql(folder: Path, bars: Bars) -> None:
    """Print all traces by `gr2 sql` and compare the peak memory with its bar."""
    peak, started = 0, time.perf_counter()
    command = [*GR2, "sql", "from traces", "--store", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, sum(map(resident_bytes, [process.pid, *children_of(process.pid)])))
        time.sleep(0.05)
    print(f"       gr2 sql of all traces: {time.perf_counter() - started:.0f} s, exit code {process.returncode}")
    bars.at_most("gr2 sql, exit code", process.returncode, 0)
    bars.at_most("gr2 sql of all traces, peak memory of both processes, MB", peak / 1e6, 500)


def children_of(pid: int) -> list[int]:
    """Return the ids of the processes that a process has started."""
    return [int(child) for child in read_proc(f"{pid}/task/{pid}/children").split()]


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, or 0 if it has ended."""
    fields = read_proc(f"{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if fields else 0


def read_proc(name: str) -> str:
    """Read a file of /proc, or nothing if the process has ended."""
    try:
        return Path("/proc", name).read_text("utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def settle(store: Store) -> None:
    """Leave a store as runs of gr2 would have, and not as bulk copies do.

    The copies have reasonings that are not those of their completions, which `gr2 verify` would correct one batch after
    the other. And DuckDB compacts what a bulk copy left when somebody writes next, which takes seconds.
    """
    for statement in (
        "update traces set reasoning = regexp_replace(reasoning, ' [0-9]+$', '')",
        "update datasets set created_at = created_at",
    ):
        with store.writing() as session:
            session.connection.execute(statement)


def main() -> None:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--step", choices=("publish", "verify"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        work(options.step, options.keep)
        return
    bars = Bars()
    costs: dict[str, list[float]] = {"publish": [], "verify": []}
    with tempfile.TemporaryDirectory() as temporary:
        for traces in options.traces:
            two_million.COPIES = traces // BASE_TRACES
            folder = (options.keep or Path(temporary)) / f"{traces}"
            settle(two_million.build(folder))
            for step, step_costs in costs.items():
                figures = measure(step, folder, bars)
                step_costs.append(figures["cpu_seconds"] / figures["rows"])
            measure_sql(folder, bars)
    for step, step_costs in costs.items():
        bars.at_most(
            f"{step}, processor seconds per trace, largest to smallest store", step_costs[-1] / step_costs[0], 1.5
        )
    sys.exit(not bars.met)


if __name__ == "__main__":
    main()
