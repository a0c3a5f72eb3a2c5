"""Prompts that are read once per group: the same numbers as with one pass per row, of fewer tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from train.dapo.shared_prompts import _generate, can_share, generating_by, read_prompts, sharing_prompts

PROMPTS, GROUP, PROMPT_LENGTH, LENGTH, VOCABULARY = 3, 4, 12, 5, 50


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
    )


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    """Ids and mask of groups in a random order, prompts padded on the left and completions on the right."""
    random = torch.Generator().manual_seed(1)
    prompts = torch.randint(1, VOCABULARY, (PROMPTS, PROMPT_LENGTH), generator=random)
    prompt_mask = torch.ones_like(prompts)
    for place in range(PROMPTS):
        prompts[place, : 2 * place], prompt_mask[place, : 2 * place] = 0, 0
    completions = torch.randint(1, VOCABULARY, (PROMPTS * GROUP, LENGTH), generator=random)
    completion_mask = torch.ones_like(completions)
    completions[::3, -2:], completion_mask[::3, -2:] = 0, 0
    order = torch.randperm(PROMPTS * GROUP, generator=random)
    ids = torch.cat([prompts.repeat_interleave(GROUP, 0), completions], 1)[order]
    return ids, torch.cat([prompt_mask.repeat_interleave(GROUP, 0), completion_mask], 1)[order]


def count_tokens(model: Any) -> list[int]:
    """Receives the number of tokens of each pass through the model."""
    counted: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: counted.append(inputs[0].numel()))
    return counted


def score(model: Any, called: Callable[..., Any], rows: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the completions' tokens, and the gradient of their sum."""
    ids, mask = rows
    model.zero_grad()
    logits = called(input_ids=ids, attention_mask=mask).logits[:, -LENGTH - 1 : -1]
    chosen = logits.log_softmax(-1).gather(-1, ids[:, -LENGTH:, None]).squeeze(-1) * mask[:, -LENGTH:]
    chosen.sum().backward()
    return chosen.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])


def test_numbers_and_gradients_are_those_of_one_pass_per_row(model: Any, rows: tuple[Tensor, Tensor]) -> None:
    expected, gradient = score(model, model, rows)
    tokens = count_tokens(model)
    found, found_gradient = score(model, sharing_prompts(model, LENGTH), rows)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_gradient, gradient, atol=1e-4, rtol=1e-4)
    # The prompts but for their last tokens, and then these with the completions.
    assert tokens == [PROMPTS * (PROMPT_LENGTH - 1), PROMPTS * GROUP * (LENGTH + 1)]


def test_labels_are_those_of_the_tokens_that_are_passed(model: Any, rows: tuple[Tensor, Tensor]) -> None:
    ids, mask = rows
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :-LENGTH] = -100
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    found = sharing_prompts(model, LENGTH)(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(found, expected)


def test_prompts_that_are_all_different_are_read_with_their_completions(
    model: Any, rows: tuple[Tensor, Tensor]
) -> None:
    ids, mask = rows
    first = torch.stack([(ids[:, :PROMPT_LENGTH] == prompt).all(1).int().argmax() for prompt in ids[:, :PROMPT_LENGTH]])
    distinct = first.unique()
    few = ids[distinct], mask[distinct]
    tokens = count_tokens(model)
    found = sharing_prompts(model, LENGTH)(input_ids=few[0], attention_mask=few[1]).logits
    assert tokens == [few[0].numel()]
    torch.testing.assert_close(found, model(input_ids=few[0], attention_mask=few[1]).logits)


@pytest.mark.parametrize("static", [True, False])
def test_generation_writes_the_same_and_reads_each_prompt_once(
    model: Any, rows: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, *, static: bool
) -> None:
    monkeypatch.setattr("train.dapo.shared_prompts.has_static_cache", lambda _: static)
    prompts, mask = (part[:, :PROMPT_LENGTH] for part in rows)
    config = GenerationConfig(max_new_tokens=LENGTH, min_new_tokens=LENGTH, do_sample=False, pad_token_id=0)
    expected = model.generate(input_ids=prompts, attention_mask=mask, generation_config=config)
    tokens = count_tokens(model)
    found = _generate(model, model.generate, prompts, mask, generation_config=config)
    assert found.tolist() == expected.tolist()
    assert tokens == [PROMPTS * (PROMPT_LENGTH - 1), *[PROMPTS * GROUP] * LENGTH]


def test_models_that_drop_tokens_or_recompute_are_not_shared(model: Any) -> None:
    assert can_share(model)
    model.activation_checkpointing_enable()
    assert not can_share(model)
    model.activation_checkpointing_disable()
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not can_share(model)


def test_a_prompt_of_one_token_leaves_nothing_to_share(model: Any) -> None:
    ones = torch.ones((4, 1), dtype=torch.long)
    assert read_prompts(model, ones, ones) is None


def test_generation_is_as_before_once_a_context_ends(model: Any) -> None:
    method = model.generate
    with generating_by(model, lambda: "outer"):
        with generating_by(model, lambda: "inner"):
            assert model.generate() == "inner"
        assert model.generate() == "outer"
    assert model.generate == method
