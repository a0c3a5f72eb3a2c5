import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import TrainerCallback

from store import InputError, SnapshotError, Store
from tests.train.weights import weights
from train.runs import find_student, last_checkpoint, open_snapshot, student_folder
from train.sft.training import SftSettings, train_sft, training_arguments
from train.sft.weighted_loss import SftLoss, WeightedSFTTrainer, encode_traces
from train.students.student import load_student

FEW = SftSettings(max_steps=4, batch_size=4, save_steps=2, log_steps=1)


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_a_training_leaves_a_student_a_run_and_curves(inputs: Store) -> None:
    told: list[str] = []
    done = train_sft(inputs, "traces", "new", "first", FEW, on_progress=told.append)
    assert done.steps == 4
    assert told[-1].startswith("step 4 of 4: loss ")
    load_student(find_student(inputs, "first"))
    assert not (done.folder / "checkpoints").exists()
    ((kind, dataset, status, settings),) = fetch(
        inputs, "select kind, dataset, status, settings from runs where kind like 'train%'"
    )
    assert (kind, dataset, status) == ("train-sft", "shop", "done")
    facts = json.loads(settings)
    assert facts["snapshot"] == f"traces@{open_snapshot(inputs, 'traces').version}"
    assert (facts["student"], facts["templates"], facts["seed"]) == ("new", ["rerank_numbers.v1"], 0)
    assert {"torch", "trl", "transformers"} <= facts["libraries"].keys()
    losses = fetch(inputs, "select step, value from run_metrics where metric = 'loss' order by step")
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert done.figures["loss"] == losses[-1][1]


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"lora_rank": 2, "optimizer": "adamw"}], ids=str)
def test_the_same_training_gives_the_same_weights_and_another_seed_others(
    changed: dict[str, Any], inputs: Store
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        # A program that calls us has drawn before.
        torch.rand(1)
        train_sft(inputs, "traces", "new", name, SftSettings(max_steps=2, batch_size=4, seed=seed, **changed))
    a, b, c = (weights(inputs, name) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_lora_trains_and_leaves_a_plain_model(inputs: Store) -> None:
    train_sft(
        inputs, "traces", "new", "adapted", SftSettings(max_steps=2, batch_size=4, lora_rank=2, optimizer="adamw")
    )
    assert weights(inputs, "adapted").keys() == weights(inputs, "new").keys()


@pytest.mark.slow
def test_a_killed_training_goes_on_at_its_last_checkpoint_in_the_same_order(inputs: Store) -> None:
    words = [
        "traces", "--student", "new", "--name", "killed", "--max-steps", "12", "--batch-size", "4",
        "--save-steps", "3", "--log-steps", "1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "app.cli", "train", "sft", "--store", str(inputs.folder)]
    process = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = student_folder(inputs, "killed")
    checkpoint = folder / "checkpoints" / "checkpoint-3" / "trainer_state.json"
    while not checkpoint.exists():
        assert (folder / "run.json").exists() or not folder.exists()
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(InputError, match="is not finished; continue it with `resume`"):
        find_student(inputs, "killed")
    subprocess.run([*command, "--name", "killed", "--resume"], check=True, stdout=subprocess.DEVNULL)
    settings = SftSettings(max_steps=12, batch_size=4, save_steps=3, log_steps=1)
    train_sft(inputs, "traces", "new", "whole", settings)
    killed, whole = weights(inputs, "killed"), weights(inputs, "whole")
    assert all(torch.equal(killed[key], whole[key]) for key in killed)
    curves = fetch(
        inputs,
        "select step, list(value order by run_id) from run_metrics where metric = 'loss' group by step order by step",
    )
    assert len(curves) == 12
    assert all(len(values) == 2 and values[0] == values[1] for _, values in curves)
    assert fetch(inputs, "select distinct status from runs where kind = 'train-sft'") == [("done",)]


class Stop(TrainerCallback):
    """Interrupts a training where a step would begin."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


# An epoch has four steps.
@pytest.mark.slow
@pytest.mark.parametrize("stopped_at", [pytest.param(4, marks=pytest.mark.slow), 6])
def test_a_training_stopped_in_a_later_epoch_goes_on_in_the_order_of_that_epoch(
    stopped_at: int, student: tuple[Any, Any], rows: datasets.Dataset, tmp_path: Path
) -> None:
    model, tokenizer = student
    encoded = encode_traces(rows, tokenizer, SftLoss(), max_tokens=512)
    orders: list[list[int]] = []

    def train(whole: bool, *callbacks: TrainerCallback, resume: bool = False) -> dict[str, torch.Tensor]:
        # 24 rows in batches of 6 are 4 steps an epoch.
        settings = SftSettings(epochs=2, batch_size=6, save_steps=1, log_steps=1)
        folder = tmp_path / ("whole" if whole else "stopped")
        trained = copy.deepcopy(model)
        trainer = WeightedSFTTrainer(
            trained,
            training_arguments(settings, folder, 512),
            encoded,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        if whole:
            sampler = trainer._get_train_sampler()
            for epoch in (0.0, 1.0, 1.5):
                trainer.state.epoch = epoch
                orders.append(list(sampler))
            trainer.state.epoch = 0.0
        trainer.train(resume_from_checkpoint=last_checkpoint(folder) if resume else None)
        return dict(trained.named_parameters())

    whole = train(True)
    assert orders[0] != orders[1] == orders[2]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    with pytest.raises(KeyboardInterrupt):
        train(False, Stop(stopped_at))
    stopped = train(False, resume=True)
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_what_cannot_be_trained_is_a_clear_error_and_leaves_nothing(inputs: Store) -> None:
    with pytest.raises(SnapshotError, match="is a snapshot of kind 'dapo'; expected kind 'sft'"):
        train_sft(inputs, "prompts", "new", "x", FEW)
    with pytest.raises(InputError, match="there is no snapshot 'nope'"):
        train_sft(inputs, "nope", "new", "x", FEW)
    with pytest.raises(InputError, match="there is no student 'nope' in the store"):
        train_sft(inputs, "traces", "nope", "x", FEW)
    with pytest.raises(InputError, match=r"rows are longer than 30 tokens"):
        train_sft(inputs, "traces", "new", "x", SftSettings(max_tokens=30))
    with pytest.raises(InputError, match="cannot name a student"):
        train_sft(inputs, "traces", "new", "../x", FEW)
    with pytest.raises(InputError, match="`batch_size` is 0"):
        SftSettings(batch_size=0)
    with pytest.raises(InputError, match="`max_steps` is 0"):
        SftSettings(max_steps=0)
    with pytest.raises(InputError, match="`gradient_accumulation_steps` is 0"):
        SftSettings(gradient_accumulation_steps=0)
    with pytest.raises(InputError, match="`log_steps` is 0"):
        SftSettings(log_steps=0)
    with pytest.raises(InputError, match="no training called 'x' to resume"):
        train_sft(inputs, "", "", "x", FEW, resume=True)
    with pytest.raises(InputError, match="there is a student called 'new' already"):
        train_sft(inputs, "traces", "new", "new", FEW)
    file = next((open_snapshot(inputs, "traces").path / "data").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(SnapshotError, match="was changed"):
        train_sft(inputs, "traces", "new", "x", FEW)
    assert not student_folder(inputs, "x").exists()
    assert fetch(inputs, "select count(*) from runs where kind like 'train%'") == [(0,)]


def test_a_tokenizer_without_semantic_ids_is_refused(inputs: Store) -> None:
    from train.students.student import init_student  # noqa: PLC0415

    init_student(["some text"], 2, 8, "tiny", student_folder(inputs, "foreign"))
    with pytest.raises(InputError, match="has no token <s_a_8>"):
        train_sft(inputs, "traces", "foreign", "x", FEW)
