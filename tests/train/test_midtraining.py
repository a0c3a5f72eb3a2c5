import copy
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from prompts.semantic_ids import render_sid
from store import InputError
from train.midtraining import MidtrainSettings, draw_rows, draw_sequences, encode_texts, midtrain, only_new_rows
from train.vocabulary import find_vocabulary

FEW = MidtrainSettings(warmup_steps=2, steps=3, batch_size=4, max_length=64, save_steps=1, log_steps=1)


@pytest.fixture
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
    with pytest.raises(InputError, match="no text is of a task that has a share"):
        draw_rows(tasks, {"d": 1.0}, 3, seed=0)


def test_in_the_warm_up_only_new_rows_move(student: tuple[Any, Any]) -> None:
    model, tokenizer = student
    vocabulary = find_vocabulary(tokenizer, 2, 8)
    before = copy.deepcopy(model.state_dict())
    with only_new_rows(model, vocabulary):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.0)
        ids = torch.tensor([tokenizer.encode("bought " + render_sid([1, 2]))])
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    new = list(vocabulary.new_rows)
    for name, weight in model.state_dict().items():
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            old = torch.ones(len(weight), dtype=torch.bool)
            old[new] = False
            assert torch.equal(weight[old], before[name][old])
            assert not torch.equal(weight[new], before[name][new])
        else:
            assert torch.equal(weight, before[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())


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


def test_a_resumed_training_ends_as_an_uninterrupted_one(
    student: tuple[Any, Any], texts: datasets.DatasetDict, tmp_path: Path
) -> None:
    model, tokenizer = student
    vocabulary = find_vocabulary(tokenizer, 2, 8)
    whole, again = copy.deepcopy(model), copy.deepcopy(model)
    midtrain(whole, tokenizer, texts, vocabulary, FEW, output_dir=tmp_path)
    # As if it had been killed after the second step of the second phase.
    (tmp_path / "full" / "checkpoint-3").rename(tmp_path / "later")
    midtrain(again, tokenizer, texts, vocabulary, FEW, output_dir=tmp_path, resume=True)
    for left, right in zip(whole.parameters(), again.parameters(), strict=True):
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
    with pytest.raises(InputError, match="the model takes 100 tokens"):
        encode_texts(texts, tokenizer, MidtrainSettings(max_length=200), longest=100)
    with pytest.raises(InputError, match="--persona-share is -1"):
        MidtrainSettings(persona=-1)
    encoded = encode_texts(texts, tokenizer, FEW, longest=4096)
    assert len(draw_sequences(encoded, FEW, 10, seed=0)) == 10
