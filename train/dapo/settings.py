"""Settings of reinforcement learning by DAPO, apart from torch."""

from dataclasses import dataclass, replace

from store import InputError
from store.settings import check, option


@dataclass(frozen=True, slots=True)
class DapoSettings:
    """reward: one of train.dapo.rewards.REWARDS; it is looked up when the training begins.

    num_iterations: TRL's; epsilon and epsilon_high matter from the second step on a batch on. refill_rounds: of dynamic
    sampling. min_pass_rate, max_pass_rate: prompts that were never tried count as 0. max_tokens: the last fifth of it
    is punished by degrees, and what is cut off is left out of the loss and of its group. learning_rate: None leaves it
    to the kind of model (see `resolve`). save_steps: a checkpoint keeps no generated batch, so it is a multiple of
    num_iterations.
    """

    reward: str = option(
        "conditional",
        help="Reward: conditional (of the paper), unconditional, format_gated, auc, ndcg, or your own as "
        "module:object.",
        group="Reward",
    )
    format_weight: float = option(0.2, help="Weight of the reward for a valid answer format.", low=0.0, group="Reward")
    num_generations: int = option(8, help="Number of completions per prompt.", low=2, group="Sampling")
    prompts_per_batch: int = option(
        16, help="Number of prompts per generated batch and process.", low=1, group="Sampling"
    )
    steps: int = option(100, help="Number of optimizer steps.", low=1, group="Steps")
    num_iterations: int = option(1, help="Number of optimizer steps on each generated batch.", low=1, group="Steps")
    gradient_accumulation_steps: int = option(
        1,
        help="Number of passes into which the rows of a step are split (gradient accumulation).",
        low=1,
        group="Steps",
    )
    refill_rounds: int = option(
        2,
        help="Number of rounds in which groups whose answers are all equally good are replaced by new prompts; 0 "
        "trains on every group, as TRL does.",
        low=0,
        group="Sampling",
    )
    min_pass_rate: float = option(
        0.0, help="Minimum teacher pass rate of the prompts used.", low=0.0, high=1.0, group="Prompts"
    )
    max_pass_rate: float = option(
        1.0, help="Maximum teacher pass rate of the prompts used.", low=0.0, high=1.0, group="Prompts"
    )
    max_tokens: int = option(256, help="Maximum length of a completion, in tokens.", low=2, group="Sampling")
    overlong_weight: float = option(1.0, help="Weight of the penalty for long completions.", low=0.0, group="Reward")
    decode: str = option(
        "free",
        help="Decoding of completions: free, or permutation (after the explanation, only candidates that are not yet "
        "named may follow, so that every completion is valid).",
        choices=("free", "permutation"),
        group="Sampling",
    )
    temperature: float = option(1.0, help="Sampling temperature.", low=1e-3, group="Sampling")
    epsilon: float = option(
        0.2, help="Lower clipping bound of the probability ratio, below 1.", low=0.0, group="Optimizer"
    )
    epsilon_high: float = option(
        0.28, help="Upper clipping bound of the probability ratio, above 1.", low=0.0, group="Optimizer"
    )
    learning_rate: float | None = option(
        None,
        help="Learning rate. Default: 1e-4 for students from scratch, 1e-6 for pretrained models.",
        low=0.0,
        group="Optimizer",
    )
    lora_rank: int = option(0, help="Rank of the LoRA adapters; 0 trains all weights.", low=0, group="Optimizer")
    vllm_url: str | None = option(
        None,
        help="URL of a trl vllm-serve server that generates, such as http://127.0.0.1:8000. Default: generate in this "
        "process.",
        group="Sampling",
    )
    seed: int = option(0, help="Seed of prompts and samples.", low=0, group="Sampling")
    save_steps: int = option(50, help="Number of steps between checkpoints.", low=1, group="Steps")
    log_steps: int = option(1, help="Number of steps between logged metrics.", low=1, group="Steps")

    def __post_init__(self) -> None:
        check(self)
        if (rows := self.prompts_per_batch * self.num_generations) % self.gradient_accumulation_steps:
            raise InputError(
                f"`gradient_accumulation_steps` is {self.gradient_accumulation_steps}, which does not divide the "
                f"{rows} rows of `prompts_per_batch` times `num_generations`; choose one that does"
            )
        if self.save_steps % self.num_iterations:
            raise InputError(
                f"`save_steps` is {self.save_steps}; it must be a multiple of `num_iterations`, "
                f"{self.num_iterations}, since a generated batch is in no checkpoint"
            )
        if self.decode == "permutation" and self.vllm_url is not None:
            raise InputError(
                "`decode` permutation needs `vllm_url` to be left out: a vLLM server has no grammar that names each "
                "candidate once, so only this process can generate such completions"
            )
        if self.min_pass_rate > self.max_pass_rate:
            raise InputError(
                f"`min_pass_rate` is {self.min_pass_rate}; it must not be above `max_pass_rate`, {self.max_pass_rate}"
            )

    def resolve(self, *, from_scratch: bool) -> "DapoSettings":
        """The same settings with a learning rate, where None stood, that suits the kind of model."""
        if self.learning_rate is not None:
            return self
        return replace(self, learning_rate=1e-4 if from_scratch else 1e-6)
