"""The value of reasoning: students with and without it, trained on equally many tokens, and their cost per list.

    python bench/reasoning_budget.py [--data shop|beauty] [--users 20000] [--tokens 12000000] [--seeds 3]
        [--limit LISTS] [--keep FOLDER] [--markdown FILE]

All begin with the same new student and learn from the same traces of the scorecard. One student writes the reasoning
and then the order, and another writes only the order. The latter is also read by its first token, without writing. A
training takes as many steps as fit into the budget, counted in tokens of prompts and answers, so the student without
reasoning sees more traces. Metrics are over the test lists that contain their target. N@5 is the mean of the seeds list
by list, and intervals are 95%, by a paired bootstrap over lists. Milliseconds are per list in batches, on this machine
alone. --keep FOLDER continues an interrupted run. Beauty needs the real data (GR2_DATA).
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from measure import DATA, quiet
from students import LEVELS, gain, told

from curate.candidates.making import make_candidates
from curate.datasets.ingest import ingest
from curate.datasets.simulation import simulate
from curate.evaluation.evaluate import evaluate
from curate.evaluation.metrics import ndcg_at_k
from curate.evaluation.results import Evaluations
from curate.evaluation.settings import EvalSettings
from curate.sids.assignment import assign_semantic_ids
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.fitted.scorecard import ScorecardTeacher, fit_scorecard
from store import Store
from train import load_snapshot
from train.ranking.modes import student_rankers
from train.runs import TrainingSummary, open_snapshot, student_folder
from train.sft.settings import SftSettings
from train.sft.training import train_sft
from train.sft.weighted_loss import SftLoss, encode_traces
from train.students.initialization import init_from_snapshot
from train.students.student import load_student

# The modes in which each student answers, with their names in the table.
TRAINED = {
    "reasoning": {"reasoning": "with reasoning"},
    "direct": {"direct": "without", "first-token": "without, first token only"},
}
# The number of rows whose lengths are measured.
MEASURED = 1_000
RANKS = """
    select ranker, list(list_position(rankings.item_ids, target_item_id) order by list_id)
    from rankings join candidate_lists using (list_id)
    where run_id = $1 group by ranker
"""


def build(store: Store, name: str, users: int) -> None:
    """Make lists, traces and a snapshot, unless they exist already."""
    if name == "shop":
        simulate(store, name, users=users)
    else:
        ingest(store, name, DATA / name / "items.jsonl", DATA / name / "interactions.csv.gz")
    assign_semantic_ids(store, name)
    make_candidates(store, name)
    settings = SamplingSettings(name, template=LEVELS, temperature=0.4, max_attempts=8)
    sample(store, ScorecardTeacher(fit_scorecard(store, name)), settings)
    publish(store, "traces", SnapshotSettings(name, template=LEVELS, splits=("train",)))


def train(store: Store, mode: str, seed: int, tokens: int) -> TrainingSummary | None:
    """Train the student of a mode and a seed for as many steps as the budget allows.

    Returns None if it is trained already.
    """
    new, name = f"new-{seed}", f"{mode}-{seed}"
    if not student_folder(store, new).exists():
        init_from_snapshot(store, "traces", new, "tiny", seed=seed)
    place = student_folder(store, name)
    if (place / "config.json").exists():
        return None
    settings = SftSettings(reasoning=mode == "reasoning", reasoning_weight=0.5, seed=seed)
    rows = load_snapshot(open_snapshot(store, "traces").path)["train"]
    few = rows.shuffle(seed=seed).select(range(min(MEASURED, len(rows))))
    encoded = encode_traces(
        few, load_student(student_folder(store, new))[1], SftLoss(), max_tokens=4096, reasoning=settings.reasoning
    )
    length = np.mean([len(ids) for ids in encoded["input_ids"]])
    steps = max(round(tokens / (length * settings.batch_size)), 1)
    # The number of steps ends the training, after any number of passes.
    settings = replace(settings, max_steps=steps, log_steps=min(10, steps))
    return train_sft(store, "traces", new, name, settings, resume=place.exists())


def trained(store: Store, name: str) -> tuple[float, float]:
    """Return the tokens and steps of a training."""
    with store.reading() as session:
        ((tokens, steps),) = session.connection.execute(
            "select max(value) filter (metric = 'num_tokens'), max(step) from run_metrics join runs using (run_id)"
            " where settings->>'name' = $1 and status = 'done'",
            [name],
        ).fetchall()
    return tokens, steps


def judge(store: Store, name: str, seeds: int, limit: int | None) -> Evaluations:
    """Evaluate all students in all their modes in one run."""
    rankers = [
        ranker
        for student, modes in TRAINED.items()
        for seed in range(seeds)
        for ranker in student_rankers(store, f"{student}-{seed}", list(modes), max_tokens=128)
    ]
    return evaluate(store, name, rankers, EvalSettings(limit=limit, shuffles=0))


def report(store: Store, evaluation: Evaluations, seeds: int) -> str:
    """Return the table: a row for each mode, with gains over the pre-ranker and over the student with reasoning."""
    figures = {(row["ranker"], row["metric"]): row["value"] for row in evaluation.metrics.iter_rows(named=True)}
    with store.reading() as session:
        rows = session.connection.execute(RANKS, [evaluation.runs["run_id"][0]]).fetchall()
    ranks = {ranker: np.array(row) for ranker, row in rows}
    (pre_ranker,) = (ranker for ranker in ranks if (ranker, "conditional_ndcg_at_5_gain") not in figures)
    suffixes = {"reasoning": "", "direct": " without reasoning", "first-token": " first token"}
    lines = [
        "| student | tokens of training | steps | tokens read | tokens written | ms | valid | N@5 | seeds' N@5 "
        "| gain over the pre-ranker, 95% | gain over reasoning, 95% |",
        f"|{'---|' * 11}",
    ]
    base: np.ndarray | None = None
    for student, modes in TRAINED.items():
        tokens, steps = np.mean([trained(store, f"{student}-{seed}") for seed in range(seeds)], axis=0)
        for mode, label in modes.items():
            rankers = [f"{student}-{seed}{suffixes[mode]}" for seed in range(seeds)]
            ranks_S_B = np.stack([ranks[ranker] for ranker in rankers])
            ndcg_S_B = ndcg_at_k(ranks_S_B, 5)
            base = ndcg_S_B.mean(axis=0) if base is None else base
            read, written, milliseconds, valid = (
                np.mean([figures[ranker, metric] for ranker in rankers])
                for metric in ("prompt_tokens", "completion_tokens", "ms_per_list", "valid_share")
            )
            over = ndcg_S_B.mean(axis=0) - base
            cells = [
                label,
                f"{tokens:,.0f}",
                f"{steps:,.0f}",
                f"{read:,.0f}",
                f"{written:,.1f}",
                f"{milliseconds:,.1f}",
                f"{valid:.4f}",
                f"{ndcg_S_B.mean():.4f}",
                " ".join(f"{row.mean():.4f}" for row in ndcg_S_B),
                told(gain(ranks_S_B, ranks[pre_ranker])),
                told(interval(over)) if over.any() else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(values_B: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """Return the mean over lists, with its 95% bootstrap interval."""
    draws = np.random.default_rng(seed).integers(len(values_B), size=(2_000, len(values_B)))
    low, high = np.quantile(values_B[draws].mean(axis=1), (0.025, 0.975))
    return float(values_B.mean()), float(low), float(high)


def main() -> None:
    """Build, train, judge and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("shop", "beauty"), default="shop")
    parser.add_argument("--users", type=int, default=20_000, help="of the simulated shop")
    parser.add_argument("--tokens", type=int, default=12_000_000, help="budget of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="test lists; default: all")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    quiet()
    if options.data != "shop" and not (DATA / options.data).is_dir():
        sys.exit(f"no real data in {DATA / options.data}; set GR2_DATA to the folder that holds it")
    with tempfile.TemporaryDirectory() as temporary:
        store = Store.open((options.keep or Path(temporary)) / "store", create=True)
        build(store, options.data, options.users)
        for seed in range(options.seeds):
            for mode in TRAINED:
                if summary := train(store, mode, seed, options.tokens):
                    print(f"seed {seed}, {mode}: {summary.steps:,} steps in {summary.seconds:,.0f} s", flush=True)
        table = report(store, judge(store, options.data, options.seeds, options.limit), options.seeds)
    print(table)
    if options.markdown:
        options.markdown.write_text(table + "\n")


if __name__ == "__main__":
    main()
