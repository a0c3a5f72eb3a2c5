"""Settings of new students, and of the training of any student, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store.settings import check, option


@dataclass(frozen=True, slots=True)
class InitSettings:
    """Settings of a new student.

    size: one of train.students.student.SIZES. rope_theta: as in Qwen3Config. seed: the seed of the first weights.
    """

    size: str = option("tiny", help="Size of the student.", choices=("tiny", "small", "base"))
    rope_theta: float = option(
        10_000.0,
        help="Base of the rotary position embedding. With a small one, such as 100, a student learns to look at nearby "
        "tokens sooner, which matters if it trains for a few hundred steps only.",
        low=1.0,
    )
    seed: int = option(0, help="Seed; the same seed gives the same student.", low=0)

    def __post_init__(self) -> None:
        check(self)


CHAT_TEMPLATE_KWARGS = (
    'Variables of the chat template, a JSON object such as {"enable_thinking": false}. The student keeps them, so that '
    "it is evaluated and served with them too."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSettings:
    """Settings of all trainers.

    lora_rank: 0 trains all weights. gradient_checkpointing: None means only on a GPU. attn_implementation: None leaves
    it to transformers.
    """

    gradient_accumulation_steps: int = option(
        1, help="Number of batches per optimizer step (gradient accumulation).", low=1, group="Steps"
    )
    gradient_checkpointing: bool | None = option(
        None,
        help="Recompute activations in the backward pass, which saves memory and makes training about a fifth slower. "
        "Default: only on a GPU.",
        group="Model",
    )
    lora_rank: int = option(0, help="Rank of the LoRA adapters; 0 trains all weights.", low=0, group="Model")
    attn_implementation: str | None = option(
        None,
        help="Attention of transformers: sdpa, eager, flash_attention_2 or the name of a kernel. Default: the model's.",
        group="Model",
        flag="attn",
    )
    report_to: str = option(
        "none",
        help="Experiment tracker that also receives the curves. It must be installed.",
        choices=("wandb", "trackio", "tensorboard", "none"),
        group="Steps",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTrainerSettings(TrainerSettings):
    """Settings of all trainers on conversations. chat_template_kwargs: None changes nothing."""

    chat_template_kwargs: Mapping[str, Any] | None = option(None, help=CHAT_TEMPLATE_KWARGS, group="Model")
