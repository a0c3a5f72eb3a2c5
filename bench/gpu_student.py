"""A pretrained student on Beauty lists with titles, on one GPU in about twelve minutes: SFT, then DAPO.

    python bench/gpu_student.py --model FOLDER --keep FOLDER [--lists 1000] [--markdown FILE]

The store, the scorecard's traces and the metrics of the pre-ranker and LambdaMART are made first, on the CPU. --prepare
stops there, so that the folder can be made beforehand and copied to the machine with the GPU. The defaults of the steps
are sized for one H100 and a model of 270 million parameters, and have not been measured. A run that was interrupted
continues with the contents of --keep: trainings continue from their last checkpoint, and existing metrics are not
computed again. The table is over the same sample of test lists for all rankers, with 95% intervals by paired bootstrap
over lists. Needs the real data (GR2_DATA).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import DATA, quiet
from students import gain, seconds_of

from curate.candidates.making import make_candidates
from curate.datasets.ingest import ingest
from curate.datasets.sources import choose_sources
from curate.evaluation.metrics import ndcg_at_k, recall_at_k
from curate.evaluation.rankers.lambdamart import train_lambdamart_ranker
from curate.evaluation.rankers.offline import PreRanker
from curate.evaluation.rankers.protocol import Ranker, checked
from curate.sids.assignment import assign_semantic_ids
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.target_lists import load_target_lists
from curate.traces.teachers.fitted.scorecard import ScorecardTeacher, fit_scorecard
from store import Store
from train.dapo.training import DapoSettings, train_dapo
from train.ranking.modes import student_rankers
from train.runs import student_folder
from train.sft.training import SftSettings, train_sft

TEMPLATE = str(Path(__file__).with_name("rerank_titles.v1.jinja"))
NAME = "beauty"
STUDENTS = ("SFT", "SFT + DAPO")


def prepare(options: Any) -> Store:
    """Make the store with lists, traces and snapshots, and compute the ranks of all rankers except the students."""
    finished = options.keep / "lambdamart.npz"
    store = Store.open(options.keep / "store", create=True)
    if finished.exists():
        return store
    if not (DATA / NAME).is_dir():
        sys.exit(f"no real data in {DATA / NAME}; set GR2_DATA to the folder that holds it")
    ingest(store, NAME, DATA / NAME / "items.jsonl", DATA / NAME / "interactions.csv.gz")
    assign_semantic_ids(store, NAME)
    make_candidates(store, NAME)
    teacher = ScorecardTeacher(fit_scorecard(store, NAME))
    settings = SamplingSettings(NAME, template=TEMPLATE, temperature=0.4, max_attempts=8, limit=options.train_lists)
    sample(store, teacher, settings)
    for kind in ("sft", "dapo"):
        template = Path(TEMPLATE).stem if kind == "sft" else TEMPLATE
        where = SnapshotSettings(NAME, template=template, kind=kind, splits=("train",))
        publish(store, f"titles-{kind}", where)
    with store.reading() as session:
        sources = choose_sources(session, NAME, None, None)
    np.savez(options.keep / "pre-ranker.npz", **judge(store, PreRanker(""), options.lists))
    np.savez(finished, **judge(store, train_lambdamart_ranker(store, NAME, *sources, "test"), options.lists))
    return store


def judge(store: Store, ranker: Ranker, lists: int) -> dict[str, np.ndarray]:
    """Return the rank of the target and whether the answer was valid, for each test list of the sample."""
    with store.reading() as session:
        sources = choose_sources(session, NAME, None, None)
    listed = load_target_lists(store, NAME, *sources, "test", limit=lists).listed
    orders = [
        checked(each.task, ranked)
        for each, ranked in zip(listed, ranker.rank([each.task for each in listed]), strict=True)
    ]
    ranks = [list(order.item_ids).index(each.target_item_id) + 1 for each, order in zip(listed, orders, strict=True)]
    return {"rank": np.array(ranks), "valid": np.array([order.valid for order in orders])}


def train(store: Store, options: Any) -> None:
    """Train the model by SFT, then the resulting student by DAPO. A finished training is not repeated."""
    shared = {"gradient_checkpointing": False, "log_steps": 5}
    sft = SftSettings(
        max_steps=options.sft_steps, epochs=100, batch_size=options.batch_size, reasoning_weight=0.5, save_steps=100,
        learning_rate=options.sft_rate, **shared,
    )  # fmt: skip
    rl = DapoSettings(
        steps=options.rl_steps, prompts_per_batch=options.prompts, max_tokens=128, refill_rounds=1, save_steps=10,
        learning_rate=options.rl_rate, **shared,
    )  # fmt: skip
    for label, begin, train_one, snapshot, settings in (
        ("SFT", str(options.model), train_sft, "titles-sft", sft),
        ("SFT + DAPO", name_of("SFT"), train_dapo, "titles-dapo", rl),
    ):
        place = student_folder(store, name_of(label))
        if not (place / "config.json").exists():
            inputs = "" if place.exists() else snapshot, "" if place.exists() else begin
            train_one(store, *inputs, name_of(label), settings, resume=place.exists(), on_progress=show)  # type: ignore[operator]
        figures = options.keep / f"{label}.npz"
        if not figures.exists():
            (ranker,) = student_rankers(store, name_of(label), ["reasoning"], template=TEMPLATE, max_tokens=128)
            seconds = np.array(seconds_of(store, name_of(label)))
            np.savez(figures, seconds=seconds, **judge(store, ranker, options.lists))


def name_of(label: str) -> str:
    """The student's name in the store."""
    return label.lower().replace(" + ", "-")


def show(message: str) -> None:
    """Print a line of progress."""
    print(message, flush=True)


def report(folder: Path) -> str:
    """Return the table. Its caption names the device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    pre = np.load(folder / "pre-ranker.npz")["rank"]
    lines = [
        f"{len(pre):,} test lists; trained on: {device}",
        "",
        "| ranker | valid | R@1 | R@5 | N@5 | gain over the pre-ranker, 95% | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for label in ("pre-ranker", "lambdamart", *STUDENTS):
        arrays = np.load(folder / f"{label}.npz")
        ranks = arrays["rank"]
        value, low, high = gain(ranks[None], pre)
        figures = (arrays["valid"], recall_at_k(ranks, 1), recall_at_k(ranks, 5), ndcg_at_k(ranks, 5))
        gain_text = f"{value:+.4f} ({low:+.4f} to {high:+.4f})" if label != "pre-ranker" else ""
        minutes = f"{arrays['seconds'] / 60:.1f}" if "seconds" in arrays else ""
        lines.append(f"| {' | '.join([label, *(f'{each.mean():.4f}' for each in figures), gain_text, minutes])} |")
    return "\n".join(lines)


def main() -> None:
    """Prepare, train, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--keep", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--lists", type=int, default=1_000)
    parser.add_argument("--train-lists", type=int)
    parser.add_argument("--sft-steps", type=int, default=500)
    parser.add_argument("--sft-rate", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rl-steps", type=int, default=30)
    parser.add_argument("--rl-rate", type=float, default=2e-6)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    quiet()
    options.keep.mkdir(parents=True, exist_ok=True)
    store = prepare(options)
    if options.prepare:
        return
    train(store, options)
    table = report(options.keep)
    print(table)
    if options.markdown:
        options.markdown.write_text(table + "\n")


if __name__ == "__main__":
    main()
