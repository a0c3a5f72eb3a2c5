"""Students from scratch on a teacher's points, beside LambdaMART: the recipe of docs/guides/training.md.

    python bench/points_students.py [--data beauty] [--teacher lambdamart] [--seeds 3] [--processes 2] [--steps 420]
        [--batch-size 32] [--lists 20000] [--limit LISTS] [--keep FOLDER] [--markdown FILE]

There is one store, with the teacher's points on train lists that contain their target, and on as many that do not. Each
seed then trains a new student by one SFT. --data shop is the simulated shop, with --users. A seed is a process with one
thread. Each student is read in three modes, on valid and on test lists (at most --limit of each that contain their
target). Valid lists select the mode. Metrics are over the test lists, as the mean of the seeds list by list. Intervals
are 95%, by a paired bootstrap over lists. "LambdaMART, former evidence" is the model of gr2 0.1, without similarities
and ranks, and with one model for all folds. --keep FOLDER continues an interrupted run. Beauty and Sports need the real
data (GR2_DATA).
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import DATA, Bars, quiet
from students import finish, gain, judge, run_seeds, seconds_of, told

from curate.candidates.making import make_candidates
from curate.datasets.ingest import ingest
from curate.datasets.simulation import simulate
from curate.datasets.sources import choose_sources
from curate.evaluation.metrics import ndcg_at_k, recall_at_k
from curate.evaluation.rankers.lambdamart import LambdaMartRanker
from curate.evaluation.rankers.offline import PreRanker
from curate.evaluation.rankers.protocol import Ranked
from curate.sids.assignment import assign_semantic_ids
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.target_lists import load_target_lists
from curate.traces.teachers.fitted.boosting import (
    LambdaMartSettings,
    fit_lambdamart,
    import_lightgbm,
    train_booster,
)
from curate.traces.teachers.fitted.candidate_features import RANKED, SIMILARITIES, feature_names, features_of
from curate.traces.teachers.fitted.lambdamart import POINTS
from curate.traces.teachers.selection import make_teacher
from prompts.tasks import RerankTask
from store import Store
from train.ranking.modes import READS
from train.ranking.points import PointsRanker, Scores
from train.ranking.rerankers import open_student
from train.runs import student_folder
from train.sft.training import SftSettings, train_sft
from train.students.initialization import init_from_snapshot

SNAPSHOT = "points"
FORMER, NOW = "LambdaMART, former evidence", "LambdaMART"
MODES = tuple(READS)
SPLITS = ("valid", "test")


@dataclass(frozen=True)
class Plan:
    """The settings that all seeds share."""

    folder: Path
    data: str
    teacher: str
    users: int
    list_size: int
    steps: int
    batch_size: int
    lists: int
    limit: int | None

    @property
    def others(self) -> tuple[str, ...]:
        """The rankers that are not students. The former evidence is only used with real data."""
        return ("pre-ranker", NOW) if self.data == "shop" else ("pre-ranker", FORMER, NOW)

    def results(self, label: str, split: str) -> Path:
        """The file of a ranker's ranks."""
        return self.folder / f"{label}-{split}.npz"


@dataclass(frozen=True)
class FormerLambdaMart:
    """LambdaMART as it was before similarities became evidence. booster: LightGBM's own object."""

    booster: Any
    columns: Sequence[int]

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """Rank the candidates of each task by descending prediction. Ties keep the input order."""
        for task in tasks:
            scores_K = self.booster.predict(features_of([task])[:, self.columns], num_threads=1)
            order = np.argsort(-scores_K, kind="stable")
            yield Ranked([task.candidates[k].item.item_id for k in order])


def former_lambdamart(store: Store, data: str) -> FormerLambdaMart:
    """Train the former LambdaMART with its former settings."""
    lightgbm = import_lightgbm()
    new = {*SIMILARITIES, *(f"{name}_rank" for name in RANKED)}
    columns = [place for place, name in enumerate(feature_names()) if name not in new]
    with store.reading() as session:
        sources = choose_sources(session, data, None, None)
    datasets: dict[str, Any] = {}
    for split in ("train", "valid"):
        lists = load_target_lists(store, data, *sources, split).listed
        datasets[split] = lightgbm.Dataset(
            features_of([listed.task for listed in lists])[:, columns],
            [
                candidate.item.item_id == listed.target_item_id
                for listed in lists
                for candidate in listed.task.candidates
            ],
            group=[len(listed.task.candidates) for listed in lists],
            reference=datasets.get("train"),
        )
    # Each tree saw all features and candidates then.
    settings = LambdaMartSettings(share_of_features=1.0, share_of_candidates=1.0)
    return FormerLambdaMart(train_booster(lightgbm, datasets["train"], datasets["valid"], settings), columns)


def build(plan: Plan) -> None:
    """Make the store that every seed begins with, and compute the ranks of rankers that are not students."""
    built = plan.folder / "built"
    if built.exists():
        return
    store = Store.open(plan.folder / "store", create=True)
    if plan.data == "shop":
        simulate(store, plan.data, users=plan.users, items=3_000)
    else:
        ingest(store, plan.data, DATA / plan.data / "items.jsonl", DATA / plan.data / "interactions.csv.gz")
    assign_semantic_ids(store, plan.data)
    with store.reading() as session:
        row = session.connection.execute("select count(*) from candidate_lists").fetchone()
    # A second call would change nothing, but take as long as the first.
    if row == (0,):
        make_candidates(store, plan.data, list_size=plan.list_size)
    with store.reading() as session:
        sources = choose_sources(session, plan.data, None, None)
    rankers = {
        "pre-ranker": lambda: PreRanker(""),
        FORMER: lambda: former_lambdamart(store, plan.data),
        NOW: lambda: LambdaMartRanker(fit_lambdamart(store, plan.data, *sources)),
    }
    for label in plan.others:
        if not plan.results(label, "test").exists():
            np.savez(plan.results(label, "test"), **judge(store, plan.data, rankers[label](), limit=plan.limit))
    options = {"model": POINTS if plan.teacher == "lambdamart" else None}
    teacher = make_teacher(plan.teacher, options, store=store, dataset=plan.data)
    for template, lists in (("rerank_levels_targeted.v2", "with-target"), ("rerank_levels.v2", "without-target")):
        settings = SamplingSettings(
            plan.data,
            template=template,
            lists=lists,
            limit=plan.lists,
            temperature=0,
            max_attempts=1,
            ruleset="answered",
        )
        sample(store, teacher, settings)
    publish(store, SNAPSHOT, SnapshotSettings(plan.data, teacher=plan.teacher, ruleset="answered", splits=("train",)))
    built.touch()


def run_seed(plan: Plan, seed: int) -> str:
    """Train and read one student. Returns its name."""
    torch.set_num_threads(1)
    quiet()
    store, new, name = Store.open(plan.folder / "store"), f"new-{seed}", f"rater-{seed}"
    if not student_folder(store, new).exists():
        init_from_snapshot(store, SNAPSHOT, new, "tiny", rope_theta=100, seed=seed)
    place = student_folder(store, name)
    if not (place / "config.json").exists():
        settings = SftSettings(
            epochs=100, max_steps=plan.steps, batch_size=plan.batch_size, reasoning_weight=1.0, seed=seed
        )
        train_sft(store, SNAPSHOT, new, name, settings, resume=place.exists())
    judge_student(plan, store, name)
    print(f"{name}: trained in {seconds_of(store, name):,.0f} s", flush=True)
    return name


def judge_student(plan: Plan, store: Store, name: str) -> None:
    """Read a student in all modes on valid and on test lists. Existing results are not computed again."""
    student = open_student(store, name)
    for split in SPLITS:
        results = [plan.results(f"{name}-{mode}", split) for mode in MODES]
        if all(file.exists() for file in results):
            continue
        with store.reading() as session:
            sources = choose_sources(session, plan.data, None, None)
        tasks = [
            listed.task for listed in load_target_lists(store, plan.data, *sources, split, limit=plan.limit).listed
        ]
        # All modes use the same scores.
        scores = PointsRanker(student, "both").scores(tasks)
        for mode, file in zip(MODES, results, strict=True):
            ranker = PointsRanker(student, READS[mode])
            np.savez(file, **judge(store, plan.data, Known(ranker, scores), split, plan.limit))


@dataclass(frozen=True)
class Known:
    """A ranker of lists whose scores are known already."""

    ranker: PointsRanker
    scores: Sequence[Scores]

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """Return the rankings of the known scores."""
        return map(self.ranker.ranking, tasks, self.scores)


def ranks_of(plan: Plan, labels: Sequence[str], split: str = "test") -> np.ndarray:
    """Return the ranks of the targets, one row per ranker."""
    return np.stack([np.load(plan.results(label, split))["rank"] for label in labels])


def report(plan: Plan, seeds: int) -> tuple[str, Bars]:
    """Return the table, and the bars."""
    labels = {label: [label] for label in plan.others}
    labels |= {mode: [f"rater-{seed}-{mode}" for seed in range(seeds)] for mode in MODES}
    valid = {mode: ndcg_at_k(ranks_of(plan, labels[mode], "valid"), 5).mean() for mode in MODES}
    chosen = max(MODES, key=lambda mode: valid[mode])
    columns = ["Ranker", "Valid N@5", "R@1", "R@5", "N@5", "N@5 by seed", *(f"Over {label}" for label in plan.others)]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for label in labels:
        ranks = ranks_of(plan, labels[label])
        cells = [
            f"**{label}**" if label == chosen else label,
            f"{valid[label]:.4f}" if label in MODES else "",
            *(f"{figure.mean():.4f}" for figure in (recall_at_k(ranks, 1), recall_at_k(ranks, 5), ndcg_at_k(ranks, 5))),
            " ".join(f"{ndcg_at_k(row, 5).mean():.4f}" for row in ranks) if label in MODES else "",
            *("" if label == other else told(gain(ranks, ranks_of(plan, [other])[0])) for other in plan.others),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    bars = Bars()
    best = plan.others[1]
    value, low, _ = gain(ranks_of(plan, labels[chosen]), ranks_of(plan, [best])[0])
    bars.at_least(f"N@5 of {chosen} over {best}", value, 0.0)
    bars.at_least("the lower end of its interval", low, 0.0)
    return "\n".join(lines), bars


def add_options(parser: argparse.ArgumentParser, data: str = "beauty", teacher: str = "lambdamart") -> None:
    """Add the options of a plan, and the common options of all benchmarks of students."""
    parser.add_argument("--data", default=data)
    parser.add_argument("--teacher", default=teacher)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--list-size", type=int, default=10)
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lists", type=int, default=20_000)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--markdown", type=Path)


def make_plan(options: argparse.Namespace, temporary: Path) -> Plan:
    """Make the plan of the options. Exits if it needs real data that are missing."""
    if options.data != "shop" and not (DATA / options.data).is_dir():
        sys.exit(f"no real data in {DATA / options.data}; set GR2_DATA to the folder that holds it")
    folder = options.keep or temporary
    folder.mkdir(parents=True, exist_ok=True)
    return Plan(
        folder, options.data, options.teacher, options.users, options.list_size, options.steps, options.batch_size,
        options.lists, options.limit,
    )  # fmt: skip


def main() -> None:
    """Build, train, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        plan = make_plan(options, Path(temporary))
        build(plan)
        run_seeds(partial(run_seed, plan), options.seeds, options.processes)
        table, bars = report(plan, options.seeds)
    finish(table, bars, options.markdown)


if __name__ == "__main__":
    main()
