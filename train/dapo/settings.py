"""Settings of reinforcement learning by DAPO, without torch."""

from dataclasses import dataclass, replace
from typing import NamedTuple

from store import InputError
from store.settings import check, option
from train.students.settings import ChatTrainerSettings


class Loss(NamedTuple):
    """A loss of TRL: its loss_type and importance_sampling_level, and the clipping bounds that its paper uses."""

    loss_type: str
    importance_sampling_level: str = "token"
    epsilon: float = 0.2
    epsilon_high: float = 0.2


LOSSES = {
    "dapo": Loss("dapo", epsilon_high=0.28),  # arXiv 2503.14476
    "grpo": Loss("grpo"),  # arXiv 2402.03300
    "dr_grpo": Loss("dr_grpo"),  # arXiv 2503.20783
    "bnpo": Loss("bnpo"),  # arXiv 2506.02864
    # This bounds the ratio itself, as in arXiv 2510.13786, and there is no lower bound.
    "cispo": Loss("cispo", epsilon_high=5.0),  # arXiv 2506.13585
    "gspo": Loss("grpo", "sequence", 3e-4, 4e-4),  # arXiv 2507.18071
    "luspo": Loss("luspo", "sequence", 2e-3, 2.5e-3),  # arXiv 2602.05261
    # The next two losses clip nothing.
    "sapo": Loss("sapo"),  # arXiv 2511.20347
    "vespo": Loss("vespo"),  # arXiv 2602.10693
}


@dataclass(frozen=True, slots=True)
class DapoSettings(ChatTrainerSettings):
    """Settings of `train_dapo`.

    reward: one of train.dapo.rewards.REWARDS; it is looked up when the training begins.

    A setting with the same name as one of TRL's has its meaning. epsilon, epsilon_high: None for the bounds of the
    loss; they matter only from the second step on a batch. steps_per_generation: None for one optimizer step on each
    pass over a batch. refill_rounds: rounds of dynamic sampling. min_pass_rate, max_pass_rate: prompts that were never
    tried count as 0. max_tokens: the last fifth of it is punished gradually; a truncated completion is left out of the
    loss and of its group. learning_rate: None means a default for the kind of model (see `resolve`). vllm_mode: None
    means server if there is a vllm_url, and no vLLM otherwise. save_steps: must be a multiple of `steps_per_batch`,
    because a checkpoint keeps no generated batch.
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
    num_iterations: int = option(1, help="Number of passes over each generated batch.", low=1, group="Steps")
    gradient_accumulation_steps: int = option(
        1,
        help="Number of parts into which the rows of a step are split, to save memory (gradient accumulation).",
        low=1,
        group="Steps",
    )
    steps_per_generation: int | None = option(
        None,
        help="Number of these parts in a generated batch. With twice as many as in a step, a batch has two "
        "mini-batches, each with an optimizer step. Default: as many as in a step.",
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
    resolution_lists: int = option(
        16,
        help="Number of prompts that the student answers before the first step, to estimate which differences in "
        "NDCG@5 the run can resolve; 0 skips this.",
        low=0,
        group="Prompts",
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
    overlong_on_success: bool = option(
        False,
        help="Penalize length only in answers that move the target up or put it first.",
        group="Reward",
    )
    scale_rewards: str = option(
        "group",
        help="Scaling of advantages: by the standard deviation of the rewards in the group, in the batch, or none. "
        "batch cannot be combined with refilling.",
        choices=("group", "batch", "none"),
        group="Reward",
    )
    temperature: float = option(1.0, help="Sampling temperature.", low=1e-3, group="Sampling")
    loss: str = option("dapo", help="Loss function.", choices=tuple(LOSSES), group="Optimizer")
    epsilon: float | None = option(
        None,
        help="Lower clipping bound of the probability ratio, below 1. Default: that of the loss, 0.2 for dapo.",
        low=0.0,
        group="Optimizer",
    )
    epsilon_high: float | None = option(
        None,
        help="Upper clipping bound of the probability ratio, above 1; for cispo the bound itself. Default: that of the "
        "loss, 0.28 for dapo.",
        low=0.0,
        group="Optimizer",
    )
    learning_rate: float | None = option(
        None,
        help="Peak learning rate. Default: 1e-4 for students from scratch, 1e-6 for pretrained models.",
        low=0.0,
        group="Optimizer",
    )
    lr_scheduler_type: str = option(
        "constant_with_warmup",
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
    vllm_mode: str | None = option(
        None,
        help="Where vLLM generates: on a server, or colocated on the GPUs of the training. Default: on a server if its "
        "URL is given, otherwise transformers generates.",
        choices=("server", "colocate"),
        group="Sampling",
    )
    vllm_url: str | None = option(
        None,
        help="URL of a trl vllm-serve server that generates completions, such as http://127.0.0.1:8000.",
        group="Sampling",
    )
    vllm_gpu_memory_utilization: float = option(
        0.3, help="Share of a GPU's memory for a colocated vLLM.", low=0.01, high=1.0, group="Sampling"
    )
    seed: int = option(0, help="Seed of prompts and samples.", low=0, group="Sampling")
    save_steps: int = option(50, help="Number of steps between checkpoints.", low=1, group="Steps")
    log_steps: int = option(1, help="Number of steps between logged metrics.", low=1, group="Steps")

    def __post_init__(self) -> None:
        check(self)
        parts = self.parts_per_batch
        if parts % self.gradient_accumulation_steps:
            raise InputError(
                f"`steps_per_generation` is {parts}; it must be a multiple of `gradient_accumulation_steps`, "
                f"{self.gradient_accumulation_steps}, since each step learns from one generated batch"
            )
        if (rows := self.prompts_per_batch * self.num_generations) % parts:
            name = "steps_per_generation" if self.steps_per_generation else "gradient_accumulation_steps"
            raise InputError(
                f"`{name}` is {parts}, which does not divide the {rows} rows of `prompts_per_batch` times "
                "`num_generations`; choose one that does"
            )
        if self.save_steps % self.steps_per_batch:
            mini_batches = self.steps_per_batch // self.num_iterations
            times = f", times {mini_batches} mini-batches" if mini_batches > 1 else ""
            raise InputError(
                f"`save_steps` is {self.save_steps}; it must be a multiple of `num_iterations`, {self.num_iterations}"
                f"{times}, since checkpoints do not contain generated batches"
            )
        if self.scale_rewards == "batch" and self.refill_rounds:
            raise InputError(
                f"`scale_rewards` is 'batch' and `refill_rounds` is {self.refill_rounds}: refilling changes the batch "
                "by which advantages are scaled; set `refill_rounds` to 0, or scale by 'group' or 'none'"
            )
        if self.decode == "permutation" and (self.vllm_url or self.vllm_mode):
            raise InputError(
                "`decode` permutation needs `vllm_url` and `vllm_mode` to be left out: vLLM has no grammar that names "
                "each candidate once, so only this process can generate such completions"
            )
        if self.vllm_mode == "server" and self.vllm_url is None:
            raise InputError("`vllm_mode` is server; it needs the server's address, `vllm_url`")
        if self.vllm_mode == "colocate" and self.vllm_url is not None:
            raise InputError(
                f"`vllm_url` is {self.vllm_url}, but `vllm_mode` is colocate, which asks no server; leave one out"
            )
        if self.min_pass_rate > self.max_pass_rate:
            raise InputError(
                f"`min_pass_rate` is {self.min_pass_rate}; it must not be above `max_pass_rate`, {self.max_pass_rate}"
            )

    @property
    def parts_per_batch(self) -> int:
        """The number of parts per generated batch, which is TRL's steps_per_generation with its default."""
        return self.steps_per_generation or self.gradient_accumulation_steps

    @property
    def steps_per_batch(self) -> int:
        """The number of optimizer steps on each generated batch."""
        return self.parts_per_batch // self.gradient_accumulation_steps * self.num_iterations

    def resolve(self, *, from_scratch: bool) -> "DapoSettings":
        """Return the same settings with None replaced by the defaults of the kind of model and of the loss."""
        loss = LOSSES[self.loss]
        default = 1e-4 if from_scratch else 1e-6
        return replace(
            self,
            learning_rate=default if self.learning_rate is None else self.learning_rate,
            epsilon=loss.epsilon if self.epsilon is None else self.epsilon,
            epsilon_high=loss.epsilon_high if self.epsilon_high is None else self.epsilon_high,
        )
