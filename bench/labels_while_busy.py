"""How long a label takes while everything else goes on: slow queries, publishing and a run of `gr2 trace`.

    python bench/labels_while_busy.py [--traces 200000] [--labels 200] [--keep FOLDER]

Makes a store as bench/publish_scale.py does. Then four processes work at the same time: `gr2 trace` writes traces,
`gr2 snapshot publish` publishes all of them, `gr2 sql` runs one query after the other that reads every trace and every
label, and `gr2 sql` runs a query that takes hours and cannot be interrupted. Meanwhile this process does what a key on
the page Label does, about three times a second: it stores the label, takes the next trace of the queue, and reads that
trace. --keep goes on with the store of an earlier run.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import two_million
from measure import GR2, Bars
from publish_scale import BASE_TRACES, settle

from curate.review.labelling import QueueSettings, claim_next, label_assigned, make_queue
from curate.review.trace_pages import load_trace
from store import Store
from store.labels import Label

SCAN = """
select label, count(*), max(length(reasoning)), max(length(completion))
from traces left join labels_current using (trace_id)
group by label
"""
# It names labels, so that their file is read too.
ENDLESS = "select levenshtein(repeat('a', 1000000), repeat('b', 1000000)), (select count(*) from labels_current)"
PACE_S = 0.25


class Worker:
    """A command of gr2 that runs again and again until it is stopped."""

    def __init__(self, store: Store, *words: str) -> None:
        self._command = [*GR2, *words, "--store", str(store.folder)]
        self.ended: list[int] = []
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def look(self) -> None:
        """Start the command again if it has ended."""
        if (code := self._process.poll()) is not None:
            self.ended.append(code)
            self._start()

    def stop(self) -> None:
        """End the command, which may be in the middle of its work."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Build, label beside all workers, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=int, default=200_000)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        two_million.COPIES = options.traces // BASE_TRACES
        store = two_million.build((options.keep or Path(temporary)) / f"{options.traces}")
        settle(store)
        queue = make_queue(store, QueueSettings(f"busy-{time.time()}", size=2 * options.labels), "ann")
        before = count_labels(store)
        trace = ["trace", "big", "--teacher", "evidence", "--temperature", "0.5", "--max-attempts", "200"]
        workers = {
            "trace": Worker(store, *trace, "--num-accepted", "200"),
            "publish": Worker(store, "snapshot", "publish", "busy", "--dataset", "big", "--ruleset", "answered"),
            "scan": Worker(store, "sql", SCAN),
            "endless query": Worker(store, "sql", ENDLESS),
        }
        waits, reads = [], []
        assignment, _ = claim_next(store, queue, "ann")
        try:
            # Until all of them are at work.
            time.sleep(10)
            while len(waits) < options.labels:
                for worker in workers.values():
                    worker.look()
                assert assignment is not None
                started = time.perf_counter()
                assignment, _ = label_assigned(store, queue, "ann", assignment, Label.GOOD)
                waits.append(time.perf_counter() - started)
                if assignment is not None:
                    load_trace(store, assignment.trace_id, assignment.made_at)
                reads.append(time.perf_counter() - started - waits[-1])
                time.sleep(PACE_S)
        finally:
            for worker in workers.values():
                worker.stop()
        lost = len(waits) - (count_labels(store) - before)
    ended = {name: len(worker.ended) for name, worker in workers.items()}
    print(f"       ended and started again meanwhile: {ended}; the slowest label took {max(waits):.2f} s")
    print(f"       reading the next trace: p95 {np.quantile(reads, 0.95):.2f} s, the slowest {max(reads):.2f} s")
    bars = Bars()
    bars.at_most("a label, p95 s", float(np.quantile(waits, 0.95)), 0.5)
    bars.at_most("labels lost", lost, 0)
    bars.at_most("commands that failed", sum(any(worker.ended) for worker in workers.values()), 0)
    sys.exit(not bars.met)


def count_labels(store: Store) -> int:
    """Count the events of labels."""
    with store.reading() as session:
        ((count,),) = session.connection.execute("select count(*) from labels.label_events").fetchall()
    return int(count)


if __name__ == "__main__":
    main()
