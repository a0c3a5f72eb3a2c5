"""Two people label 200 traces in two browsers while `gr2 trace` writes to the same store, against the bars.

    python bench/labels_while_tracing.py [--labels 200] [--pace 8]

The data are simulated shoppers, with the evidence teacher. One run generates all the time. Windows of thirty seconds in
which two Chromium pages press keys, each a label every `--pace` seconds, alternate with windows in which they rest. A
person who reads sixty words and looks at ten items needs at least eight seconds; `--pace 2` is faster than anybody
reads. The slowdown is the ratio of the journal's growth in the two kinds of windows, in the same run and the same
minutes. The browsers stand for separate computers, so they only get CPU time that nothing else needs. The app has the
priority that it gives itself.
"""

import argparse
import ctypes
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from browser import chromium, running_app
from measure import GR2, Bars
from playwright.sync_api import Page, expect, sync_playwright

from curate.candidates.making import make_candidates
from curate.datasets.simulation import simulate
from curate.review.labelling import QueueSettings, make_queue
from curate.sids.assignment import assign_semantic_ids
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import Store

WINDOW_S = 30.0
PEOPLE = ("ann", "ben")
KEYS = "gbus"
# Constants of Linux's prctl.h and capability.h.
PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23
SHOWN = "text => document.querySelector('[data-testid=stProgress]')?.textContent.includes(text)"


class Labeller:
    """One person who labels on one page."""

    def __init__(self, page: Page, address: str, name: str, traces: int) -> None:
        self.page = page
        self.traces = traces
        self.done = 0
        self.waits: list[float] = []
        page.goto(address)
        page.get_by_label("Your name").fill(name)
        page.keyboard.press("Enter")
        expect(page.get_by_text("Completion as received")).to_be_visible(timeout=60_000)

    def label(self) -> None:
        """Press a key and wait until the label is stored and the next trace is there."""
        # An earlier key would be taken for a second press on the trace before, because nobody can have seen this trace.
        self.page.wait_for_timeout(400)
        started = time.perf_counter()
        self.page.keyboard.press(KEYS[self.done % len(KEYS)])
        self.done += 1
        # `expect` is not used, because it describes the whole page at each look, which is a third of the browser's work
        # for a label.
        self.page.wait_for_function(SHOWN, arg=f"{self.done} of {self.traces:,} by you", polling=50, timeout=60_000)
        self.waits.append(time.perf_counter() - started)

    def errors(self) -> int:
        """The number of error messages on the page."""
        return self.page.get_by_test_id("stAlert").count() + self.page.get_by_test_id("stException").count()


def stand_back() -> None:
    """Give this process, and the browsers that it starts from now on, only idle CPU time.

    A browser that runs as root would raise its threads above all others (nice -8). Other users may not do this, so that
    right is dropped.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0)


def build(folder: Path) -> Store:
    """Make a store of simulated shoppers, with some traces to label."""
    store = Store.open(folder, create=True)
    simulate(store, "bench", users=8_000)
    assign_semantic_ids(store, "bench")
    make_candidates(store, "bench")
    sample(store, EvidenceTeacher(), SamplingSettings("bench", limit=1_000, temperature=0.9))
    return store


def main() -> None:
    """Generate, label in every other window, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--pace", type=float, default=8.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = build(Path(temporary) / "store")
        queue = make_queue(store, QueueSettings("while-tracing", size=2 * options.labels), PEOPLE[0])
        with running_app(store.folder) as app:
            command = [*GR2, "trace", "bench", "--teacher", "evidence", "--temperature", "0.5"]
            attempts = ["--max-attempts", "200", "--num-accepted", "200", "--store", str(store.folder)]
            generation = subprocess.Popen([*command, *attempts], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stand_back()
            try:
                with sync_playwright() as playwright, chromium(playwright) as first, chromium(playwright) as second:
                    address = f"{app.address}/label?queue={queue.queue_id}"
                    labellers = [
                        Labeller(context.pages[0], address, name, queue.traces)
                        for context, name in zip((first, second), PEOPLE, strict=True)
                    ]
                    began_s = app.cpu_s
                    rates, errors = take_turns(store, generation, labellers, options.labels, options.pace)
                    label_s = (app.cpu_s - began_s) / sum(labeller.done for labeller in labellers)
            finally:
                generation.send_signal(signal.SIGINT)
                generation.wait()
        with store.reading() as session:
            ((stored,),) = session.connection.execute("select count(*) from labels.label_events").fetchall()
            ((traces,),) = session.connection.execute("select count(*) from traces").fetchall()
    print(f"       {traces:,} traces in the store at the end; a label took {label_s:.2f} s of a core in the app")
    report(labellers, rates, errors, stored)


def take_turns(
    store: Store, generation: subprocess.Popen[bytes], labellers: list[Labeller], labels: int, pace_s: float
) -> tuple[dict[bool, list[float]], int]:
    """Measure the journal's growth in bytes per second, window by window, with and without labelling.

    Also returns the number of error messages on the pages.
    """
    time.sleep(20)  # the run begins
    (journal,) = [path for path in store.journals.glob("*.jsonl") if path.stat().st_mtime > time.time() - 5]
    rates: dict[bool, list[float]] = {True: [], False: []}
    errors = 0
    busy = True
    while sum(labeller.done for labeller in labellers) < labels or not busy:
        began, size = time.perf_counter(), journal.stat().st_size
        turn = 0
        while (elapsed := time.perf_counter() - began) < WINDOW_S:
            due = turn * pace_s / len(labellers)
            if busy and elapsed >= due:
                labellers[turn % len(labellers)].label()
                errors += sum(labeller.errors() for labeller in labellers)
                turn += 1
            else:
                time.sleep(0.02)
        rates[busy].append((journal.stat().st_size - size) / (time.perf_counter() - began))
        count = sum(labeller.done for labeller in labellers)
        print(f"       {count} labels, {rates[busy][-1] / 1e6:.2f} MB/s {'with' if busy else 'without'}", flush=True)
        if generation.poll() is not None:
            sys.exit("generation ended before the labels did: give it more to do")
        busy = not busy
    return rates, errors


def report(labellers: list[Labeller], rates: dict[bool, list[float]], errors: int, stored: int) -> None:
    """Print metrics and bars."""
    bars = Bars()
    waits = [wait for labeller in labellers for wait in labeller.waits]
    labels = sum(labeller.done for labeller in labellers)
    print(f"       a key to the next trace: median {statistics.median(waits):.2f} s, worst {max(waits):.2f} s")
    bars.at_least("labels", labels, 200)
    bars.at_most("labels lost", labels - stored, 0)
    bars.at_most("errors shown", errors, 0)
    slowdown = 1 - statistics.mean(rates[True]) / statistics.mean(rates[False])
    bars.at_most("generation slowed by labelling", slowdown, 0.10)
    sys.exit(not bars.met)


if __name__ == "__main__":
    main()
