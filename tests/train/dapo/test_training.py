import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from trl import GRPOConfig

from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import BRIEF, EvidenceTeacher
from store import InputError, SnapshotError, Store
from store.progress import Notice
from tests.train.weights import same, weights
from train.dapo.rewards import RewardSettings
from train.dapo.training import DapoSettings, _arguments, choose_prompts, reward_functions, train_dapo
from train.ranking.settings import NO_SELECTION
from train.runs import find_student, student_folder
from train.students.student import load_student

FEW: dict[str, Any] = {
    "steps": 2, "prompts_per_batch": 2, "num_generations": 2, "max_tokens": 8, "resolution_lists": 0
}  # fmt: skip
SOME: dict[str, Any] = {**FEW, "num_generations": 4, "max_tokens": 40, "refill_rounds": 0}
TEMPLATE = "rerank_numbers.v1"


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


@pytest.mark.slow
@pytest.mark.parametrize("changed", [{}, {"lora_rank": 2, "refill_rounds": 0}, {"reward": "format_gated"}], ids=str)
def test_a_training_leaves_a_student_a_run_and_what_its_answers_were_like(
    changed: dict[str, Any], inputs: Store
) -> None:
    told: list[str] = []
    done = train_dapo(inputs, "prompts", "new", "rl", DapoSettings(**{**FEW, **changed}), on_progress=told.append)
    assert done.steps == 2
    assert "reward" in told[-1]
    load_student(find_student(inputs, "rl"))
    ((kind, status, settings),) = fetch(inputs, "select kind, status, settings from runs where kind like 'train%'")
    assert (kind, status, json.loads(settings)["templates"]) == ("train-dapo", "done", [TEMPLATE])
    metrics = {name for (name,) in fetch(inputs, "select distinct metric from run_metrics")}
    wanted = {"reward", "entropy", "answers/valid", "answers/copied", "answers/truncated", "completions/mean_length"}
    assert wanted <= metrics
    # A student that knows nothing writes no order: every group is alike.
    if "refill_rounds" not in changed:
        assert done.figures["refill/left"] == 1.0
        assert done.figures["loss"] == 0.0


def arguments(**changed: Any) -> GRPOConfig:
    return _arguments(DapoSettings(**changed).resolve(from_scratch=False), Path("checkpoints"), 7, NO_SELECTION)


def test_the_settings_of_dapo_reach_trl() -> None:
    """Loss over tokens, clip-higher, no KL term, masking of truncated answers, and the punishment of long ones."""
    set_for_trl = arguments()
    expected = {
        "loss_type": "dapo",
        "importance_sampling_level": "token",
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "delta": None,
        "beta": 0.0,
        "mask_truncated_completions": True,
        "scale_rewards": "group",
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_weights": [1.0, 0.0, 1.0],
        "max_completion_length": 256,
        "temperature": 1.0,
        "num_generations": 8,
        "num_iterations": 1,
        "steps_per_generation": 1,
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 128,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 0,
        "max_steps": 100,
    }
    assert {name: getattr(set_for_trl, name) for name in expected} == expected
    names = [function.__name__ for function in reward_functions(DapoSettings())]
    assert names == ["conditional", "outcome", "overlong"]
    # DAPO punishes the last fifth: 4,096 of 20,480 tokens.
    assert {function.settings for function in reward_functions(DapoSettings(max_tokens=20_480))} == {
        RewardSettings(0.2, 20_480, 4_096)
    }


def test_what_is_chosen_reaches_trl() -> None:
    set_for_trl = arguments(
        num_generations=4, prompts_per_batch=6, gradient_accumulation_steps=2, steps_per_generation=6, num_iterations=2,
        save_steps=12, scale_rewards="none", overlong_weight=0.5, epsilon=0.1, epsilon_high=0.4, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=0.1, seed=3,
    )  # fmt: skip
    expected = {
        "num_generations": 4,
        "per_device_train_batch_size": 4,
        "generation_batch_size": 24,
        "steps_per_generation": 6,
        "gradient_accumulation_steps": 2,
        "num_iterations": 2,
        "scale_rewards": "none",
        "reward_weights": [1.0, 0.0, 0.5],
        "epsilon": 0.1,
        "epsilon_high": 0.4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "seed": 3,
        "data_seed": 3,
    }
    assert {name: getattr(set_for_trl, name) for name in expected} == expected
    gated = reward_functions(DapoSettings(overlong_on_success=True, reward="ndcg"))
    assert [function.name for function in gated] == ["ndcg", "ndcg", "overlong_on_success"]


@pytest.mark.parametrize(
    ("loss", "loss_type", "level", "low", "high"),
    [
        ("dapo", "dapo", "token", 0.2, 0.28),
        ("grpo", "grpo", "token", 0.2, 0.2),
        ("dr_grpo", "dr_grpo", "token", 0.2, 0.2),
        ("bnpo", "bnpo", "token", 0.2, 0.2),
        ("cispo", "cispo", "token", 0.2, 5.0),
        ("gspo", "grpo", "sequence", 3e-4, 4e-4),
        ("luspo", "luspo", "sequence", 2e-3, 2.5e-3),
        ("sapo", "sapo", "token", 0.2, 0.2),
        ("vespo", "vespo", "token", 0.2, 0.2),
    ],
)
def test_a_loss_is_one_of_trl_with_the_bounds_of_its_paper(
    loss: str, loss_type: str, level: str, low: float, high: float
) -> None:
    chosen = arguments(loss=loss)
    assert (chosen.loss_type, chosen.importance_sampling_level) == (loss_type, level)
    assert (chosen.epsilon, chosen.epsilon_high) == (low, high)
    assert (chosen.beta, chosen.mask_truncated_completions) == (0.0, True)


def train(store: Store, name: str, **changed: Any) -> dict[str, torch.Tensor]:
    """The weights of a student that gave orders back as they came, after a few steps."""
    torch.rand(1)
    train_dapo(store, "prompts", "copier", name, DapoSettings(**{**SOME, **changed}))
    return weights(store, name)


@pytest.mark.slow
def test_what_is_rewarded_moves_the_weights(copying: Store) -> None:
    begun, paper = weights(copying, "copier"), train(copying, "conditional")
    assert not same(begun, paper)
    assert same(paper, train(copying, "again"))
    others = {
        "unconditional": train(copying, "unconditional", reward="unconditional"),
        "alpha": train(copying, "alpha", reward="unconditional", format_weight=0.9),
        "seed": train(copying, "seed", seed=1),
    }
    assert not any(same(paper, other) for other in others.values())
    assert not same(others["unconditional"], others["alpha"])
    ((valid,),) = fetch(copying, "select max(value) from run_metrics where metric = 'answers/valid'")
    assert valid > 0


@pytest.mark.slow
def test_a_run_says_what_it_can_resolve_and_trains_as_if_it_had_not(copying: Store) -> None:
    told: list[str] = []
    silent = train(copying, "silent", refill_rounds=1)
    settings = DapoSettings(**{**SOME, "refill_rounds": 1, "resolution_lists": 5})
    train_dapo(copying, "prompts", "copier", "telling", settings, on_progress=told.append)
    assert same(silent, weights(copying, "telling"))
    drawn, estimated = (line for line in told if isinstance(line, Notice))
    assert drawn.startswith("the run draws 4 prompts, without those of refilling; ")
    assert re.match(
        r"estimated on 5 of its training prompts, with 4 answers each, \d+% of them valid: NDCG@5 0\.\d{4}, ", estimated
    )
    assert told.index(estimated) < next(at for at, line in enumerate(told) if line.startswith("step 1 of 2"))


@pytest.mark.slow
def test_lora_begins_at_the_same_weights_for_the_same_seed(copying: Store) -> None:
    a, b, c = (train(copying, name, lora_rank=2, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    assert same(a, b)
    assert not same(a, c)


@pytest.mark.slow
def test_a_second_update_of_a_batch_is_clipped_by_epsilon(copying: Store) -> None:
    fast = {"learning_rate": 1e-2, "steps": 4}
    once = train(copying, "once", **fast)
    assert same(once, train(copying, "once-tight", epsilon=0.0, epsilon_high=0.0, **fast))
    twice = train(copying, "twice", num_iterations=2, **fast)
    assert not same(once, twice)
    # So fast, a step may leave both bands on every token, and the same ones are clipped: slower, they differ.
    slow = {"learning_rate": 1e-3, "prompts_per_batch": 16, "num_iterations": 2}
    tight = train(copying, "slow-tight", epsilon=0.0, epsilon_high=0.0, **slow)
    assert not same(train(copying, "slow", **slow), tight)
    clipped = dict(
        fetch(
            copying,
            "select settings ->> 'name', max(value) from runs join run_metrics using (run_id) "
            "where metric = 'clip_ratio/region_mean' group by 1",
        )
    )
    assert clipped["once"] == 0.0
    assert clipped["twice"] > 0.0
    assert clipped["slow-tight"] > clipped["slow"]


@pytest.mark.slow
def test_a_step_in_several_passes_is_the_same_step(copying: Store) -> None:
    settings = {"steps": 1, "refill_rounds": 1}
    whole = train(copying, "whole", **settings)
    parts = train(copying, "parts", gradient_accumulation_steps=4, **settings)
    for key, weight in whole.items():
        torch.testing.assert_close(parts[key], weight, rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"num_iterations": 2, "gradient_accumulation_steps": 2, "save_steps": 2, "refill_rounds": 1},
    ],
    ids=str,
)
def test_a_stopped_training_goes_on_to_the_same_weights(changed: dict[str, Any], copying: Store) -> None:
    settings = {"steps": 6, "save_steps": 1, **changed}
    whole = train(copying, "whole", **settings)

    def stop(told: str) -> None:
        if told.startswith("step 4 of 6"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_dapo(copying, "prompts", "copier", "stopped", DapoSettings(**{**SOME, **settings}), on_progress=stop)
    train_dapo(copying, "", "", "stopped", DapoSettings(), resume=True)
    assert same(whole, weights(copying, "stopped"))


def test_prompts_whose_candidates_cannot_be_told_apart_are_left_out() -> None:
    columns = {
        "list_id": list("123"),
        "prompt": list("abc"),
        "target": ["x"] * 3,
        "history": [[]] * 3,
        "pass_rate": [None] * 3,
    }
    rows = datasets.Dataset.from_dict({**columns, "candidates": [["x", "y"], ["x", "x"], ["y", "x"]]})
    told: list[str] = []
    assert choose_prompts(rows, DapoSettings(), told.append)["prompt"][:] == ["a", "c"]
    assert told == ["1 of 3 prompts left out: candidates share a semantic ID"]
    rows = datasets.Dataset.from_dict({**columns, "candidates": [["x", "x"]] * 3})
    with pytest.raises(InputError, match="each of 3 prompts has candidates that share a semantic ID"):
        choose_prompts(rows, DapoSettings())


def test_prompts_are_drawn_by_pass_rate(inputs: Store) -> None:
    rows = datasets.Dataset.from_dict(
        {
            "list_id": list("12345"),
            "pass_rate": [None, 0.0, 0.25, 0.5, 1.0],
            "prompt": list("abcde"),
            "candidates": [["x"]] * 5,
            "target": ["x"] * 5,
            "history": [[]] * 5,
        }
    )
    chosen = choose_prompts(rows, DapoSettings(min_pass_rate=0.2, max_pass_rate=0.9))
    assert chosen["prompt"][:] == ["c", "d"]
    assert choose_prompts(rows, DapoSettings(max_pass_rate=0.1))["prompt"][:] == ["a", "b"]
    with pytest.raises(InputError, match=r"none of 5 prompts has a pass rate from 0.6 to 0.9"):
        choose_prompts(rows, DapoSettings(min_pass_rate=0.6, max_pass_rate=0.9))


@pytest.mark.slow
def test_a_snapshot_with_pass_rates_can_be_trained_on(inputs: Store) -> None:
    sample(inputs, EvidenceTeacher(BRIEF), SamplingSettings("shop", template=TEMPLATE, max_attempts=4))
    publish(inputs, "tried", SnapshotSettings("shop", kind="dapo", template=TEMPLATE))
    settings = DapoSettings(**FEW, min_pass_rate=0.1, max_pass_rate=0.9)
    assert train_dapo(inputs, "tried", "new", "rl", settings).steps == 2


def test_a_reward_of_ones_own_trains_a_student(inputs: Store, write_module: Callable[[str, str], Path]) -> None:
    write_module(
        "own_training", "def places(judged, settings):\n    return float(len(judged.answer.task.candidates))\n"
    )
    settings = DapoSettings(**{**FEW, "steps": 1, "overlong_weight": 0.0}, reward="own_training:places")
    assert train_dapo(inputs, "prompts", "new", "rl", settings).figures["reward"] == 10.0


def test_constrained_to_permutations_every_rollout_of_a_newborn_is_valid_and_teaches(inputs: Store) -> None:
    settings: dict[str, Any] = {"steps": 2, "prompts_per_batch": 2, "num_generations": 4, "decode": "permutation"}
    begun = weights(inputs, "new")
    with pytest.raises(
        InputError, match=r"`max_tokens` is 20, but a permutation of 10 candidates takes up to"
    ) as error:
        train_dapo(inputs, "prompts", "new", "short", DapoSettings(**settings, max_tokens=20))
    # No more tokens than a ranking needs: the explanation stays empty, and what is learned are the names alone.
    settings["max_tokens"] = int(re.findall(r"takes up to (\d+)", str(error.value))[0])
    # A second update of a batch compares the constrained policy with what it was.
    done = train_dapo(inputs, "prompts", "new", "rl", DapoSettings(**settings, num_iterations=2, save_steps=2))
    assert done.figures["answers/valid"] == 1.0
    rollouts = fetch(inputs, "select len(list_distinct(ranking)), reward from rollout_browser")
    assert {names for names, _ in rollouts} == {10}
    assert len({reward for _, reward in rollouts}) > 1
    assert done.figures["grad_norm"] > 0
    assert not same(begun, weights(inputs, "rl"))
    # Over the vocabulary, the entropy of a newborn would be that of hundreds of tokens.
    assert 0 < done.figures["entropy"] < math.log(10)
    ((ratio,),) = fetch(inputs, "select value from run_metrics where metric = 'clip_ratio/region_mean' and step = 1")
    assert ratio == 0
    with pytest.raises(InputError, match="`decode` permutation needs `vllm_url` and `vllm_mode` to be left out"):
        DapoSettings(decode="permutation", vllm_url="http://127.0.0.1:8000")


def test_what_cannot_be_trained_is_a_clear_error_and_leaves_nothing(inputs: Store) -> None:
    with pytest.raises(SnapshotError, match="is a snapshot of kind 'sft'; expected kind 'dapo'"):
        train_dapo(inputs, "traces", "new", "x", DapoSettings(**FEW))
    with pytest.raises(InputError, match=r"the longest prompt has \d+ tokens; with answers of up to 4,000"):
        train_dapo(inputs, "prompts", "new", "x", DapoSettings(max_tokens=4000))
    with pytest.raises(InputError, match="no reward is called 'nice'"):
        train_dapo(inputs, "prompts", "new", "x", DapoSettings(reward="nice"))
    with pytest.raises(InputError, match="`temperature` is 0"):
        DapoSettings(temperature=0.0)
    with pytest.raises(InputError, match="`gradient_accumulation_steps` is 4, which does not divide the 6 rows"):
        DapoSettings(prompts_per_batch=3, num_generations=2, gradient_accumulation_steps=4)
    with pytest.raises(InputError, match="`steps_per_generation` is 4, which does not divide the 6 rows"):
        DapoSettings(prompts_per_batch=3, num_generations=2, steps_per_generation=4)
    with pytest.raises(InputError, match="`steps_per_generation` is 3; it must be a multiple of"):
        DapoSettings(steps_per_generation=3, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="`save_steps` is 5; it must be a multiple of `num_iterations`, 2, since"):
        DapoSettings(num_iterations=2, save_steps=5)
    with pytest.raises(
        InputError, match="`save_steps` is 50; it must be a multiple of `num_iterations`, 2, times 4 mini-batches"
    ):
        DapoSettings(num_iterations=2, steps_per_generation=8, gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="`scale_rewards` is 'batch' and `refill_rounds` is 2"):
        DapoSettings(scale_rewards="batch")
    with pytest.raises(InputError, match="`loss` is 'ppo'; it must be dapo, grpo, dr_grpo, bnpo, cispo, gspo, luspo"):
        DapoSettings(loss="ppo")
    with pytest.raises(InputError, match="`num_generations` is 1"):
        DapoSettings(num_generations=1)
    with pytest.raises(InputError, match=r"`min_pass_rate` is 0\.9; it must not be above `max_pass_rate`, 0\.1"):
        DapoSettings(min_pass_rate=0.9, max_pass_rate=0.1)
    assert not student_folder(inputs, "x").exists()
