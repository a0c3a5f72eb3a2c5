"""Settings of on-policy distillation, apart from torch."""

from dataclasses import dataclass, replace

from store.settings import check, option
from train.students.settings import ChatTrainerSettings


@dataclass(frozen=True, slots=True)
class DistillationSettings(ChatTrainerSettings):
    """Settings of `train_by_distillation`.

    beta: as in TRL's DistillationConfig. learning_rate: None leaves it to the kind of model (see `resolve`).
    """

    beta: float = option(
        1.0,
        help="Divergence between student and teacher: 1 is the reverse KL divergence, 0 the forward one, and between "
        "them lies that of Jensen and Shannon.",
        low=0.0,
        high=1.0,
        group="Optimizer",
    )
    prompts_per_batch: int = option(
        32, help="Number of prompts per batch and process; each gets one completion.", low=1, group="Sampling"
    )
    steps: int = option(100, help="Number of optimizer steps.", low=1, group="Steps")
    max_tokens: int = option(256, help="Maximum length of a completion, in tokens.", low=2, group="Sampling")
    temperature: float = option(
        1.0, help="Temperature of the samples and of both models' probabilities.", low=1e-3, group="Sampling"
    )
    learning_rate: float | None = option(
        None,
        help="Peak learning rate. Default: 1e-4 for students from scratch, 1e-6 for pretrained models.",
        low=0.0,
        group="Optimizer",
    )
    lr_scheduler_type: str = option(
        "linear",
        help="Learning rate after the warm-up: constant, or decaying to 0 at the last step.",
        choices=("constant_with_warmup", "linear", "cosine"),
        group="Optimizer",
    )
    warmup_steps: float = option(
        0.0,
        help="Number of steps in which the learning rate rises from 0, or, below 1, their share of all steps.",
        low=0.0,
        group="Optimizer",
    )
    seed: int = option(0, help="Seed of prompts and samples.", low=0, group="Sampling")
    save_steps: int = option(50, help="Number of steps between checkpoints.", low=1, group="Steps")
    log_steps: int = option(10, help="Number of steps between logged metrics.", low=1, group="Steps")

    def __post_init__(self) -> None:
        check(self)

    def resolve(self, *, from_scratch: bool) -> "DistillationSettings":
        """The same settings with the learning rate for the kind of model if there was none."""
        default = 1e-4 if from_scratch else 1e-6
        return replace(self, learning_rate=default if self.learning_rate is None else self.learning_rate)
