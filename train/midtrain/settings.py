"""Settings of mid-training, without torch."""

from dataclasses import dataclass, replace

from store.settings import check, option
from train.students.settings import TrainerSettings


@dataclass(frozen=True, slots=True)
class MidtrainSettings(TrainerSettings):
    """Settings of `train_midtrain`.

    next_item, persona, caption, general: the shares in which texts of each task are drawn. If a snapshot has no text of
    a task, the others take over its share. These defaults and that of warmup_learning_rate are the paper's.
    learning_rate: None means a default for the kind of model (see `resolve`). packing: is only worth it on a GPU with
    flash attention.
    """

    next_item: float = option(0.6573, low=0.0)
    persona: float = option(0.2430, low=0.0)
    caption: float = option(0.0494, low=0.0)
    general: float = option(0.0503, low=0.0)
    warmup_steps: int = option(
        100,
        help="Number of warm-up steps, in which only the embeddings of new tokens are trained.",
        low=0,
        group="Steps",
    )
    warmup_learning_rate: float = 5e-4
    steps: int = option(
        1_000, help="Number of steps after the warm-up, in which all weights are trained.", low=1, group="Steps"
    )
    learning_rate: float | None = option(
        None,
        help="Peak learning rate after the warm-up; the warm-up uses 5e-4. Default: 1e-3 for students from scratch, "
        "1e-4 for pretrained models.",
        low=0.0,
        group="Steps",
    )
    weight_decay: float = 0.01
    batch_size: int = option(64, help="Number of sequences per step and process.", low=1, group="Steps")
    max_length: int = option(1024, help="Maximum length of a text, in tokens.", low=2, group="Texts")
    packing: bool = option(
        False, help="Pack several texts into one sequence. Faster only on a GPU with flash attention.", group="Texts"
    )
    seed: int = option(0, help="Seed of the texts drawn.", low=0, group="Texts")
    save_steps: int = option(200, help="Number of steps between checkpoints.", low=1, group="Steps")
    log_steps: int = option(10, help="Number of steps between logged metrics.", low=1, group="Steps")

    def __post_init__(self) -> None:
        check(self)

    def resolve(self, *, from_scratch: bool) -> "MidtrainSettings":
        """Return the same settings with a missing learning rate replaced by the default of the kind of model."""
        if self.learning_rate is not None:
            return self
        return replace(self, learning_rate=1e-3 if from_scratch else 1e-4)

    @property
    def shares(self) -> dict[str, float]:
        """The shares by task."""
        return {
            "next_item": self.next_item,
            "persona": self.persona,
            "caption": self.caption,
            "general": self.general,
        }
