"""`gr2 demo`: the whole way, from simulated shoppers to a snapshot of verified traces, on a laptop and offline."""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from app.data_commands import print_candidates, print_ingest
from app.options import DEFAULT_STORE, StoreOption, open_store, print_table, say
from app.sid_commands import print_sids
from app.snapshot_commands import print_snapshot
from app.trace_commands import print_trace

DATASET = "demo"


def register(cli: typer.Typer) -> None:
    """Add this command."""
    cli.command()(demo)


def demo(
    users: Annotated[int, typer.Option(help="How many simulated shoppers.")] = 2000,
    items: Annotated[int, typer.Option(help="How many items they can buy.")] = 600,
    seed: Annotated[int, typer.Option(help="The same seed gives the same demo.")] = 0,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Simulate shoppers, write traces, judge them and publish a snapshot. Run it again: nothing is done twice.

    Example: gr2 demo
    """
    from curate.candidates import make_candidates
    from curate.requests import SamplingSettings
    from curate.sampling import sample
    from curate.sids.assignment import assign_semantic_ids
    from curate.simulation import put_ceiling, simulate
    from curate.snapshot_kinds import SnapshotSettings
    from curate.snapshots import publish
    from curate.status import load_status
    from curate.teachers.evidence import EvidenceTeacher
    from store.snapshots import verify_snapshot

    started = time.perf_counter()
    opened = open_store(store, create=True)
    say("1. shoppers with purchase routines")
    print_ingest(simulate(opened, DATASET, users=users, items=items, seed=seed))
    say("\n2. semantic IDs from the items' text")
    print_sids(assign_semantic_ids(opened, DATASET))
    say("\n3. ten candidates for each history, with evidence; and the best order there can be")
    summary = make_candidates(opened, DATASET)
    print_candidates(summary, put_ceiling(opened, DATASET, summary.pre_ranker))
    say("4. reasoning traces: up to four samples a prompt, until one puts the target first")
    for split in ("train", "valid"):
        print_trace(sample(opened, EvidenceTeacher(), SamplingSettings(DATASET, split=split, temperature=0.5)))
    say("\n5. an immutable snapshot of those that pass every rule")
    published = publish(opened, DATASET, SnapshotSettings(DATASET, policy="strict"))
    verify_snapshot(published.path)
    print_snapshot(published)
    say("")
    for table in load_status(opened):
        if table.title.startswith(("funnel", "why")):
            print_table(table.rows.columns, table.rows.rows(), title=table.title)
    say(f"done in {time.perf_counter() - started:.1f} s. Next:")
    # `make demo` leaves gr2 in an environment of its own, which need not be on the path.
    gr2 = "gr2" if shutil.which("gr2") else os.path.relpath(Path(sys.executable).with_name("gr2"))
    where = "" if store == DEFAULT_STORE else f" --store {store}"
    for what, line in (
        ("read the traces in a browser", f"{gr2} app{where}"),
        ("ask in SQL", f"{gr2} sql{where} \"from accepted_traces('strict') select reasoning limit 3\""),
        (
            "ask a language model",
            f"{gr2} trace demo{where} --teacher openai --model M --base-url http://127.0.0.1:8000/v1",
        ),
        (
            "train on them (pip install datasets)",
            f"python -c \"from datasets import load_dataset; print(load_dataset('{published.path}'))\"",
        ),
    ):
        say(f"  {what}:\n    {line}")
