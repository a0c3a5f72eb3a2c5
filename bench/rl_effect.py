"""The effect of RL after SFT: the same students before and after RL, under several designs.

    python bench/rl_effect.py [--data shop] [--teacher scorecard] [--designs NAME,...] [--rl-steps 200]
        [--prompts-per-batch 16] [and the options of points_students.py]

For each seed, a new student learns from a teacher's points by SFT, as in `bench/points_students.py`, and every design
goes on from that student, with prompts of the train lists of one fold of users. Students are compared by the order that
they write (greedy decoding, constrained to permutations), which is what RL rewards, and by their points, without
writing an order (the mode of `bench/points_students.py` that is best on valid lists before RL). Figures are over test
lists that contain their target, the mean of the seeds list by list. Gains are over the student of the same seed before
RL, read in the same way; intervals are 95%, by a paired bootstrap over lists. --keep FOLDER goes on with what an
interrupted run left there. Beauty and Sports need the real data (GR2_DATA).
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from measure import Bars, quiet
from points_students import MODES, NOW, SPLITS, Plan, add_options, build, judge_student, make_plan, ranks_of, run_seed
from students import finish, gain, judge, run_seeds, told

from curate.evaluation.metrics import ndcg_at_k, recall_at_k
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from store import Store
from train.dapo.settings import DapoSettings
from train.dapo.training import train_dapo
from train.ranking.rerankers import GeneratingRanker, open_student
from train.runs import student_folder

PROMPTS = "prompts"
WRITTEN = "written order"
BASE = DapoSettings(
    reward="ndcg",
    decode="permutation",
    loss="dr_grpo",
    scale_rewards="none",
    learning_rate=1e-4,
    lr_scheduler_type="linear",
    max_tokens=96,
    resolution_lists=0,
    log_steps=10,
)
DESIGNS = {
    "paper": replace(BASE, reward="conditional", loss="dapo", scale_rewards="group"),
    "ndcg": BASE,
    "ndcg-3e-4": replace(BASE, learning_rate=3e-4),
    "ndcg-3e-5": replace(BASE, learning_rate=3e-5),
    "two-passes": replace(BASE, loss="cispo", num_iterations=2),
    "groups-of-32": replace(BASE, num_generations=32, prompts_per_batch=4),
}
BAR = {"shop": 0.01}


def run_designs(plan: Plan, designs: Mapping[str, DapoSettings], seed: int) -> None:
    """Train one student by SFT, and continue from it with every design."""
    begin = run_seed(plan, seed)
    store = Store.open(plan.folder / "store")
    judge_written(plan, store, begin)
    for label, settings in designs.items():
        name = f"{label}-{seed}"
        place = student_folder(store, name)
        if not (place / "config.json").exists():
            summary = train_dapo(store, PROMPTS, begin, name, replace(settings, seed=seed), resume=place.exists())
            print(f"{name}: {summary.steps} steps", flush=True)
        judge_student(plan, store, name)
        judge_written(plan, store, name)


def judge_written(plan: Plan, store: Store, name: str) -> None:
    """Let a student write its orders for valid and test lists; what is there already is not written again."""
    for split in SPLITS:
        results = plan.results(f"{name}-{WRITTEN}", split)
        if not results.exists():
            ranker = GeneratingRanker(open_student(store, name), max_tokens=BASE.max_tokens, permutation=True)
            np.savez(results, **judge(store, plan.data, ranker, split, plan.limit))


def report(plan: Plan, designs: Mapping[str, DapoSettings], seeds: int) -> tuple[str, Bars]:
    """Return the table, and the bars."""

    def ranks(mode: str, label: str | None = None, split: str = "test") -> np.ndarray:
        return ranks_of(plan, [f"{label or 'rater'}-{seed}-{mode}" for seed in range(seeds)], split)

    lines, bars = [], Bars()
    by_points = max(MODES, key=lambda mode: ndcg_at_k(ranks(mode, split="valid"), 5).mean())
    for mode in (WRITTEN, by_points):
        before = ranks(mode)
        lines += [
            f"| {plan.data}, read by {mode} | Prompts | Valid N@5 | R@1 | N@5 | N@5 by seed | Gain over SFT |",
            "|---|---|---|---|---|---|---|",
        ]
        for label in (None, *designs):
            after = ranks(mode, label)
            settings = designs[label] if label else None
            cells = [
                label or "SFT",
                f"{settings.steps // settings.num_iterations * settings.prompts_per_batch:,}" if settings else "",
                f"{ndcg_at_k(ranks(mode, label, 'valid'), 5).mean():.4f}",
                f"{recall_at_k(after, 1).mean():.4f}",
                f"{ndcg_at_k(after, 5).mean():.4f}",
                " ".join(f"{ndcg_at_k(row, 5).mean():.4f}" for row in after),
                told(gain(after, before)) if label else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        for other in ("pre-ranker", NOW):
            (row,) = ranks_of(plan, [other])
            lines.append(f"| {other} | | | {recall_at_k(row, 1).mean():.4f} | {ndcg_at_k(row, 5).mean():.4f} | | |")
        lines.append("")
        # The design is chosen on valid lists, too.
        best = max(designs, key=lambda label, mode=mode: ndcg_at_k(ranks(mode, label, "valid"), 5).mean())
        value, low, _ = gain(ranks(mode, best), before)
        bars.at_least(f"by {mode}: gain of {best} in N@5 over SFT", value, BAR.get(plan.data, 0.0))
        bars.at_least(f"by {mode}: the lower end of its interval", low, 0.0)
    return "\n".join(lines), bars


def main() -> None:
    """Build, train, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, data="shop", teacher="scorecard")
    parser.add_argument("--designs", default=",".join(DESIGNS))
    parser.add_argument("--rl-steps", type=int, default=200)
    options = parser.parse_args()
    quiet()
    designs = {
        name: replace(DESIGNS[name], steps=options.rl_steps * DESIGNS[name].num_iterations)
        for name in options.designs.split(",")
    }
    with tempfile.TemporaryDirectory() as temporary:
        plan = make_plan(options, Path(temporary))
        build(plan)
        settings = SnapshotSettings(
            plan.data, kind="dapo", template="rerank_levels.v2", splits=("train",), held_out_folds=(0,)
        )
        publish(Store.open(plan.folder / "store"), PROMPTS, settings)
        run_seeds(partial(run_designs, plan, designs), options.seeds, options.processes)
        table, bars = report(plan, designs, options.seeds)
    finish(table, bars, options.markdown)


if __name__ == "__main__":
    main()
