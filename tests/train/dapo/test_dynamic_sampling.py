"""Run as a script under torchrun, it is one of the processes of the test of several."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, combinations
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import nanstd

from store import InputError
from train.dapo.dynamic_sampling import DynamicSamplingTrainer, merge_rows, rewards_differ
from train.dapo.settings import LOSSES

WORDS = ["[PAD]", "[END]", "tie", "vary", *map(str, range(10))]
GROUP = 4
PAD = 99
# TRL asks transformers by an old name whenever it generates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def examples(ties: Sequence[bool]) -> Dataset:
    """Prompts of several lengths, no two alike; of those that tie all completions earn the same."""
    digits = [" ".join(str(number)) for number in range(len(ties))]
    prompts = [f"{'tie' if tie else 'vary'} {text}" for tie, text in zip(ties, digits, strict=True)]
    return Dataset.from_dict({"prompt": prompts, "tie": list(ties)})


def reward(completion_ids: list[list[int]], tie: list[bool], **_: Any) -> list[float]:
    """Of a prompt that does not tie, each completion of a group earns something else, by its place and its tokens."""
    return [
        0.7 if tied else at % GROUP / GROUP + sum(ids) % 10 / 100
        for at, (ids, tied) in enumerate(zip(completion_ids, tie, strict=True))
    ]


class Recorder:
    """The reward, and what it was called with; it also logs through TRL."""

    __name__ = "recorder"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.earned: list[list[float]] = []
        self.tokens = 0

    def __call__(self, prompts: list[str], log_metric: Any, log_extra: Any, **columns: Any) -> list[float]:
        self.calls.append(prompts[::GROUP])
        self.earned.append(reward(**columns))
        self.tokens += sum(map(len, columns["completion_ids"]))
        log_metric("recorder/mean", sum(self.earned[-1]) / len(prompts))
        log_extra("tie", columns["tie"])
        return self.earned[-1]


def make_tokenizer() -> Any:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", eos_token="[END]")


def make_model() -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(WORDS), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def config(folder: Path, **changed: Any) -> GRPOConfig:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2 * GROUP,
        "num_generations": GROUP,
        "max_completion_length": 6,
        "max_steps": 3,
        "learning_rate": 0.01,
        "loss_type": "dapo",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "bf16": False,
        "activation_checkpointing": False,
        "use_cpu": True,
        "report_to": [],
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return GRPOConfig(**{**settings, **changed})


def make_trainer(
    folder: Path,
    ties: Sequence[bool],
    *,
    kind: Callable[..., Any] = DynamicSamplingTrainer,
    model: Any = None,
    rewards: Any = reward,
    refill_rounds: int | None = 3,
    outcome: str | None = None,
    rollout_func: Callable[..., Any] | None = None,
    share_prompts: bool = True,
    **changed: Any,
) -> Any:
    """refill_rounds: None for TRL's own trainer, which knows nothing of ours."""
    ours = {"refill_rounds": refill_rounds, "outcome": outcome, "share_prompts": share_prompts}
    return kind(
        model or make_model(),
        rewards,
        config(folder, **changed),
        train_dataset=examples(ties),
        processing_class=make_tokenizer(),
        rollout_func=rollout_func,
        **({} if refill_rounds is None else ours),
    )


def roll_out(trainer: Any, rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """The batch made of some prompts, which TRL would shuffle and train on."""
    trainer.model.train()
    output: dict[str, torch.Tensor] = trainer._generate_and_score_completions(
        [trainer.train_dataset[row] for row in rows for _ in range(GROUP)]
    )
    return output


def unpadded(output: dict[str, torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Prompt and completion of each row whose completion is not masked out, and which row it is."""
    masks = output["prompt_mask"].bool(), output["completion_mask"].bool()
    for row, (prompt, completion) in enumerate(zip(output["prompt_ids"], output["completion_ids"], strict=True)):
        if masks[1][row].any():
            yield prompt[masks[0][row]], completion[masks[1][row]], row


def log_probs(model: Any, prompt: torch.Tensor, completion: torch.Tensor) -> torch.Tensor:
    """Of each token of a completion, one row alone and without TRL's help."""
    text = torch.cat([prompt, completion])[None]
    logits = model.lm_head(model.model(text).last_hidden_state)[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]


def logged(trainer: Any) -> list[dict[str, Any]]:
    """What was logged at each step, but for times."""
    return [
        {name: value for name, value in entry.items() if "time" not in name and "per_second" not in name}
        for entry in trainer.state.log_history
    ]


def weights(trainer: Any) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in trainer.accelerator.unwrap_model(trainer.model).parameters()]


def equal(left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@contextmanager
def recording(trainer: Any) -> Iterator[list[dict[str, torch.Tensor]]]:
    """The batches that a trainer makes."""
    made: list[dict[str, torch.Tensor]] = []
    original = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: made.append(original(inputs)) or made[-1]
    yield made


def trained(folder: Path, ties: Sequence[bool], **changed: Any) -> Any:
    """Made and trained at once: TRL sets the seed when it makes a trainer."""
    trainer = make_trainer(folder, ties, **changed)
    trainer.train()
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 4},
        # Nothing is truncated in 300 tokens, so that there is nothing to mask.
        {"mask_truncated_completions": True, "scale_rewards": "group", "max_completion_length": 300},
        {"mask_truncated_completions": True, "scale_rewards": "batch", "max_completion_length": 300},
        {"mask_truncated_completions": True, "scale_rewards": "none", "max_completion_length": 300},
    ],
    ids=str,
)
def test_without_refilling_it_is_trls_trainer_to_the_bit(changed: dict[str, Any], tmp_path: Path) -> None:
    ties = [True, False] * 10
    trls = trained(tmp_path, ties, kind=GRPOTrainer, refill_rounds=None, **changed)
    ours = trained(tmp_path, ties, refill_rounds=0, share_prompts=False, **changed)
    assert equal(weights(trls), weights(ours))
    assert logged(trls) == logged(ours)
    assert not equal(weights(ours), list(make_model().parameters()))


@pytest.mark.parametrize("changed", [{}, {"num_iterations": 2, "max_steps": 4}], ids=str)
def test_prompts_that_are_read_once_change_only_the_rounding(changed: dict[str, Any], tmp_path: Path) -> None:
    trls = trained(tmp_path, [False] * 20, kind=GRPOTrainer, refill_rounds=None, **changed)
    ours = make_trainer(tmp_path, [False] * 20, refill_rounds=0, **changed)
    read: list[int] = []
    ours.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0])))
    ours.train()
    for one, other in zip(weights(trls), weights(ours), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert min(read) == 2, "no pass had as few rows as there are prompts"


def test_with_nothing_to_refill_it_trains_as_trl(tmp_path: Path) -> None:
    changed: dict[str, Any] = {"num_generations": 8, "gradient_accumulation_steps": 2}
    trls = trained(tmp_path, [False] * 20, kind=GRPOTrainer, refill_rounds=None, **changed)
    ours = trained(tmp_path, [False] * 20, share_prompts=False, **changed)
    assert equal(weights(trls), weights(ours))
    for one, other in zip(logged(trls), logged(ours), strict=True):
        assert one == {name: value for name, value in other.items() if not name.startswith("refill")}
    for entry in logged(ours)[:-1]:
        assert (entry["refill/groups"], entry["refill/rounds"], entry["refill/left"]) == (0, 0, 0)
        assert entry["refill/reward"] == pytest.approx(entry["reward"])


def test_a_batch_of_ties_is_refilled_with_informative_groups_of_fresh_prompts(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, [True] * 6 + [False] * 30, rewards=recorder, refill_rounds=9)
    output = roll_out(trainer, [0, 20, 1])
    assert output["completion_ids"].shape[0] == 3 * GROUP
    texts = trainer.processing_class.batch_decode(output["prompt_ids"], skip_special_tokens=True)
    groups = [texts[at : at + GROUP] for at in range(0, 3 * GROUP, GROUP)]
    assert all(len(set(group)) == 1 and group[0].startswith("vary") for group in groups)
    assert len({group[0] for group in groups}) == 3
    earned = torch.tensor(reward([completion.tolist() for _, completion, _ in unpadded(output)], [False] * 3 * GROUP))
    spread, mean = torch.std_mean(earned.view(-1, GROUP), dim=1, keepdim=True)
    assert torch.allclose(output["advantages"], ((earned.view(-1, GROUP) - mean) / (spread + 1e-4)).flatten())
    # What was rolled out: the batch, then what was lacking, and no prompt twice.
    assert [len(call) for call in recorder.calls[:2]] == [3, 2]
    drawn = [prompt for call in recorder.calls for prompt in call]
    assert len(set(drawn)) == len(drawn)
    metrics = trainer._metrics["train"]
    assert metrics["refill/groups"] == [pytest.approx(2 / 3)]
    assert metrics["refill/rounds"] == [len(recorder.calls) - 1]
    assert metrics["refill/left"] == [0]


def test_rows_of_several_calls_are_padded_as_if_they_were_alone(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path / "model")
    trainer = make_trainer(
        tmp_path,
        [True] * 12 + [False] * 200,
        model=AutoModelForCausalLM.from_pretrained(tmp_path / "model"),
        beta=0.1,
        steps_per_generation=2,
    )
    # References other than the model, so that one is not taken for the other.
    torch.nn.init.normal_(trainer.ref_model.model.embed_tokens.weight, std=0.5)
    for rows in ([0, 10, 3], [100, 11, 150], [150, 160, 170]):
        output = roll_out(trainer, rows)
        whole = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        with torch.no_grad():
            together, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, whole, mask, output["completion_ids"].shape[1]
            )
            for prompt, completion, row in unpadded(output):
                tokens = len(completion)
                alone = log_probs(trainer.model, prompt, completion)
                reference = log_probs(trainer.ref_model, prompt, completion)
                assert output["completion_mask"][row, :tokens].all()
                assert torch.allclose(together[row, :tokens], alone, atol=1e-5)
                assert torch.allclose(output["old_per_token_logps"][row, :tokens], alone, atol=1e-5)
                assert torch.allclose(output["ref_per_token_logps"][row, :tokens], reference, atol=1e-5)
                assert not torch.allclose(alone, reference, atol=1e-3)
        assert output["prompt_mask"].any(dim=0).all()
        assert output["completion_mask"].any(dim=0).all()
        assert output["num_items_in_batch"] == output["completion_mask"].sum()


def a_part(prompts: Sequence[int], completions: Sequence[int], **others: Any) -> dict[str, torch.Tensor]:
    """Rows of so many tokens, where a token's number is its place from the border of prompt and completion."""
    before, after = torch.arange(max(prompts), 0, -1), torch.arange(1, max(1, *completions) + 1)
    is_prompt, is_completion = before <= torch.tensor(prompts)[:, None], after <= torch.tensor(completions)[:, None]
    return {
        "prompt_ids": torch.where(is_prompt, before, PAD),
        "prompt_mask": is_prompt.long(),
        "completion_ids": torch.where(is_completion, after, PAD),
        "completion_mask": is_completion.long(),
        "advantages": torch.tensor(completions) / 7,
        **{name: torch.tensor(values) for name, values in others.items()},
    }


LENGTHS = st.lists(st.tuples(st.integers(1, 7), st.integers(0, 7)), min_size=1, max_size=4)


@given(parts=st.lists(LENGTHS, min_size=1, max_size=4), multiple=st.sampled_from([None, 4]))
def test_merged_rows_are_padded_no_further_than_they_need(
    parts: list[list[tuple[int, int]]], multiple: int | None
) -> None:
    merged = merge_rows([a_part(*zip(*part, strict=True)) for part in parts], PAD, multiple)
    expected = a_part(*zip(*chain(*parts), strict=True))
    assert merged.keys() == expected.keys()
    for name, values in expected.items():
        short = -values.shape[-1] % multiple if multiple and name != "advantages" else 0
        sides = (short, 0) if name.startswith("prompt") else (0, short)
        filled = torch.nn.functional.pad(values, sides, value=PAD if name.endswith("ids") else 0)
        assert torch.equal(merged[name], filled)


def test_what_lies_beside_the_tokens_is_filled_up_as_trl_does() -> None:
    short = a_part(
        [2, 1], [2, 1], old_per_token_logps=[[-1.0, -2.0], [-3.0, 0.0]], tool_mask=[[1, 0], [1, 1]],
        importance_sampling_ratio=[[3.0], [2.0]],
    )  # fmt: skip
    long = a_part(
        [3], [4], old_per_token_logps=[[-4.0] * 4], tool_mask=[[1, 0, 0, 1]], importance_sampling_ratio=[[5.0]]
    )
    merged = merge_rows([short, long], PAD)
    assert merged["old_per_token_logps"].tolist() == [[-1, -2, 0, 0], [-3, 0, 0, 0], [-4, -4, -4, -4]]
    assert merged["tool_mask"].tolist() == [[1, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 1]]
    # The ratio of a whole sequence weighs each of its tokens.
    assert merged["importance_sampling_ratio"].tolist() == [[3, 3, 1, 1], [2, 1, 1, 1], [5, 5, 5, 5]]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_step_is_the_formula_over_informative_groups_alone(steps: int, tmp_path: Path) -> None:
    """The gradient of DAPO's objective, row by row: of four groups, one ties, and so does every fresh prompt."""
    trainer = make_trainer(
        tmp_path,
        [True, False, False, False] + [True] * 12,
        shuffle_dataset=False,
        per_device_train_batch_size=4 * GROUP // steps,
        gradient_accumulation_steps=steps,
        max_steps=1,
        optim="sgd",
        learning_rate=0.5,
        max_grad_norm=0.0,
    )
    before = make_model()
    with recording(trainer) as made:
        trainer.train()
    (batch,) = made
    assert (~batch["completion_mask"].any(dim=1)).sum() == GROUP
    rows = list(unpadded(batch))
    assert batch["num_items_in_batch"] == sum(len(completion) for _, completion, _ in rows)
    objective = sum(
        batch["advantages"][row] * log_probs(before, prompt, completion).sum() for prompt, completion, row in rows
    )
    (objective / batch["num_items_in_batch"]).backward()
    for now, weight in zip(weights(trainer), before.parameters(), strict=True):
        assert torch.allclose(now - weight.detach(), 0.5 * weight.grad, atol=1e-6)
        assert weight.grad.abs().max() > 1e-5


@pytest.mark.slow
def test_every_loss_learns_from_mini_batches_and_masked_groups_in_its_own_way(tmp_path: Path) -> None:
    """Two mini-batches, two passes over them, and groups without spread that the losses must leave out."""
    learned = {
        name: weights(
            trained(
                tmp_path,
                [True, False, False] + [True] * 9,
                shuffle_dataset=False,
                per_device_train_batch_size=3 * GROUP // 2,
                steps_per_generation=2,
                num_iterations=2,
                max_steps=4,
                refill_rounds=1,
                **loss._asdict(),
            )
        )
        for name, loss in LOSSES.items()
    }
    begun = list(make_model().parameters())
    for name, now in learned.items():
        assert all(weight.isfinite().all() for weight in now), name
        assert not equal(now, begun), name
    assert [pair for pair in combinations(learned, 2) if equal(learned[pair[0]], learned[pair[1]])] == []


def test_a_batch_without_any_spread_moves_nothing(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [True] * 20, refill_rounds=2, gradient_accumulation_steps=2)
    before = weights(trainer)
    trainer.train()
    assert equal(weights(trainer), before)
    steps = logged(trainer)[:-1]
    assert len(steps) == 3
    for entry in steps:
        assert (entry["loss"], entry["grad_norm"]) == (0, 0)
        assert (entry["refill/groups"], entry["refill/rounds"], entry["refill/left"]) == (0, 2, 1)
        assert entry["refill/reward"] is None
        assert not [name for name, value in entry.items() if isinstance(value, float) and math.isnan(value)]


def test_a_group_of_masked_completions_is_replaced_whatever_it_earns(tmp_path: Path) -> None:
    """With completions of one token at most, nearly all are truncated, and their rewards differ."""
    trainer = make_trainer(
        tmp_path, [False] * 200, max_completion_length=1, mask_truncated_completions=True, refill_rounds=2
    )
    masks = [roll_out(trainer, range(at, at + 4))["completion_mask"].view(4, -1).sum(dim=1) for at in range(0, 40, 4)]
    left = trainer._metrics["train"]["refill/left"]
    assert left == [float((mask == 0).float().mean()) for mask in masks]
    assert 0 < sum(left) < len(left)


# TRL says once a trainer that its interface for rollouts may change.
SCRIPTED = pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
FINISHED = [[number, 1] for number in range(4, 4 + GROUP)]
CUT_OFF = [9, 9, 9]


def script(completions: Sequence[list[int]]) -> Callable[..., dict[str, Any]]:
    """Rollouts in which each prompt gets the same completions, as tokens."""

    def write(prompts: list[str], trainer: Any) -> dict[str, Any]:
        written = [completions[at % GROUP] for at in range(len(prompts))]
        return {
            "prompt_ids": trainer.processing_class(prompts)["input_ids"],
            "completion_ids": written,
            "logprobs": [[0.0] * len(ids) for ids in written],
        }

    return write


def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [-float(len(ids)) for ids in completion_ids]


def right(completion_ids: list[list[int]], tie: list[bool], **_: Any) -> list[float]:
    """The outcome: of a prompt that ties, all answers are as right."""
    return [0.5 if tied else float(ids[0]) for ids, tied in zip(completion_ids, tie, strict=True)]


@SCRIPTED
def test_a_group_is_chosen_by_its_outcomes_and_trained_on_the_sum_of_its_rewards(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "rewards": [length, right],
        "rollout_func": script([[4, 1], [5, 5, 1], [6, 6, 6, 1], [7, 7, 7, 7, 1]]),
    }
    for weight, outcome, left in ((0.0, "right", 2), (1.0, "right", 2), (1.0, None, 0), (0.0, "length", 0)):
        trainer = make_trainer(
            tmp_path, [True] * 4, refill_rounds=1, outcome=outcome, reward_weights=[1.0, weight], **settings
        )
        output = roll_out(trainer, [0, 1])
        assert trainer._metrics["train"]["refill/left"] == [left / 2]
        assert bool(output["completion_mask"].any()) == (not left)
    trainer = make_trainer(tmp_path, [False] * 4, outcome="right", reward_weights=[1.0, 0.0], **settings)
    earned = torch.tensor([-2.0, -3.0, -4.0, -5.0])
    expected = (earned - earned.mean()) / (earned.std() + 1e-4)
    assert roll_out(trainer, [0])["advantages"].tolist() == pytest.approx(expected.tolist())


@SCRIPTED
def test_outcomes_that_differ_are_no_group_where_the_rewards_are_equal(tmp_path: Path) -> None:
    def against(**columns: Any) -> list[float]:
        return [-value for value in right(**columns)]

    trainer = make_trainer(
        tmp_path,
        [False] * 4,
        rewards=[right, against],
        rollout_func=script(FINISHED),
        outcome="right",
        reward_weights=[1.0, 1.0],
    )
    roll_out(trainer, [0])
    assert trainer._metrics["train"]["refill/left"] == [1.0]


@SCRIPTED
@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_truncated_completions_leave_mean_and_deviation_of_their_group(scale_rewards: str, tmp_path: Path) -> None:
    """Two answers and two that were cut off, whose punishment would raise the worse answer above the mean."""

    def earn(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [-3.0 if ids == CUT_OFF else {4: 0.3, 5: -0.2}[ids[0]] for ids in completion_ids]

    answers = [FINISHED[0], CUT_OFF, FINISHED[1], CUT_OFF]
    trainer = make_trainer(
        tmp_path,
        [False] * 4,
        rewards=earn,
        rollout_func=script(answers),
        mask_truncated_completions=True,
        scale_rewards=scale_rewards,
        refill_rounds=0 if scale_rewards == "batch" else 1,
    )
    output = roll_out(trainer, [0, 1])
    deviation = {"group": stdev([0.3, -0.2]) + 1e-4, "batch": stdev([0.3, -0.2] * 2) + 1e-4, "none": 1.0}
    worth = 0.25 / deviation[scale_rewards]
    assert output["advantages"].tolist() == pytest.approx([worth, 0, -worth, 0] * 2)
    assert output["completion_mask"].any(dim=1).tolist() == [True, False] * 4
    assert trainer._metrics["train"]["reward"] == [pytest.approx((0.3 - 3.0 - 0.2 - 3.0) / 4)]
    # Without masking they are part of the group, and the worse answer seems good.
    trainer = make_trainer(tmp_path, [False] * 4, rewards=earn, rollout_func=script(answers))
    assert roll_out(trainer, [0])["advantages"][2] > 0.5


@SCRIPTED
def test_a_group_with_one_answer_that_was_not_cut_off_is_no_group(tmp_path: Path) -> None:
    for answers, left in (([CUT_OFF] * 4, 1), ([FINISHED[0], *[CUT_OFF] * 3], 1), ([*FINISHED[:2], *[CUT_OFF] * 2], 0)):
        trainer = make_trainer(
            tmp_path, [False] * 4, rewards=right, rollout_func=script(answers), mask_truncated_completions=True
        )
        output = roll_out(trainer, [0])
        assert trainer._metrics["train"]["refill/left"] == [left]
        assert bool(output["completion_mask"].any()) == (not left)


@SCRIPTED
def test_an_evaluation_counts_truncated_completions(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        [False] * 4,
        rewards=length,
        rollout_func=script([FINISHED[0], CUT_OFF] * 2),
        mask_truncated_completions=True,
        per_device_eval_batch_size=GROUP,
    )
    assert trainer.evaluate(examples([False]))["eval_reward"] == -2.5


def test_tokens_that_the_model_did_not_write_are_not_counted(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [True, False] * 10)
    original = trainer._sample
    trainer._sample = lambda inputs: (
        (output := original(inputs))
        | {"tool_mask": torch.ones_like(output["completion_mask"]).index_fill(1, torch.tensor([0]), 0)}
    )
    output = roll_out(trainer, [1, 3])
    assert output["num_items_in_batch"] == output["completion_mask"][:, 1:].sum()


def test_metrics_describe_the_first_round(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, [True, True, False] * 10, rewards=recorder, max_steps=1)
    trainer.train()
    assert len(recorder.calls) > 1
    entry = logged(trainer)[0]
    first = torch.tensor(recorder.earned[0])
    assert entry["reward"] == entry["rewards/recorder/mean"] == pytest.approx(first.mean().item())
    assert entry["reward_std"] == pytest.approx(first.std().item())
    assert entry["recorder/mean"] == pytest.approx(first.mean().item())
    assert list(trainer._logs["prompt"])[::GROUP] == recorder.calls[0]
    assert list(trainer._logs["rewards"]["recorder"]) == pytest.approx(recorder.earned[0])
    assert list(trainer._logs["extra"]["tie"]) == [prompt.startswith("tie") for prompt in trainer._logs["prompt"]]
    # But what a step costs is all that was generated, and what it learns from is the batch that was refilled.
    tokens = sum(len(prompt.split()) * GROUP for call in recorder.calls for prompt in call) + recorder.tokens
    assert entry["num_tokens"] == tokens
    assert entry["refill/reward"] != pytest.approx(entry["reward"])


@pytest.mark.slow
@pytest.mark.parametrize("split", [{"gradient_accumulation_steps": 2}, {"steps_per_generation": 2}], ids=str)
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(split: dict[str, int], tmp_path: Path) -> None:
    changed: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, **split}
    recorders = Recorder(), Recorder()
    ties = [True, True, False] * 20
    whole = make_trainer(tmp_path, ties, rewards=recorders[0], **changed)
    whole.train()
    resumed = make_trainer(tmp_path, ties, rewards=recorders[1], **changed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert equal(weights(whole), weights(resumed))
    assert logged(whole)[:-1] == logged(resumed)[:-1]
    # The same fresh prompts, too.
    assert len(recorders[1].calls) > 2
    assert recorders[0].calls[-len(recorders[1].calls) :] == recorders[1].calls


def test_orders_of_fresh_prompts_differ_by_seed_and_by_what_was_generated_before(tmp_path: Path) -> None:
    def order(seed: int, tokens: int) -> list[int]:
        trainer = make_trainer(tmp_path, [True] * 60, seed=seed)
        trainer.state.num_input_tokens_seen = tokens
        return list(trainer._fresh_prompts([trainer.train_dataset[7]] * GROUP))

    orders = [order(0, 10), order(1, 10), order(0, 11)]
    assert len(set(map(tuple, orders))) == 3
    assert all(sorted(one) == [row for row in range(60) if row != 7] for one in orders)
    assert order(0, 10) == orders[0]


def test_few_fresh_prompts_end_refilling_early(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, [True] * 5, rewards=recorder, refill_rounds=9)
    roll_out(trainer, [0, 1])
    assert [len(call) for call in recorder.calls] == [2, 2, 1]
    assert sorted(chain(*recorder.calls)) == sorted(trainer.train_dataset["prompt"])


def test_evaluation_never_refills(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = make_trainer(tmp_path, [True] * 20, rewards=recorder, per_device_eval_batch_size=GROUP)
    metrics = trainer.evaluate(examples([True, True]))
    assert sorted(chain(*recorder.calls)) == sorted(examples([True, True])["prompt"])
    assert metrics["eval_loss"] == 0
    assert not [name for name in trainer.state.log_history[-1] if "refill" in name]


@given(rewards=st.lists(st.sampled_from([0.0, 0.2, 0.7, -1.0, math.nan]), min_size=2, max_size=8))
def test_groups_differ_where_their_deviation_is_more_than_rounding(rewards: list[float]) -> None:
    deviation = nanstd(torch.tensor(rewards), dim=0)
    # TRL's deviation of one number is NaN, which is no spread.
    assert rewards_differ(torch.tensor(rewards).tolist()) == bool(deviation > 1e-3)


def test_equal_rewards_do_not_differ_though_trls_deviation_does() -> None:
    rewards = torch.full((8,), 0.7)
    assert not torch.isclose(nanstd(rewards, dim=0), torch.tensor(0.0))
    assert not rewards_differ(rewards.tolist())
    assert not rewards_differ([0.7, float(np.nextafter(np.float32(0.7), np.float32(1)))])


def test_rewards_are_weighted_and_what_no_function_scores_has_none(tmp_path: Path) -> None:
    """Two rewards that cancel each other out are no spread; nor is one completion that alone is scored."""

    def minus(**columns: Any) -> list[float]:
        return [-value / 2 for value in reward(**columns)]

    def once(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [1.0 if at % GROUP == 0 else None for at in range(len(completion_ids))]

    def twice(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [float(at % GROUP) if at % GROUP < 2 else None for at in range(len(completion_ids))]

    for rewards, reward_weights, left in (
        ([reward, minus], [1.0, 2.0], 1),
        ([reward, minus], [1.0, 1.0], 0),
        ([once], None, 1),
        ([twice], None, 0),
    ):
        trainer = make_trainer(tmp_path, [False] * 20, rewards=rewards, reward_weights=reward_weights)
        output = roll_out(trainer, [0, 1])
        assert trainer._metrics["train"]["refill/left"] == [left]
        assert bool(output["completion_mask"].any()) == (not left)


@pytest.mark.parametrize(
    ("refill_rounds", "changed", "message"),
    [
        (-1, {}, "refill_rounds is -1; it must be 0 or more"),
        (1, {"scale_rewards": "batch"}, "scales advantages by the whole batch"),
        (1, {"multi_objective_aggregation": "normalize_then_sum"}, "scales advantages by the whole batch"),
    ],
)
def test_settings_that_refilling_cannot_keep_are_a_clear_error(
    refill_rounds: int, changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        make_trainer(tmp_path, [True] * 4, refill_rounds=refill_rounds, **changed)
    make_trainer(tmp_path, [True] * 4, refill_rounds=0, **changed)
    masked = {"mask_truncated_completions": True, "multi_objective_aggregation": "normalize_then_sum"}
    with pytest.raises(InputError, match="truncated completions cannot leave their group"):
        make_trainer(tmp_path, [True] * 4, refill_rounds=0, **masked)


def test_streams_and_images_are_a_clear_error(tmp_path: Path) -> None:
    stream = examples([True] * 8).to_iterable_dataset()
    with pytest.raises(InputError, match="the training data is streamed"):
        DynamicSamplingTrainer(
            make_model(), reward, config(tmp_path), train_dataset=stream, processing_class=make_tokenizer(),
            refill_rounds=1,
        )  # fmt: skip
    trainer = make_trainer(tmp_path, [True] * 8)
    original = trainer._sample
    trainer._sample = lambda inputs: {**original(inputs), "pixel_values": torch.zeros(1)}
    with pytest.raises(
        InputError, match="cannot merge the fields pixel_values of TRL's batch; train with refill_rounds=0"
    ):
        roll_out(trainer, [0])


def run_process(folder: Path) -> None:
    """What each of two processes does: of its batches, the first process has the even prompts, the second the odd."""
    found: dict[str, Any] = {}
    torch.distributed.init_process_group("gloo")
    process = torch.distributed.get_rank()
    changed: dict[str, Any] = {"shuffle_dataset": False, "ddp_backend": "gloo", "per_device_train_batch_size": GROUP}
    for name, ties in (("one", [True, False] * 12), ("none", [True] * 7)):
        recorder = Recorder()
        trainer = make_trainer(folder, ties, rewards=recorder, **changed)
        with recording(trainer) as made:
            trainer.train()
        torch.save(weights(trainer), folder / f"{name}-{process}.pt")
        found[name] = {
            "calls": recorder.calls,
            "spread": [rewards_differ(earned[:GROUP]) for earned in recorder.earned],
            "num_items": [int(batch["num_items_in_batch"]) for batch in made],
            "tokens": [int(batch["completion_mask"].sum()) for batch in made],
            "log": logged(trainer),
        }
    try:
        make_trainer(folder, [True] * 8, **{**changed, "per_device_train_batch_size": GROUP // 2})
    except InputError as error:
        found["error"] = str(error)
    (folder / f"{process}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two processes that trained together: their folder, and what each found."""
    folder = tmp_path_factory.mktemp("processes")
    launcher = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1", __file__, str(folder),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    try:
        _, errors = launcher.communicate(timeout=180)
    finally:
        # The launcher ends its processes when it is asked to end, but not when it is killed.
        launcher.terminate()
        launcher.wait()
    assert launcher.returncode == 0, errors
    return folder, [json.loads((folder / f"{process}.json").read_text()) for process in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "none"])
def test_processes_stay_equal_whichever_lacks_groups(name: str, processes: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = processes
    first, second = (of_process[name] for of_process in found)
    assert equal(*(torch.load(folder / f"{name}-{process}.pt") for process in range(2)))
    assert [len(call) for call in first["calls"]] == [len(call) for call in second["calls"]]
    totals = [sum(tokens) for tokens in zip(first["tokens"], second["tokens"], strict=True)]
    assert first["num_items"] == second["num_items"] == totals
    assert first["log"][0]["refill/rounds"] > 0


@pytest.mark.slow
def test_a_process_that_lacks_nothing_waits_for_one_that_does(processes: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (of_process["one"] for of_process in processes[1])
    assert first["spread"][0] is False
    assert second["spread"][0] is True
    # The second rolled out along with the first, and dropped what it had no place for.
    assert second["log"][0]["refill/groups"] + second["log"][0]["refill/left"] == 0.5
    assert first["calls"][0] != second["calls"][0]
    assert second["tokens"][0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "none"])
def test_no_prompt_is_drawn_twice_by_any_process(name: str, processes: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (of_process[name] for of_process in processes[1])
    rounds = int(first["log"][0]["refill/rounds"])
    drawn = [prompt for one in (first, second) for call in one["calls"][: rounds + 1] for prompt in call]
    assert len(set(drawn)) == len(drawn) == 2 * (rounds + 1)


@pytest.mark.slow
def test_a_group_in_two_processes_is_a_clear_error(processes: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in processes[1]:
        expected = "each process generates 2 completions at a time, which is no multiple of the group size 4"
        assert expected in found["error"]


if __name__ == "__main__":
    run_process(Path(sys.argv[1]))
