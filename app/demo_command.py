"""`gr2 demo`: from simulated shoppers to a trained student and its evaluation, on a laptop and offline."""

import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands import add_command
from app.data_commands import print_candidates, print_ingest
from app.eval_commands import print_evaluation
from app.options import DEFAULT_STORE, StoreOption, open_store, prepare_training, print_table, say
from app.progress import status_line
from app.sid_commands import print_sids
from app.snapshot_commands import print_snapshot
from app.trace_commands import print_trace
from app.train_commands import print_student, print_training

if TYPE_CHECKING:
    from store import Store

DATASET = "demo"
# What the student reads and writes.
TEMPLATE = "rerank_levels.v1"
NEW, SFT, DAPO = "demo-new", "demo-sft", "demo-dapo"
RANKERS = ["evidence", "scorecard", "lambdamart", "oracle"]


def register(cli: typer.Typer) -> None:
    """Add this command."""
    add_command(cli, demo)


def demo(
    users: Annotated[int, typer.Option(help="How many simulated shoppers.")] = 2000,
    items: Annotated[int, typer.Option(help="How many items they can buy.")] = 600,
    seed: Annotated[int, typer.Option(help="The same seed gives the same demo.")] = 0,
    train: Annotated[
        bool, typer.Option(help="Train a student and evaluate it; without it, the demo takes 20 s.")
    ] = True,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Simulate shoppers, write traces, publish snapshots, train a student. Run it again: nothing is done twice.

    Example: gr2 demo
    """
    started = time.perf_counter()
    opened = open_store(store, create=True)
    if train:
        # Before the first minute is spent.
        prepare_training("gr2 demo")
    snapshot = _make_traces(opened, users, items, seed)
    if train:
        _train_student(opened, seed)
    say(f"done in {time.perf_counter() - started:.0f} s. Next:")
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
        ("see where the student is good", f"{gr2} eval demo{where} --student {DAPO} --slices"),
        ("train your own on the snapshot", f"{gr2} train sft --help"),
        (
            "or load it anywhere",
            f"python -c \"from datasets import load_dataset; print(load_dataset('{snapshot}'))\"",
        ),
    ):
        if train or DAPO not in line:
            say(f"  {what}:\n    {line}")


def _make_traces(store: "Store", users: int, items: int, seed: int) -> Path:
    """From shoppers to a snapshot of traces in words, for people to read; its folder."""
    from curate.candidates import make_candidates
    from curate.datasets.simulation import simulate
    from curate.evaluation.rankers.oracle import put_oracle
    from curate.review.status import load_status
    from curate.sids.assignment import assign_semantic_ids
    from curate.snapshots import SnapshotSettings
    from curate.snapshots.publishing import publish
    from curate.traces.sampling import sample
    from curate.traces.settings import SamplingSettings
    from curate.traces.teachers.evidence import EvidenceTeacher
    from store.snapshots import verify_snapshot

    say("1. shoppers with purchase routines")
    print_ingest(simulate(store, DATASET, users=users, items=items, seed=seed))
    say("\n2. semantic IDs from the items' text")
    print_sids(assign_semantic_ids(store, DATASET))
    say("\n3. ten candidates for each history, with evidence; and the best order there can be")
    summary = make_candidates(store, DATASET)
    print_candidates(summary, put_oracle(store, DATASET, summary.pre_ranker))
    say("4. reasoning traces: up to four samples a prompt, until one puts the target first")
    for split in ("train", "valid"):
        print_trace(sample(store, EvidenceTeacher(), SamplingSettings(DATASET, split=split, temperature=0.5)))
    say("\n5. an immutable snapshot of those that pass every rule")
    published = publish(store, DATASET, SnapshotSettings(DATASET, ruleset="strict", template="rerank_evidence.v1"))
    verify_snapshot(published.path)
    print_snapshot(published)
    say("")
    for table in load_status(store):
        if table.title.startswith(("funnel", "why")):
            print_table(table.rows.columns, table.rows.rows(), title=table.title)
    return published.path


def _train_student(store: "Store", seed: int) -> None:
    """Traces short enough to learn from scratch, a student of them by SFT and DAPO, and what it is worth."""
    from curate.evaluation.evaluate import evaluate
    from curate.evaluation.rankers.selection import select_rankers
    from curate.evaluation.results import load_evaluations
    from curate.evaluation.settings import EvalSettings
    from curate.snapshots import SnapshotSettings
    from curate.snapshots.publishing import publish
    from curate.traces.sampling import sample
    from curate.traces.settings import SamplingSettings
    from curate.traces.teachers.scorecard import ScorecardTeacher, fit_scorecard
    from train.dapo.settings import DapoSettings
    from train.dapo.training import train_dapo
    from train.ranking.rerankers import student_rankers
    from train.runs import student_folder
    from train.sft.settings import SftSettings
    from train.sft.training import train_sft
    from train.students.initialization import init_from_snapshot

    say("6. short traces, for a student from scratch: points for evidence by a scorecard, and an order")
    card = fit_scorecard(store, DATASET)
    settings = SamplingSettings(DATASET, template=TEMPLATE, temperature=0.4, max_attempts=8)
    print_trace(sample(store, ScorecardTeacher(card), settings))
    say("\n7. two more snapshots: these traces for SFT, prompts alone for DAPO")
    traces, prompts = (
        publish(store, f"demo-{kind}", SnapshotSettings(DATASET, template=TEMPLATE, kind=kind, splits=("train",)))
        for kind in ("sft", "dapo")
    )
    print_snapshot(traces)
    print_snapshot(prompts)
    say("\n8. a student from scratch: supervised fine-tuning on the traces, then reinforcement by DAPO")
    if not student_folder(store, NEW).exists():
        print_student(NEW, init_from_snapshot(store, str(traces.path), NEW, "tiny", seed=seed))
    sft = SftSettings(epochs=2, reasoning_weight=0.5, seed=seed)
    dapo = DapoSettings(steps=6, refill_rounds=1, max_tokens=80, seed=seed)
    for name, train, shown in (
        (SFT, partial(train_sft, store, str(traces.path), NEW, SFT, sft), ("loss", "mean_token_accuracy")),
        (DAPO, partial(train_dapo, store, str(prompts.path), SFT, DAPO, dapo), ("reward", "answers/valid")),
    ):
        folder = student_folder(store, name)
        if (folder / "config.json").is_file():
            say(f"student {name}: trained already")
            continue
        with status_line() as on_progress:
            done = train(resume=folder.exists(), on_progress=on_progress)
        print_training(name, done, shown)
    say("\n9. the student beside other rankers, on lists that nothing was trained on")
    judged = load_evaluations(store, DATASET).metrics.filter(ranker=DAPO)["run_id"].to_list()
    if judged:
        print_evaluation(load_evaluations(store, DATASET, judged[0]), [], slices=False)
        return
    judging = EvalSettings(shuffles=0, seed=seed)
    with status_line() as on_progress:
        selection = select_rankers(store, DATASET, RANKERS, judging, on_progress=on_progress)
        students = [ranker for name in (SFT, DAPO) for ranker in student_rankers(store, name, ["reasoning"])]
        evaluated = evaluate(store, DATASET, [*selection.rankers, *students], judging, on_progress=on_progress)
    print_evaluation(evaluated, selection.left_out, slices=False)
