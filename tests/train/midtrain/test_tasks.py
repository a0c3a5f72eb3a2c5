import copy
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

from prompts.semantic_ids import render_sid
from store import InputError
from train.midtrain.tasks import MidtrainSettings, draw_rows, draw_sequences, encode_texts, midtrain
from train.students.student import load_student
from train.students.vocabulary import find_vocabulary

FEW = MidtrainSettings(warmup_steps=2, steps=3, batch_size=4, max_length=64, save_steps=1, log_steps=1)


@pytest.fixture(scope="module")
def texts() -> datasets.DatasetDict:
    bought = [render_sid([code % 8, 7 - code % 8]) for code in range(30)]
    rows = [
        {"row_id": f"n{place}", "task": "next_item", "text": "bought " + sid * 2} for place, sid in enumerate(bought)
    ]
    rows += [{"row_id": f"p{place}", "task": "persona", "text": f"likes {sid}"} for place, sid in enumerate(bought[:8])]
    rows += [
        {"row_id": f"c{place}", "task": "caption", "text": f"{sid} is soap"} for place, sid in enumerate(bought[:4])
    ]
    return datasets.DatasetDict({"train": datasets.Dataset.from_list(rows)})


def test_tasks_are_drawn_in_their_shares_and_no_row_twice_before_all_have_come() -> None:
    tasks = ["a"] * 100 + ["b"] * 5 + ["c"] * 50
    drawn = draw_rows(tasks, {"a": 0.6, "b": 0.3, "missing": 0.1}, 90, seed=0)
    names = [tasks[row] for row in drawn]
    assert (names.count("a"), names.count("b"), names.count("c")) == (60, 30, 0)
    assert len({row for row in drawn if tasks[row] == "a"}) == 60
    assert set(np.bincount(drawn)[100:105]) == {6}
    assert (draw_rows(tasks, {"a": 1.0}, 20, seed=0) == draw_rows(tasks, {"a": 1.0}, 20, seed=0)).all()
    assert (draw_rows(tasks, {"a": 1.0}, 20, seed=0) != draw_rows(tasks, {"a": 1.0}, 20, seed=1)).any()
    with pytest.raises(InputError, match="no task of the texts has a share above 0"):
        draw_rows(tasks, {"d": 1.0}, 3, seed=0)


def weights(model: Any) -> dict[str, torch.Tensor]:
    """Of every parameter; tied ones under both names."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters(remove_duplicate=False)}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_in_the_warm_up_only_new_rows_move(
    tied: bool, student: tuple[Any, Any], texts: datasets.DatasetDict, tmp_path: Path
) -> None:
    model, tokenizer = student
    if not tied:
        model.config.tie_word_embeddings = False
        model = Qwen3ForCausalLM(model.config)
    vocabulary = find_vocabulary(tokenizer, 2, 8)
    before = weights(model)
    # Enough texts that every code is read.
    midtrain(model, tokenizer, texts, vocabulary, replace(FEW, batch_size=42), output_dir=tmp_path)
    after_warm_up = weights(AutoModelForCausalLM.from_pretrained(tmp_path / "warm-up" / "checkpoint-2"))
    read = set(vocabulary.new_rows) - set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    for name, weight in after_warm_up.items():
        moved = set((weight != before[name]).nonzero()[:, 0].tolist())
        if name == "lm_head.weight" or (tied and name == "model.embed_tokens.weight"):
            assert moved == set(vocabulary.new_rows)
        elif name == "model.embed_tokens.weight":
            assert moved == read
        else:
            assert not moved, name
    assert all(not torch.equal(weight, after_warm_up[name]) for name, weight in weights(model).items())


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_of_the_next_token_within_each_text(
    packing: bool, student: tuple[Any, Any], texts: datasets.DatasetDict, tmp_path: Path
) -> None:
    model, tokenizer = student
    settings = MidtrainSettings(
        warmup_steps=1, warmup_learning_rate=0.0, steps=1, batch_size=6, max_length=64, packing=packing, log_steps=1
    )
    encoded = encode_texts(texts, tokenizer, settings, longest=4096)
    losses = []
    with torch.no_grad():
        for row in draw_sequences(encoded, settings, 6, seed=0):
            for ids in torch.tensor(row["input_ids"]).split(row.get("seq_lengths", [len(row["input_ids"])])):
                assert ids[-1] == tokenizer.eos_token_id
                logits = model(ids[None]).logits[0]
                losses.append(functional.cross_entropy(logits[:-1], ids[1:], reduction="none"))
    assert len(losses) > 6 if packing else len(losses) == 6
    told: dict[int, float] = {}
    midtrain(
        model,
        tokenizer,
        texts,
        find_vocabulary(tokenizer, 2, 8),
        settings,
        output_dir=tmp_path,
        on_log=lambda step, metrics: told.update({step: metrics["loss"]}),
    )
    assert told[1] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-4)


@pytest.mark.parametrize("packing", [False, True])
def test_both_phases_train_and_tell_their_figures(
    packing: bool, student: tuple[Any, Any], texts: datasets.DatasetDict, tmp_path: Path
) -> None:
    model, tokenizer = student
    settings = MidtrainSettings(
        warmup_steps=2, steps=3, batch_size=4, max_length=64, packing=packing, save_steps=1, log_steps=1
    )
    told: list[int] = []
    figures = midtrain(
        model,
        tokenizer,
        texts,
        find_vocabulary(tokenizer, 2, 8),
        settings,
        output_dir=tmp_path,
        on_log=lambda step, _: told.append(step),
    )
    assert told == [1, 2, 3, 4, 5]
    assert figures["loss"] > 0


@dataclass(frozen=True)
class Whole:
    """A training that nothing interrupts."""

    model: Any
    losses: dict[int, float]
    figures: dict[str, float]
    folder: Path


@pytest.fixture(scope="module")
def whole(student_folder: Path, texts: datasets.DatasetDict, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    model, tokenizer = load_student(student_folder)
    folder = tmp_path_factory.mktemp("whole")
    losses: dict[int, float] = {}
    figures = midtrain(
        model,
        tokenizer,
        texts,
        find_vocabulary(tokenizer, 2, 8),
        FEW,
        output_dir=folder,
        on_log=lambda step, metrics: losses.update({step: metrics["loss"]}),
    )
    return Whole(model, losses, figures, folder)


# Steps 1 and 2 warm up, 3 is the first of the next phase.
@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [pytest.param(step, marks=pytest.mark.slow) for step in (1, 2, 4, 5)] + [3])
def test_a_resumed_training_ends_as_an_uninterrupted_one(
    killed_at: int, whole: Whole, student: tuple[Any, Any], texts: datasets.DatasetDict, tmp_path: Path
) -> None:
    model, tokenizer = student
    vocabulary = find_vocabulary(tokenizer, 2, 8)
    killed, again = copy.deepcopy(model), copy.deepcopy(model)
    told_again = {}

    def kill(step: int, _: dict[str, float]) -> None:
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        midtrain(killed, tokenizer, texts, vocabulary, FEW, output_dir=tmp_path / "killed", on_log=kill)
    # A checkpoint that was being written then has no state yet.
    (tmp_path / "killed" / "full" / "checkpoint-3").mkdir(parents=True, exist_ok=True)
    midtrain(
        again,
        tokenizer,
        texts,
        vocabulary,
        FEW,
        output_dir=tmp_path / "killed",
        on_log=lambda step, metrics: told_again.update({step: metrics["loss"]}),
        resume=True,
    )
    for left, right in zip(whole.model.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)
    assert told_again == whole.losses
    assert list(told_again) == [1, 2, 3, 4, 5]


def test_a_training_that_is_over_takes_no_further_step(
    whole: Whole, student: tuple[Any, Any], texts: datasets.DatasetDict, tmp_path: Path
) -> None:
    model, tokenizer = student
    vocabulary = find_vocabulary(tokenizer, 2, 8)
    over = shutil.copytree(whole.folder, tmp_path / "over")
    with pytest.raises(InputError, match="contains checkpoints of a training; continue it with `resume`"):
        midtrain(model, tokenizer, texts, vocabulary, FEW, output_dir=over)
    assert midtrain(model, tokenizer, texts, vocabulary, FEW, output_dir=over, resume=True) == whole.figures
    for left, right in zip(whole.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_what_cannot_be_trained_on_is_a_clear_error(
    student: tuple[Any, Any], texts: datasets.DatasetDict, tmp_path: Path
) -> None:
    model, tokenizer = student
    vocabulary = find_vocabulary(tokenizer, 2, 8)
    with pytest.raises(InputError, match="has no training rows"):
        midtrain(model, tokenizer, datasets.DatasetDict(), vocabulary, FEW, output_dir=tmp_path)
    with pytest.raises(InputError, match=r"42 of 42 texts are longer than 2 tokens"):
        encode_texts(texts, tokenizer, MidtrainSettings(max_length=2), longest=4096)
    with pytest.raises(InputError, match="the model takes at most 100 tokens"):
        encode_texts(texts, tokenizer, MidtrainSettings(max_length=200), longest=100)
    with pytest.raises(InputError, match="`persona` is -1"):
        MidtrainSettings(persona=-1)
    encoded = encode_texts(texts, tokenizer, FEW, longest=4096)
    assert len(draw_sequences(encoded, FEW, 10, seed=0)) == 10
