"""A student that knows nothing and traces of its kind."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import pytest

from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import BRIEF, EvidenceTeacher
from prompts.completion import render_completion
from prompts.semantic_ids import render_sid
from store import Store
from train.runs import open_snapshot
from train.runs import student_folder as student_path
from train.sft.muon import MuonWithAdamW
from train.sft.training import SftSettings, training_arguments
from train.sft.weighted_loss import SftLoss, WeightedSFTTrainer, encode_traces
from train.snapshots import load_snapshot
from train.students.initialization import init_from_snapshot
from train.students.student import SIZES, StudentSize, init_student, load_student

BuildOnce = Callable[..., Path]
# A quarter of the time of size `tiny`.
SMALLER = StudentSize(hidden=64, layers=2, heads=2, head_dim=32, intermediate=128, text_tokens=1_500)
TEMPLATE = "rerank_numbers.v1"

SIDS = [render_sid([code, 7 - code]) for code in range(8)]


def a_row(number: int) -> dict[str, Any]:
    """Candidates in an order of its own; the right answer puts the target first and has a reason of its own length."""
    order = [(number + step * (1 + 2 * (number % 4))) % 8 for step in range(8)][:4]
    order = list(dict.fromkeys([*order, *range(8)]))[:4]
    candidates = [SIDS[code] for code in order]
    target = number % 4
    ranking = [target + 1, *(place + 1 for place in range(4) if place != target)]
    return {
        "prompt": [
            {"role": "system", "content": "Re-rank."},
            {"role": "user", "content": " ".join(candidates) + f" {number % 10}" * (1 + number % 5)},
        ],
        "completion": [
            {"role": "assistant", "content": render_completion(f"{candidates[target]} fits" * (number % 3), ranking)}
        ],
        "candidates": candidates,
        "target": candidates[target],
        "list_id": str(number),
    }


@pytest.fixture(scope="session")
def student_folder(build_once: BuildOnce) -> Path:
    texts = [message["content"] for row in map(a_row, range(40)) for message in (*row["prompt"], *row["completion"])]
    return build_once("student", lambda folder: init_student(texts, 2, 8, "tiny", folder))


@pytest.fixture
def student(student_folder: Path) -> tuple[Any, Any]:
    """A new model and its tokenizer."""
    return load_student(student_folder)


@pytest.fixture
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list([a_row(number) for number in range(24)])


def make_inputs(shop: Store) -> None:
    """Snapshots `traces` (sft) and `prompts` (dapo), and a student `new` that knows nothing."""
    sample(shop, EvidenceTeacher(BRIEF), SamplingSettings("shop", template=TEMPLATE, max_attempts=4))
    publish(shop, "traces", SnapshotSettings("shop", template=TEMPLATE, splits=("train",)))
    publish(shop, "prompts", SnapshotSettings("shop", kind="dapo", template=TEMPLATE))
    with mock.patch.dict(SIZES, smaller=SMALLER):
        init_from_snapshot(shop, "traces", "new", "smaller")


@pytest.fixture(scope="session")
def built_inputs(prepare_folder: Callable[..., Path], built_shop: Path) -> Path:
    """The folder of a shop with what `make_inputs` makes. Only read it."""
    return prepare_folder(built_shop, make_inputs)


@pytest.fixture(scope="session")
def built_copier(build_once: BuildOnce, built_inputs: Path) -> Path:
    """A student that gives most orders back as they came, and makes mistakes: what its answers earn differs."""
    return build_once("copier", lambda folder: train_copier(built_inputs, folder))


def train_copier(inputs: Path, folder: Path) -> None:
    model, tokenizer = load_student(inputs / "models" / "students" / "new")
    store = Store(inputs)
    prompts = load_snapshot(open_snapshot(store, "prompts").path, kind="dapo")["train"].select(range(64))
    answer = [{"role": "assistant", "content": render_completion("", range(1, 11))}]
    taught = prompts.map(lambda _: {"completion": answer}, load_from_cache_file=False)
    settings = SftSettings(max_steps=70, batch_size=4, learning_rate=0.02)
    trainer = WeightedSFTTrainer(
        model,
        training_arguments(settings, folder.with_name("checkpoints"), 512),
        encode_traces(taught, tokenizer, SftLoss(), max_tokens=512),
        processing_class=tokenizer,
        optimizers=(MuonWithAdamW(model, settings.learning_rate, settings.weight_decay), None),
    )
    trainer.train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def copying(inputs: Store, built_copier: Path) -> Store:
    """`inputs` with the student `copier`."""
    shutil.copytree(built_copier, student_path(inputs, "copier"))
    return inputs


@pytest.fixture
def inputs(built_inputs: Path, tmp_path: Path) -> Store:
    """A store of one's own with what `make_inputs` makes."""
    return Store(shutil.copytree(built_inputs, tmp_path / "inputs"))
