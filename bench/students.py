"""The paper's table of training stages, with students from scratch: SFT, RL, both, no reasoning, no evidence.

    python bench/students.py [--data beauty] [--seeds 3] [--processes 3] [--keep FOLDER] [--markdown FILE]

There is one store, with cross-fitted train lists, traces by the scorecard with evidence and traces by the pre-ranker's
order without evidence. Each seed then trains every configuration from a separate new student. A seed is a process with
one thread and a copy of the store. Metrics are over the test lists that contain their target, as the mean of the seeds
list by list. Intervals are 95%, by a paired bootstrap over lists. --keep FOLDER continues an interrupted run. Needs the
real data (GR2_DATA).
"""

import argparse
import multiprocessing
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from measure import DATA, Bars, quiet

from curate.candidates.making import make_candidates
from curate.datasets.ingest import ingest
from curate.datasets.sources import choose_sources
from curate.evaluation.metrics import ndcg_at_k, recall_at_k
from curate.evaluation.rankers.lambdamart import train_lambdamart_ranker
from curate.evaluation.rankers.offline import EvidenceRanker, PreRanker, ScorecardRanker
from curate.evaluation.rankers.protocol import Ranker, checked, given_order
from curate.sids.assignment import assign_semantic_ids
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.target_lists import load_target_lists
from curate.traces.teachers.evidence import BRIEF, EvidenceTeacher
from curate.traces.teachers.fitted.scorecard import ScorecardTeacher, fit_scorecard
from store import Store
from train.dapo.training import DapoSettings, train_dapo
from train.ranking.modes import student_rankers
from train.runs import student_folder
from train.sft.training import SftSettings, train_sft
from train.students.initialization import init_from_snapshot

LEVELS, IDS = "rerank_levels.v1", "rerank_ids.v1"
RL = DapoSettings(steps=12, refill_rounds=1, max_tokens=80)


@dataclass(frozen=True)
class Configuration:
    """One configuration of training, with either sft or rl.

    begin: the configuration whose student it begins with; None begins with a new student.
    """

    template: str
    mode: str
    begin: str | None = None
    sft: SftSettings | None = None
    rl: DapoSettings | None = None


CONFIGURATIONS = {
    "SFT": Configuration(LEVELS, "reasoning", sft=SftSettings(epochs=1.5, reasoning_weight=0.5)),
    "SFT + RL": Configuration(LEVELS, "reasoning", begin="SFT", rl=RL),
    # A new student writes only unreadable text, so that all rewards are equal. Four steps are enough to show it.
    "RL alone": Configuration(LEVELS, "reasoning", rl=replace(RL, steps=4)),
    "SFT, no reasoning": Configuration(LEVELS, "direct", sft=SftSettings(epochs=0.5, reasoning=False)),
    "SFT, no evidence": Configuration(IDS, "direct", sft=SftSettings(epochs=0.5, reasoning=False)),
}
OTHERS = ("pre-ranker", "evidence", "scorecard", "lambdamart")


def build(folder: Path, name: str) -> None:
    """Make the store that every seed begins with, and compute the ranks of rankers that are not students."""
    store = Store.open(folder / "store", create=True)
    ingest(store, name, DATA / name / "items.jsonl", DATA / name / "interactions.csv.gz")
    assign_semantic_ids(store, name)
    make_candidates(store, name)
    card = fit_scorecard(store, name)
    for template, teacher, temperature in (
        (LEVELS, ScorecardTeacher(card), 0.4),
        (IDS, EvidenceTeacher(BRIEF), 1.0),
    ):
        sample(store, teacher, SamplingSettings(name, template=template, temperature=temperature, max_attempts=8))
        for kind in ("sft", "dapo"):
            settings = SnapshotSettings(name, template=template, kind=kind, splits=("train",))
            publish(store, f"{template.split('.')[0]}-{kind}", settings)
    with store.reading() as session:
        sources = choose_sources(session, name, None, None)
    rankers: list[Ranker] = [
        PreRanker(""), EvidenceRanker(), ScorecardRanker(card), train_lambdamart_ranker(store, name, *sources, "test")
    ]  # fmt: skip
    for label, ranker in zip(OTHERS, rankers, strict=True):
        np.savez(folder / f"{label}.npz", **judge(store, name, ranker))


def judge(
    store: Store, name: str, ranker: Ranker, split: str = "test", limit: int | None = None
) -> dict[str, np.ndarray]:
    """Return, for each list, the rank of the target, and whether the answer was valid and copies the input order."""
    with store.reading() as session:
        sources = choose_sources(session, name, None, None)
    lists = load_target_lists(store, name, *sources, split, limit=limit).listed
    tasks = [listed.task for listed in lists]
    columns: dict[str, list[float]] = {"rank": [], "valid": [], "copied": []}
    for listed, ranked in zip(lists, ranker.rank(tasks), strict=True):
        order = checked(listed.task, ranked)
        columns["rank"].append(list(order.item_ids).index(listed.target_item_id) + 1)
        columns["valid"].append(order.valid)
        columns["copied"].append(order.valid and list(order.item_ids) == given_order(listed.task))
    return {key: np.array(values) for key, values in columns.items()}


def run_seed(folder: Path, name: str, seed: int) -> None:
    """Run all configurations of one seed, except those whose ranks exist already."""
    torch.set_num_threads(1)
    quiet()
    copy = folder / f"seed-{seed}"
    if not copy.exists():
        shutil.copytree(folder / "store", folder / f"copying-{seed}", dirs_exist_ok=True)
        (folder / f"copying-{seed}").rename(copy)
    store = Store.open(copy)
    for label, configuration in CONFIGURATIONS.items():
        student = re.sub(r"\W+", "-", label)
        results = folder / f"{label}-{seed}.npz"
        if results.exists():
            continue
        snapshot, new = configuration.template.split(".")[0], f"new-{configuration.template}"
        if not student_folder(store, new).exists():
            init_from_snapshot(store, f"{snapshot}-sft", new, "tiny", seed=seed)
        begin = new if configuration.begin is None else configuration.begin
        train = (
            partial(train_sft, store, f"{snapshot}-sft", begin, student, replace(configuration.sft, seed=seed))
            if configuration.sft
            else partial(
                train_dapo, store, f"{snapshot}-dapo", begin, student, replace(configuration.rl or RL, seed=seed)
            )
        )
        place = student_folder(store, student)
        if not (place / "config.json").exists():
            train(resume=place.exists())
        (ranker,) = student_rankers(store, student, [configuration.mode], template=configuration.template)
        np.savez(results, seconds=np.array(seconds_of(store, student)), **judge(store, name, ranker))
        print(f"seed {seed}, {label}: trained in {seconds_of(store, student):,.0f} s", flush=True)


def seconds_of(store: Store, student: str) -> float:
    """Return the seconds from a training's start to its end, by the store, including interruptions."""
    with store.reading() as session:
        ((seconds,),) = session.connection.execute(
            "select epoch(ended_at - started_at) from runs where settings->>'name' = $1 and status = 'done'", [student]
        ).fetchall()
    return float(seconds)


def gain(ranks_A_B: np.ndarray, ranks_B: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the gain in N@5 of several ranks of each list over one or as many others, with its 95% interval.

    The gain is the mean over the ranks.
    """
    gains_B = (ndcg_at_k(ranks_A_B, 5) - ndcg_at_k(ranks_B, 5)).mean(axis=0)
    draws = np.random.default_rng(seed).integers(len(gains_B), size=(2_000, len(gains_B)))
    low, high = np.quantile(gains_B[draws].mean(axis=1), (0.025, 0.975))
    return float(gains_B.mean()), float(low), float(high)


def told(gained: tuple[float, float, float]) -> str:
    """Return a gain and its interval as text."""
    return "{:+.4f} ({:+.4f} to {:+.4f})".format(*gained)


def run_seeds(work: Callable[[int], Any], seeds: int, processes: int) -> None:
    """Call `work` with each seed, in separate processes."""
    # A forked process would inherit the locks of polars' and torch's threads, and wait for them for ever.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(work, range(seeds)))


def finish(table: str, bars: Bars, markdown: Path | None) -> NoReturn:
    """Print the table, write it to a file if requested, and exit with 1 if a bar was missed."""
    print(table)
    if markdown:
        markdown.write_text(table + "\n")
    sys.exit(not bars.met)


def report(folder: Path, seeds: int) -> tuple[str, Bars]:
    """Return the table, and the bars."""
    pre = np.load(folder / "pre-ranker.npz")["rank"]
    lines = [
        "| ranker | valid | copied | R@1 | R@5 | N@5 | seeds' N@5 | gain over the pre-ranker, 95% | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    bars = Bars()
    for label in (*OTHERS, *CONFIGURATIONS):
        files = (
            [folder / f"{label}.npz"] if label in OTHERS else [folder / f"{label}-{seed}.npz" for seed in range(seeds)]
        )
        results = [np.load(file) for file in files]
        ranks = np.stack([each["rank"] for each in results])
        value, low, high = gain(ranks, pre)
        minutes = np.mean([each["seconds"] for each in results]) / 60 if "seconds" in results[0] else None
        figures = [
            np.mean([each["valid"].mean() for each in results]),
            np.mean([each["copied"].mean() for each in results]),
            recall_at_k(ranks, 1).mean(),
            recall_at_k(ranks, 5).mean(),
            ndcg_at_k(ranks, 5).mean(),
        ]
        spread = " ".join(f"{ndcg_at_k(row, 5).mean():.4f}" for row in ranks) if len(ranks) > 1 else ""
        over = told((value, low, high)) if label != "pre-ranker" else ""
        cells = [label, *(f"{figure:.4f}" for figure in figures), spread, over, f"{minutes:.1f}" if minutes else ""]
        lines.append(f"| {' | '.join(cells)} |")
        if label == "SFT":
            bars.at_least("SFT: gain in N@5 over the pre-ranker", value, 0.05)
            bars.at_least("SFT: lower end of its interval", low, 0.0)
            bars.at_most(
                "SFT: minutes of training, the slowest seed", max(each["seconds"] for each in results) / 60, 60
            )
    return "\n".join(lines), bars


def main() -> None:
    """Build, train, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="beauty")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    quiet()
    if not (DATA / options.data).is_dir():
        sys.exit(f"no real data in {DATA / options.data}; set GR2_DATA to the folder that holds it")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if not (folder / f"{OTHERS[-1]}.npz").exists():
            shutil.rmtree(folder / "store", ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            build(folder, options.data)
        run_seeds(partial(run_seed, folder, options.data), options.seeds, options.processes)
        table, bars = report(folder, options.seeds)
    finish(table, bars, options.markdown)


if __name__ == "__main__":
    main()
