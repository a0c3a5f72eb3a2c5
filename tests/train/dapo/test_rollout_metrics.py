import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig

from prompts.completion import render_completion
from train.dapo.dynamic_sampling import DynamicSamplingTrainer
from train.dapo.rewards import RewardFunction, RewardSettings
from train.dapo.rollout_metrics import LoggedReward

# TRL asks transformers by an old name whenever it generates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
CANDIDATES = ["a", "b", "c", "d"]
COMPLETIONS = [
    render_completion("", order) for order in (["c", "a", "b", "d"], CANDIDATES, ["a", "b", "d", "c"], ["c", "a"])
] + ["nothing", "cut off"]
COLUMNS: dict[str, Any] = {
    "candidates": [CANDIDATES] * 6,
    "target": ["c"] * 6,
    "completion_ids": [[1], [1], [1], [1], [1], [1] * 8],
}


def test_shares_are_of_all_and_means_of_valid_answers() -> None:
    told = defaultdict(list)
    LoggedReward("conditional", RewardSettings(max_tokens=8, cache_tokens=2))(
        [None] * 6, COMPLETIONS, log_metric=lambda name, value: told[name].append(value), trainer_state=None, **COLUMNS
    )
    means = {name: sum(values) / len(values) for name, values in told.items()}
    assert means == pytest.approx(
        {
            "answers/valid": 3 / 6,
            "answers/copied": 1 / 6,
            "answers/truncated": 1 / 6,
            "answers/rank_before": 3,
            "answers/rank_after": (1 + 3 + 4) / 3,
            "answers/promotion": (0.5 + 0 - 0.25) / 3,
            "answers/auc": (1 + 1 / 3 + 0) / 3,
            "answers/ndcg": (1 + 0.5 + 0.43067655807) / 3,
        }
    )


def test_it_pays_as_the_reward_that_it_logs_and_keeps_its_name() -> None:
    plain, logged = RewardFunction("conditional"), LoggedReward("conditional")
    assert logged([None] * 6, COMPLETIONS, **COLUMNS) == plain([None] * 6, COMPLETIONS, **COLUMNS)
    assert logged.__name__ == "conditional"
    assert pickle.loads(pickle.dumps(logged)) == logged


def test_a_trainer_logs_them_beside_its_own(student: tuple[Any, Any], rows: Any, tmp_path: Path) -> None:
    model, tokenizer = student
    settings = RewardSettings(max_tokens=8, cache_tokens=2)
    config = GRPOConfig(
        output_dir=str(tmp_path),
        loss_type="dapo",
        epsilon=0.2,
        epsilon_high=0.28,
        beta=0.0,
        scale_rewards="group",
        mask_truncated_completions=True,
        num_generations=2,
        per_device_train_batch_size=4,
        max_completion_length=settings.max_tokens,
        max_steps=1,
        logging_steps=1,
        bf16=False,
        activation_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = DynamicSamplingTrainer(
        model,
        [LoggedReward("conditional", settings), RewardFunction("overlong", settings)],
        config,
        train_dataset=rows,
        processing_class=tokenizer,
        refill_rounds=2,
    )
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["rewards/conditional/mean"] == -1
    assert entry["answers/valid"] == entry["answers/copied"] == 0
    assert entry["answers/truncated"] == entry["completions/clipped_ratio"]
    assert "answers/promotion" not in entry
