"""Steps of gr2's SFT and DAPO beside plain TRL's, on the same model and data, in one run.

    python bench/train_speed.py [--rounds 5]

It uses the tiny student and simulated shoppers, without real data and network. SFT is compared with TRL's SFTTrainer on
the same token ids and labels, without weights. DAPO is compared with TRL's GRPOTrainer. Ours has dynamic sampling on,
and a reward that always tells completions apart, so that both roll out the same and the benchmark times our bookkeeping
of groups. `reward_table.py` measures the cost of rewards. Trainers take turns, a few steps each, round by round. The
bar is on the ratio of the medians.
"""

import argparse
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from measure import Bars, quiet
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from curate.candidates.making import make_candidates
from curate.datasets.simulation import simulate
from curate.sids.assignment import assign_semantic_ids
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.fitted.scorecard import ScorecardTeacher, fit_scorecard
from store import Store
from train import load_snapshot
from train.dapo.dynamic_sampling import DynamicSamplingTrainer
from train.dapo.training import COLUMNS
from train.runs import device_arguments, student_folder
from train.sft.weighted_loss import SftLoss, WeightedSFTTrainer, encode_traces
from train.students.initialization import init_from_snapshot
from train.students.student import load_student

TEMPLATE = "rerank_levels.v1"
STEPS = 6
SKIPPED = 2


class Stopwatch(TrainerCallback):
    """Measures the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock of a step."""
        self._begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock of a step."""
        self.seconds.append(time.perf_counter() - self._begun)


def time_steps(make: Callable[[TrainerCallback], Any]) -> list[float]:
    """Return the seconds of a new trainer's steps without the first ones."""
    watch = Stopwatch()
    make(watch).train()
    return watch.seconds[SKIPPED:]


def by_text(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """A reward that differs between different texts."""
    return [zlib.crc32(completion[0]["content"].encode()) / 2**32 for completion in completions]


def main() -> None:
    """Prepare once, then time the trainers in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    quiet()
    bars = Bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        store = Store.open(folder / "store", create=True)
        rows, prompts = prepare(store)
        student = student_folder(store, "new")
        for what, pair in (("SFT", sft_pair(student, rows, folder)), ("DAPO", dapo_pair(student, prompts, folder))):
            seconds: dict[str, list[float]] = {name: [] for name in pair}
            for _ in range(rounds):
                for name, make in pair.items():
                    seconds[name] += time_steps(make)
            ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "TRL"))
            print(f"{what}: a step of ours {ours:.3f} s, of TRL {theirs:.3f} s; {len(seconds['ours'])} steps each")
            bars.at_most(f"{what}: our step over TRL's", ours / theirs, 1.05)
    raise SystemExit(not bars.met)


def prepare(store: Store) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Make traces and prompts of simulated shoppers, and a new student."""
    simulate(store, "shop", users=300)
    assign_semantic_ids(store, "shop")
    make_candidates(store, "shop")
    teacher = ScorecardTeacher(fit_scorecard(store, "shop"))
    sample(store, teacher, SamplingSettings("shop", template=TEMPLATE, temperature=0.4))
    rows = []
    for kind in ("sft", "dapo"):
        snapshot = publish(
            store, f"shop-{kind}", SnapshotSettings("shop", template=TEMPLATE, kind=kind, splits=("train",))
        )
        rows.append(load_snapshot(snapshot.path, kind=kind)["train"])
    init_from_snapshot(store, "shop-sft", "new", "tiny")
    return rows[0], rows[1]


def sft_pair(student: Path, rows: datasets.Dataset, folder: Path) -> dict[str, Callable[[TrainerCallback], Any]]:
    """Return our trainer and TRL's for the same rows."""
    _, tokenizer = load_student(student)
    encoded = encode_traces(rows, tokenizer, SftLoss(), max_tokens=1_000)

    def arguments(**others: Any) -> SFTConfig:
        return SFTConfig(
            output_dir=str(folder / "sft"),
            max_steps=STEPS,
            per_device_train_batch_size=32,
            max_length=None,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **others,
            **device_arguments(),
        )

    def ours(watch: TrainerCallback) -> Any:
        model, _ = load_student(student)
        return WeightedSFTTrainer(model, arguments(), encoded, processing_class=tokenizer, callbacks=[watch])

    def bare(watch: TrainerCallback) -> Any:
        model, _ = load_student(student)
        return SFTTrainer(
            model,
            arguments(dataset_kwargs={"skip_prepare_dataset": True}),
            train_dataset=encoded.remove_columns("weights"),
            processing_class=tokenizer,
            callbacks=[watch],
        )

    return {"ours": ours, "TRL": bare}


def dapo_pair(student: Path, prompts: datasets.Dataset, folder: Path) -> dict[str, Callable[[TrainerCallback], Any]]:
    """Return our trainer and TRL's for the same prompts and rewards."""

    def make(watch: TrainerCallback, trainer: type[GRPOTrainer], **others: Any) -> Any:
        model, tokenizer = load_student(student)
        arguments = GRPOConfig(
            output_dir=str(folder / "dapo"),
            max_steps=STEPS,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=60,
            loss_type="dapo",
            beta=0.0,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **device_arguments(),
        )
        return trainer(
            model,
            by_text,
            args=arguments,
            train_dataset=prompts.select_columns(COLUMNS),
            processing_class=tokenizer,
            callbacks=[watch],
            **others,
        )

    return {
        "ours": lambda watch: make(watch, DynamicSamplingTrainer, refill_rounds=1),
        "TRL": lambda watch: make(watch, GRPOTrainer),
    }


if __name__ == "__main__":
    main()
