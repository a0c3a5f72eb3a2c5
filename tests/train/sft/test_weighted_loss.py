import copy
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from trl import SFTConfig, SFTTrainer

from prompts.completion import RECOMMENDATIONS
from store import InputError
from train.sft.weighted_loss import IGNORED, SftLoss, WeightedSFTTrainer, encode_traces


def config(folder: Path, **changed: Any) -> SFTConfig:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "bf16": False,
        "activation_checkpointing": False,
        "use_cpu": True,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "max_length": None,
        "disable_tqdm": True,
    }
    return SFTConfig(**{**settings, **changed})


def train(student: tuple[Any, Any], encoded: datasets.Dataset, folder: Path, **changed: Any) -> tuple[Any, list[Any]]:
    model, tokenizer = student
    trainer = WeightedSFTTrainer(model, config(folder, **changed), encoded, processing_class=tokenizer)
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_weights_and_labels_stand_where_reasoning_and_order_stand(student: tuple[Any, Any], rows: Any) -> None:
    _, tokenizer = student
    encoded = encode_traces(rows, tokenizer, SftLoss(0.25, 1.0), max_tokens=512)
    for row, tokens in zip(rows, encoded, strict=True):
        text = row["completion"][0]["content"]
        parts: dict[float, list[int]] = {0.0: [], 0.25: [], 1.0: []}
        for token, weight in zip(tokens["input_ids"], tokens["weights"], strict=True):
            parts[weight].append(token)
        said = tokenizer.decode(parts[0.25]), tokenizer.decode(parts[1.0])
        assert "".join(said).removesuffix("\n") == text + "<|im_end|>"
        assert f'"{RECOMMENDATIONS}"' in said[1]
        assert "fits" not in said[1]
        assert all(
            (label == IGNORED) == (weight == 0)
            for label, weight in zip(tokens["labels"], tokens["weights"], strict=True)
        )
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(parts[0.0]) == prompt


def test_the_answer_begins_at_its_last_key(student: tuple[Any, Any], rows: Any) -> None:
    """A thought before the answer may name the key."""
    _, tokenizer = student
    text = 'The "recommendations" follow. ' + rows[0]["completion"][0]["content"]
    row = {**rows[0], "completion": [{"role": "assistant", "content": text}]}
    (tokens,) = encode_traces(datasets.Dataset.from_list([row]), tokenizer, SftLoss(0.25, 1.0), max_tokens=512)
    weighed = zip(tokens["input_ids"], tokens["weights"], strict=True)
    assert tokenizer.decode([token for token, weight in weighed if weight == 1.0]).count(RECOMMENDATIONS) == 1


def test_equal_weights_are_trls_own_loss(student: tuple[Any, Any], rows: Any, tmp_path: Path) -> None:
    model, tokenizer = student
    other = copy.deepcopy(model)
    encoded = encode_traces(rows, tokenizer, SftLoss(1.0, 1.0), max_tokens=512)
    _, ours = train((model, tokenizer), encoded, tmp_path / "ours")
    theirs = SFTTrainer(
        other,
        config(tmp_path / "theirs", completion_only_loss=True),
        train_dataset=rows.select_columns(["prompt", "completion"]),
        processing_class=tokenizer,
    )
    theirs.train()
    losses = [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]
    assert ours == pytest.approx(losses, abs=1e-5)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def slow_loss(model: Any, encoded: datasets.Dataset) -> float:
    """Token by token, row by row, without padding or packing."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in encoded:
            logits = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for place in range(1, len(row["input_ids"])):
                if row["labels"][place] != IGNORED:
                    total -= row["weights"][place] * float(logits[place - 1, row["labels"][place]])
                    count += 1
    return total / count


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_is_the_formula_packed_or_not(
    packing: bool, student: tuple[Any, Any], rows: Any, tmp_path: Path
) -> None:
    model, tokenizer = student
    encoded = encode_traces(rows, tokenizer, SftLoss(0.1, 1.0), max_tokens=512)
    expected = slow_loss(model, encoded)
    _, losses = train(
        (model, tokenizer),
        encoded,
        tmp_path,
        packing=packing,
        max_length=200 if packing else None,
        per_device_train_batch_size=24,
        max_steps=1,
        learning_rate=0.0,
    )
    assert losses[0] == pytest.approx(expected, abs=2e-5)


def test_without_reasoning_the_explanation_is_empty(student: tuple[Any, Any], rows: Any) -> None:
    _, tokenizer = student
    encoded = encode_traces(rows, tokenizer, SftLoss(), max_tokens=512, reasoning=False)
    for tokens in encoded:
        said = [token for token, label in zip(tokens["input_ids"], tokens["labels"], strict=True) if label != IGNORED]
        assert tokenizer.decode(said).startswith('{"explanation":"","recommendations":[')


def test_what_cannot_be_trained_on_is_a_clear_error_before_any_step(student: tuple[Any, Any], rows: Any) -> None:
    _, tokenizer = student
    with pytest.raises(InputError, match="has no rows"):
        encode_traces(rows.select([]), tokenizer, SftLoss(), max_tokens=512)
    with pytest.raises(InputError, match=r"24 of 24 rows are longer than 20 tokens, and the longest has \d+"):
        encode_traces(rows, tokenizer, SftLoss(), max_tokens=20)
    with pytest.raises(InputError, match="`reasoning_weight` is -1"):
        SftLoss(-1)
    tokenizer.chat_template = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="renders a prompt differently when an answer follows it"):
        encode_traces(rows, tokenizer, SftLoss(), max_tokens=512)
