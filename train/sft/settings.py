"""Settings of supervised fine-tuning, without torch."""

from dataclasses import dataclass, replace

from store import InputError
from store.settings import check, option
from train.students.settings import ChatTrainerSettings


@dataclass(frozen=True, slots=True)
class SftSettings(ChatTrainerSettings):
    """Settings of `train_sft`.

    reasoning_weight, answer_weight: lambda_r and lambda_o. reasoning: False trains on orders without explanations.
    epochs: passes over the training split; max_steps, if given, can end the training earlier. packing: is only worth it
    on a GPU with flash attention. optimizer, learning_rate: None means a default for the kind of model (see `resolve`).
    """

    reasoning_weight: float = option(
        0.1, help="Loss weight of a reasoning token (lambda_r of the paper).", low=0.0, group="Loss"
    )
    answer_weight: float = option(
        1.0, help="Loss weight of an answer token (lambda_o of the paper).", low=0.0, group="Loss"
    )
    reasoning: bool = option(True, help="Train on the reasoning too; without it, explanations are empty.", group="Loss")
    epochs: float = option(1.0, help="Number of passes over the training split.", low=1e-6, group="Steps")
    max_steps: int | None = option(
        None, help="Maximum number of optimizer steps. Default: no limit.", low=1, group="Steps"
    )
    batch_size: int = option(32, help="Number of rows per batch and process.", low=1, group="Steps")
    optimizer: str | None = option(
        None,
        help="Optimizer. Default: muon for students from scratch, adamw for pretrained models and LoRA.",
        choices=("muon", "adamw"),
        group="Optimizer",
    )
    learning_rate: float | None = option(
        None,
        help="Peak learning rate. Default: 5e-3 for students from scratch, 1e-5 for pretrained models.",
        low=0.0,
        group="Optimizer",
    )
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    max_tokens: int = option(
        4096, help="Maximum length of a row, prompt and completion, in tokens.", low=1, group="Rows"
    )
    packing: bool = option(
        False, help="Pack several rows into one sequence. Faster only on a GPU with flash attention.", group="Rows"
    )
    seed: int = option(0, help="Seed of the order of rows.", low=0, group="Rows")
    save_steps: int = option(200, help="Number of steps between checkpoints.", low=1, group="Steps")
    log_steps: int = option(10, help="Number of steps between logged metrics.", low=1, group="Steps")

    def __post_init__(self) -> None:
        check(self)
        if self.optimizer == "muon" and self.lora_rank:
            raise InputError(f"`lora_rank` is {self.lora_rank}, but `optimizer` is muon; LoRA needs adamw")

    def resolve(self, *, from_scratch: bool) -> "SftSettings":
        """Return the same settings with the default of the kind of model for a missing optimizer or learning rate."""
        optimizer = self.optimizer or ("muon" if from_scratch and not self.lora_rank else "adamw")
        learning_rate = self.learning_rate if self.learning_rate is not None else 5e-3 if from_scratch else 1e-5
        return replace(self, optimizer=optimizer, learning_rate=learning_rate)
