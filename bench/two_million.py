"""The trace browser on two million traces, against its bars.

    python bench/two_million.py [--keep FOLDER] [--runs 50]

Makes a store of simulated shoppers with 20,000 traces of the evidence teacher, then copies them a hundred times under
other ids, times, models and temperatures: 250,000 prompts, 2,000,000 traces, 18,000,000 verdicts, 6,000 labels. Then
each page runs in Streamlit's AppTest, every time in a new session: queries and drawing without the browser. Finally
`gr2 app` itself is opened in a Chromium, page after page, to measure its peak memory.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from browser import chromium, running_app
from measure import Bars
from playwright.sync_api import sync_playwright
from streamlit.testing.v1 import AppTest

from app.browser import label_page
from curate.candidates.making import make_candidates
from curate.datasets.simulation import simulate
from curate.review.labelling import QueueSettings, make_queue
from curate.sids.assignment import assign_semantic_ids
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import Store

COPIES = 100
PAGES = ("", "traces", "traces?passes=strict&split=train", "traces?text=bought+after", "label", "agreement", "sql")
COPY = (
    """
    insert into prompts by name
    select prompts.* replace (md5(prompt_id || copy) as prompt_id)
    from prompts, (select unnest(range(1, $copies)) as copy)
    """,
    """
    insert into traces by name
    select traces.* replace (
        md5(trace_id || copy) as trace_id,
        md5(prompt_id || copy) as prompt_id,
        'evidence.v' || (copy % 3 + 1) as model,
        [0.3, 0.5, 0.7, 1.0][copy % 4 + 1] as temperature,
        created_at + to_minutes(copy * 30) as created_at,
        md5_number_lower(concat_ws(chr(31), md5(prompt_id || copy), copy)) as group_id,
        reasoning || ' ' || copy as reasoning
    )
    from traces, (select unnest(range(1, $copies)) as copy)
    order by created_at
    """,
    """
    insert into verdicts by name
    select verdicts.* replace (md5(trace_id || copy) as trace_id, created_at + to_minutes(copy * 30) as created_at)
    from verdicts, (select unnest(range(1, $copies)) as copy)
    order by created_at
    """,
)
LABEL = """
    insert into label_events by name
    select
        md5(trace_id || annotator) as event_id,
        trace_id,
        annotator,
        if(random() < 0.7, 'good', 'bad') as label,
        []::varchar[] as tags,
        3.0 as seconds,
        created_at + interval 1 day as created_at
    from batch, (select unnest(['ann', 'ben', 'cem']) as annotator)
"""


def build(folder: Path) -> Store:
    """Make the store, unless the folder has it already."""
    if (folder / "store.duckdb").exists():
        return Store.open(folder)
    store = Store.open(folder, create=True)
    simulate(store, "big", users=4_000)
    assign_semantic_ids(store, "big")
    make_candidates(store, "big")
    sample(
        store, EvidenceTeacher(), SamplingSettings("big", limit=2_500, max_attempts=8, num_accepted=8, temperature=0.5)
    )
    with store.writing() as session:
        for statement in COPY:
            session.connection.execute(statement, {"copies": COPIES})
    with store.reading() as session:
        labelled = session.connection.sql("select trace_id, created_at from traces order by trace_id limit 2000").pl()
    with store.labelling() as session:
        session.connection.register("batch", labelled)
        session.connection.execute(LABEL)
    return store


def page(store: Store, module: str, function: str, **query: str) -> AppTest:
    """Return a page of the app in a new session, not yet drawn.

    The session has run once, empty: AppTest's first run looks through all installed packages for components, which a
    server does once, when it starts.
    """
    os.environ["GR2_STORE"] = str(store.folder)
    test = AppTest.from_string(
        f"import streamlit as st\nfrom app.browser.pages import page\nfrom app.browser.{module} import {function}\n"
        f"if 'open' in st.session_state:\n    page({function})()\n",
        default_timeout=60,
    ).run()
    test.session_state["open"] = True
    for name, value in query.items():
        test.query_params[name] = value
    return test


def p95(prepare: Callable[[int], AppTest], runs: int) -> float:
    """Return the 95th percentile of the seconds of prepared pages, after two runs to warm up."""
    seconds = []
    for number in range(runs + 2):
        prepared = prepare(number)
        started = time.perf_counter()
        prepared.run()
        seconds.append(time.perf_counter() - started)
        assert not prepared.exception, prepared.exception
        assert not prepared.error, prepared.error
    return float(np.quantile(seconds[2:], 0.95))


def main() -> None:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--runs", type=int, default=50)
    options = parser.parse_args()
    bars = Bars()
    with tempfile.TemporaryDirectory() as temporary:
        started = time.perf_counter()
        store = build(options.keep or Path(temporary) / "store")
        with store.reading() as session:
            traces, reasons = session.connection.execute("select count(*), avg(len(reasoning)) from traces").fetchall()[
                0
            ]
        print(f"       {traces:,} traces, {reasons:.0f} characters of reasoning, {time.perf_counter() - started:.0f} s")
        measure_pages(store, options.runs, bars)
        measure_memory(store, bars)
    sys.exit(not bars.met)


def measure_pages(store: Store, runs: int, bars: Bars) -> None:
    """Measure whole runs of the pages' scripts."""
    first = p95(lambda _: page(store, "trace_page", "draw_traces"), runs)
    bars.at_most("first page of traces, p95 s", first, 1.0)
    filters = (
        {"passes": "strict", "split": "train"},
        {"fails": "paper", "temperature": "0.7"},
        {"first_failed_rule": "target_first", "model": "evidence.v2"},
        {"label": "split"},
        {"min_pass_rate": "0.5"},
        {"target_rank": "5", "predicted_rank": "1"},
        {"text": "bought after"},
        {"text": "stands in no reasoning"},
        {"pattern": "by [a-z]+, the brand of [3-9] items"},
        {"copied": "yes"},
    )
    for chosen in filters:
        seconds = p95(lambda _, chosen=chosen: page(store, "trace_page", "draw_traces", **chosen), max(5, runs // 10))
        print(f"       filtered by {chosen}: {seconds:.2f}", flush=True)
    filtered = p95(lambda number: page(store, "trace_page", "draw_traces", **filters[number % len(filters)]), runs)
    bars.at_most("filtered page of traces, all of these in turn, p95 s", filtered, 1.0)
    bars.at_most(
        "overview with the funnel, p95 s", p95(lambda _: page(store, "overview_page", "draw_overview"), runs), 1.0
    )
    queue = make_queue(store, QueueSettings(f"bench-{time.time()}", size=1_000), "ann")
    # AppTest presses keys sooner than people see a trace.
    label_page.UNSEEN_SECONDS = 0
    label = page(store, "label_page", "draw_labels", queue=queue.queue_id)
    label.session_state["annotator-known"] = "ann"
    label.run()

    def press_good(_: int) -> AppTest:
        next(key for key in label.button if key.label == "Good").click()
        return label

    bars.at_most("next trace to label, p95 s", p95(press_good, runs), 0.5)


def measure_memory(store: Store, bars: Bars) -> None:
    """Measure the peak memory of `gr2 app` after all pages, three times over."""
    with running_app(store.folder) as app:
        with sync_playwright() as playwright, chromium(playwright) as context:
            for _ in range(3):
                for path in PAGES:
                    context.pages[0].goto(f"{app.address}/{path}")
                    context.pages[0].wait_for_timeout(4_000)
        bars.at_most("peak memory of the app, GB", app.peak_gb, 1.5)


if __name__ == "__main__":
    main()
