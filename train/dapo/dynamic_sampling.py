"""GRPO with DAPO's dynamic sampling: each step learns from groups whose outcomes differ.

    0 < |{o_i : o_i is right}| < G    arXiv 2503.14476, section 3.2, equation 11
    0 < std(O_1, ..., O_G)            here, for graded outcomes O

The advantages of a group with equal rewards are all zero: the group costs a rollout, teaches nothing and makes the step
smaller. A group whose rewards differ only by form or length teaches only form or length. DAPO asks whether answers are
right, not what they earn in sum, and so does this module: the outcome is one of the reward functions. TRL trains on
such groups anyway (TRL issue 3708). `DynamicSamplingTrainer` runs TRL's rollouts, and then:

1. It drops groups with equal outcomes and rolls out as many fresh prompts with TRL's own method, for several rounds.
2. It masks out the groups that are still without spread after the last round, so that the token mean of DAPO's loss
   covers only the informative ones.
3. It leaves TRL's logs as they are after the first rollouts, so that they describe the prompts before any selection.

DAPO samples whole batches without a limit. Here the number of rounds bounds the cost of a step, and a round rolls out
only the missing groups.

A truncated completion that is masked out of the loss is also left out of its group's mean and deviation. TRL keeps it
there. Its punishment would lower the mean, and raise the advantages of answers that are worse than the average of the
others.

The trainer knows only the values of the reward functions, and only the prompts of the data.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import Tensor
from trl.trainer.utils import nanstd, pad

from store.errors import InputError
from train.dapo.shared_prompts import SharedPromptsTrainer
from train.ranking.model_selection import SelectingTrainer
from train.saving import plain_weights
from train.students.trainers import ChatPrompts

# Values that differ by less than this, relatively or absolutely, differ only by the rounding of float32.
ROUNDING = 1e-6
# The values with which TRL pads each field, prompts on the left and completions on the right. None is the padding
# token.
PROMPT_PADDING: dict[str, int | None] = {"prompt_ids": None, "prompt_mask": 0}
COMPLETION_PADDING: dict[str, int | None] = {
    "completion_ids": None,
    "completion_mask": 0,
    # 0 marks a token that a tool wrote. Padding is no such token, and completion_mask already keeps it out of the loss.
    "tool_mask": 1,
    "old_per_token_logps": 0,
    "ref_per_token_logps": 0,
    "sampling_per_token_logps": 0,
    # A ratio multiplies the loss, so the neutral value is 1, not 0.
    "importance_sampling_ratio": 1,
}
# This is the only field with one number per row and without a token axis, so it needs no padding.
ADVANTAGES = "advantages"


def rewards_differ(rewards_G: Sequence[float]) -> bool:
    """Whether the rewards or outcomes of a group differ. NaN means that a completion does not count, and is ignored.

    This compares minimum and maximum, where TRL computes the standard deviation. The mean of equal floats can differ
    from them by rounding, so TRL finds a deviation of 6e-8 in eight rewards of 0.7.
    """
    scored = [reward for reward in rewards_G if not math.isnan(reward)]
    return len(scored) > 1 and not math.isclose(min(scored), max(scored), rel_tol=ROUNDING, abs_tol=ROUNDING)


def merge_rows(
    parts: Sequence[Mapping[str, Tensor]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> dict[str, Tensor]:
    """Concatenate rows that TRL padded to different lengths, and pad them again to the longest unmasked row.

    parts: fields as TRL's GRPOTrainer returns them, each of shape (rows, tokens), and advantages of shape (rows,).
    """
    merged = {ADVANTAGES: torch.cat([part[ADVANTAGES] for part in parts])}
    for side, mask, padding in (
        ("left", "prompt_mask", PROMPT_PADDING),
        ("right", "completion_mask", COMPLETION_PADDING),
    ):
        # TRL's settings decide which fields exist, for all parts alike: "ref_per_token_logps" exists only with beta >
        # 0.
        for name in padding.keys() & parts[0].keys():
            rows: list[Tensor] = []
            for part in parts:
                # The model cannot compute with an empty row, so a fully masked row keeps one token.
                lengths = part[mask].sum(dim=1).clamp_min(1).tolist()
                # expand_as is needed for the importance ratio of a whole sequence, which is narrower, (rows, 1), than
                # its mask.
                for row_T, tokens in zip(part[name].expand_as(part[mask]), lengths, strict=True):
                    # Real tokens stand at the end of a left-padded row and at the start of a right-padded one.
                    rows.append(row_T[-tokens:] if side == "left" else row_T[:tokens])
            value = padding[name]
            merged[name] = pad(
                rows,
                padding_value=pad_token_id if value is None else value,
                padding_side=side,
                pad_to_multiple_of=pad_to_multiple_of,
            )
    return merged


def synced_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights that vLLM receives after a step: those of the plain model, in the precision of the base."""
    return ((name, weight.to(model.dtype)) for name, weight in plain_weights(model))


@dataclass(slots=True, eq=False)
class Rollout:
    """One completion of a training step.

    example: its row of the training data. index: its place in its group, from 0. tokens: its length. rewards: by the
    name of the reward function; NaN if the function did not score it. reward: their weighted sum, NaN if no function
    scored it. advantage: as TRL computes it. kept: whether the step learns from its group.
    """

    example: Mapping[str, Any]
    index: int
    completion: str
    tokens: int
    rewards: dict[str, float]
    reward: float
    advantage: float
    kept: bool


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The G completions of one prompt.

    rows: TRL's fields, G rows each. rewards_G: the weighted sum of each completion's rewards. outcomes_G: the values by
    which groups are selected. Both are NaN for a completion that no function scored or that is masked out as truncated.
    rollouts: the same completions, for `on_rollouts`; empty without `on_rollouts`.
    """

    rows: dict[str, Tensor]
    rewards_G: list[float]
    outcomes_G: list[float]
    rollouts: Sequence[Rollout] = ()

    @property
    def is_informative(self) -> bool:
        """Whether the outcomes of the group differ, and its rewards too, because equal rewards give no advantage."""
        return rewards_differ(self.outcomes_G) and rewards_differ(self.rewards_G)

    def masked(self) -> dict[str, Tensor]:
        """The rows of the group with a completion mask of zeros, so that no token counts."""
        return {**self.rows, "completion_mask": torch.zeros_like(self.rows["completion_mask"])}


class DynamicSamplingTrainer(SelectingTrainer, ChatPrompts, SharedPromptsTrainer):
    """TRL's GRPOTrainer with steps that learn only from groups whose outcomes differ.

    refill_rounds: the maximum number of times that a batch is refilled. With 0 this is TRL's trainer, except for
    truncated completions (see below) and for prompts that are read once. Evaluation is never refilled. outcome: the
    name of the reward function that says whether a group differs, None for the weighted sum of all. on_rollouts:
    receives the number of the step, counted from 1, and all rollouts of this process for it, including those of groups
    that were replaced. All processes call it at once.

    With mask_truncated_completions, a truncated completion has no advantage in training, and mean and deviation are
    those of the others. A group with fewer than two others is not used. Logged rewards are those of all completions.

    Fresh prompts come from the training data in a random order. The order is new for each batch, the same in every
    process (each takes its share) and the same after a resume. Prompts of the current batch are skipped, and no row is
    drawn twice for a batch. Refilling ends when no fresh prompts are left. In each round every process rolls out as
    many groups as the process that lacks most, because TRL's collectives need equal sizes. Surplus groups are dropped.

    A group without spread after the last round is masked out of attention, token counts and loss, and with beta > 0 out
    of the KL term. Losses that average over rows and not over tokens (grpo, sapo, dr_grpo, luspo) count its rows as
    zeros. If no group of a batch has spread, the loss is 0, and only weight decay and momentum move the weights.

    Chat prompts are rendered as everywhere in gr2 (`train.students.chat`).

    The trainer logs these metrics in addition to TRL's: refill/groups, the share of replaced groups; refill/rounds;
    refill/left, the share without spread after the last round; refill/empty, the share of batches in which no group is
    left, for lack of spread or because all completions were cut off; refill/reward, the mean reward of the completions
    trained on. The completions and rewards that TRL and the reward functions log are those of the first rollouts.
    num_tokens counts all rollouts.

    Raises InputError if refill_rounds is negative, and on mask_truncated_completions with normalize_then_sum. With
    refill_rounds > 0 it also raises InputError on a group that would be split between processes, on streamed data, on
    images, and on advantages that depend on the rest of the batch (scale_rewards="batch", normalize_then_sum).
    """

    # Attributes of TRL's trainer: metrics by mode and name, and the rows of its table of completions.
    _metrics: dict[str, dict[str, list[float]]]
    _logs: dict[str, Any]
    # The last rewards and completions of this process.
    _rewards_B_F: Any
    _completions: list[tuple[Any, Sequence[int]]]

    def __init__(
        self,
        *args: Any,
        refill_rounds: int = 0,
        outcome: str | None = None,
        on_rollouts: Callable[[int, Sequence[Rollout]], None] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(*args, **others)
        if self.use_vllm:
            # TRL sends the names of peft's wrappers around new tokens, which vLLM does not know.
            self.vllm_generation._iter_named_params = lambda: synced_weights(self.model)
        self.refill_rounds = refill_rounds
        self._outcome = None if outcome is None else self.reward_func_names.index(outcome)
        self.on_rollouts = on_rollouts
        self._rollouts: list[Rollout] = []
        # The checks below read attributes that TRL's constructor sets, so they come after it.
        if refill_rounds < 0:
            raise InputError(f"refill_rounds is {refill_rounds}; it must be 0 or more")
        if self.mask_truncated_completions and self.multi_objective_aggregation != "sum_then_normalize":
            raise InputError(
                f"multi_objective_aggregation is {self.multi_objective_aggregation!r}, under which truncated "
                "completions cannot leave their group; use 'sum_then_normalize', or mask_truncated_completions=False"
            )
        if refill_rounds == 0:
            return
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if rows % self.num_generations:
            raise InputError(
                f"each process generates {rows} completions at a time, which is no multiple of the group size "
                f"{self.num_generations}; make per_device_train_batch_size * steps_per_generation a multiple of "
                "num_generations"
            )
        if isinstance(self.train_dataset, datasets.IterableDataset):
            raise InputError(
                "refilling draws prompts in random order, but the training data is streamed; load it without streaming"
            )
        # A group keeps the advantages of its own rollout, so they must not depend on groups that are replaced later.
        if self.scale_rewards == "batch" or self.multi_objective_aggregation != "sum_then_normalize":
            raise InputError(
                f"scale_rewards={self.scale_rewards!r} with {self.multi_objective_aggregation!r} scales advantages by "
                "the whole batch, but refilling changes the batch; use 'group' or 'none' with 'sum_then_normalize'"
            )

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids: Any) -> Tensor:
        """Return TRL's rewards, of shape (rows of all processes, reward functions), and remember them for `_sample`."""
        rewards_B_F: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        # This is TRL's own test, by which it masks completions.
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        truncated_B = torch.tensor([ids[-1] not in ends for ids in completion_ids], device=rewards_B_F.device)
        masked_B = self.accelerator.gather(truncated_B) & self.mask_truncated_completions
        # nansum gives 0 for a completion that no function scored, which would look like a reward.
        without_B = rewards_B_F.isnan().all(dim=1) | masked_B
        weights_F = self.reward_weights.to(rewards_B_F.device)
        self._rewards_B = (rewards_B_F * weights_F).nansum(dim=1).masked_fill(without_B, torch.nan)
        self._outcomes_B = (
            self._rewards_B if self._outcome is None else rewards_B_F[:, self._outcome].masked_fill(masked_B, torch.nan)
        )
        self._rewards_B_F = rewards_B_F[self._rows_of_this_process(inputs)]
        self._completions = list(zip(completions, completion_ids, strict=True))
        return rewards_B_F

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's output for a batch, after dynamic sampling. Its rollouts go to `on_rollouts`."""
        self._rollouts = []
        output = self._sample_informative(inputs)
        if self.on_rollouts is not None and self.model.training:
            self.on_rollouts(self.state.global_step + 1, self._rollouts)
        return output

    def _sample_informative(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's output for a batch, with groups without spread replaced or masked out.

        The row count stays TRL's.
        """
        if self.refill_rounds == 0 or not self.model.training:
            return self._sample(inputs)
        groups = self._sample_groups(inputs)
        kept = [group for group in groups if group.is_informative]
        left = [group for group in groups if not group.is_informative]
        lacking = len(left)
        # These are called even if this process lacks nothing: _fresh_prompts and _draw call collectives, which hang
        # unless every process takes part. _draw returns the same number of prompts everywhere, so all loops end alike.
        fresh = self._fresh_prompts(inputs)
        rounds = 0
        while rounds < self.refill_rounds and (examples := self._draw(fresh, len(left))):
            rounds += 1
            with self._unlogged():
                groups = self._sample_groups(examples)
            for group in groups:
                # A process that lacks fewer groups than the neediest one drops its surplus, because the row count is
                # fixed.
                if left and group.is_informative:
                    kept.append(group)
                    left.pop()
        for group in kept:
            for rollout in group.rollouts:
                rollout.kept = True
        self._log_refill(kept, rounds, replaced=lacking - len(left), left=len(left))
        merged = merge_rows(
            [group.rows for group in kept] + [group.masked() for group in left],
            self._tokenizer.pad_token_id,
            self.pad_to_multiple_of,
        )
        counted_B_T = merged["completion_mask"]
        if "tool_mask" in merged:
            counted_B_T = counted_B_T * merged["tool_mask"]
        # DAPO's loss divides by the tokens of all processes. TRL counted the tokens of its own rollout, so they are
        # counted again.
        merged["num_items_in_batch"] = self.accelerator.gather(counted_B_T.sum()).sum()
        return merged

    def sample_completions(self, examples: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Sample num_generations completions of each row of the training data, row after row, as in a rollout.

        Random numbers and metrics are not changed, so a training continues as if nothing had been sampled. All
        processes must call it with equally many rows.
        """
        device = self.accelerator.device
        training = self.model.training
        with self._unlogged(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            # In training mode, TRL would count the tokens that it generates.
            self.model.eval()
            _, _, _, completions, *_ = self._generate(
                [example["prompt"] for example in examples for _ in range(self.num_generations)]
            )
        self.model.train(training)
        return list(completions)

    def _sample(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Call TRL's own method.

        It logs and calls collectives, so all processes must call it with equally many inputs.
        """
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.mask_truncated_completions and self.model.training:
            output[ADVANTAGES] = self._advantages()[self._rows_of_this_process(inputs)]
        if self.on_rollouts is not None:
            self._rollouts += self._describe(inputs, output[ADVANTAGES].tolist())
        return output

    def _advantages(self) -> Tensor:
        """Return TRL's advantages of the rows of all processes.

        Masked completions are left out and have an advantage of 0.
        """
        rewards_N_G = self._rewards_B.view(-1, self.num_generations)
        advantages_N_G = rewards_N_G - rewards_N_G.nanmean(dim=1, keepdim=True)
        if self.scale_rewards != "none":
            group = self.scale_rewards == "group"
            deviation = nanstd(rewards_N_G, dim=1, keepdim=True) if group else nanstd(rewards_N_G)
            # The constant is TRL's.
            advantages_N_G = advantages_N_G / (deviation + 1e-4)
        advantages_B: Tensor = advantages_N_G.flatten().nan_to_num(nan=0.0)
        return advantages_B

    def _rows_of_this_process(self, inputs: Sequence[Any]) -> slice:
        """The places of the rows of these inputs among those of all processes, over which TRL gathers rewards."""
        start = self.accelerator.process_index * len(inputs)
        return slice(start, start + len(inputs))

    def _weighted_rewards(self) -> Any:
        """The weighted sum of the rewards of each of the last completions (B,), NaN if no function scored it."""
        rewards_B = (self._rewards_B_F * self.reward_weights.to(self._rewards_B_F.device)).nansum(dim=1)
        # nansum gives 0 for a completion that no function scored, which would look like a reward.
        rewards_B[self._rewards_B_F.isnan().all(dim=1)] = torch.nan
        return rewards_B

    def _describe(self, inputs: Sequence[Mapping[str, Any]], advantages: Sequence[float]) -> list[Rollout]:
        """Return the last completions as rollouts. Without dynamic sampling a step learns from all of them."""
        return [
            Rollout(
                example=example,
                index=place % self.num_generations,
                completion=completion if isinstance(completion, str) else completion[-1].get("content") or "",
                tokens=len(ids),
                rewards=dict(zip(self.reward_func_names, rewards_F, strict=True)),
                reward=reward,
                advantage=advantage,
                kept=self.refill_rounds == 0,
            )
            for place, (example, (completion, ids), rewards_F, reward, advantage) in enumerate(
                zip(
                    inputs,
                    self._completions,
                    self._rewards_B_F.tolist(),
                    self._weighted_rewards().tolist(),
                    advantages,
                    strict=True,
                )
            )
        ]

    def _sample_groups(self, inputs: list[dict[str, Any]]) -> list[Group]:
        """Roll out the inputs of this process with TRL and split the rows into groups.

        The copies of a prompt are adjacent in the inputs, and so are their rows in the output.

        Raises InputError on a field of TRL's output that `merge_rows` cannot pad, such as images.
        """
        output = self._sample(inputs)
        # This is a count over the whole batch, which is taken again once the final batch is known.
        del output["num_items_in_batch"]
        if unknown := output.keys() - {ADVANTAGES, *PROMPT_PADDING, *COMPLETION_PADDING}:
            raise InputError(
                f"refilling cannot merge the fields {', '.join(sorted(unknown))} of TRL's batch; "
                "train with refill_rounds=0"
            )
        mine = self._rows_of_this_process(inputs)
        rewards_B, outcomes_B = self._rewards_B[mine], self._outcomes_B[mine]
        rollouts = self._rollouts[-len(inputs) :]
        return [
            Group(
                {name: values[group] for name, values in output.items()},
                rewards_B[group].tolist(),
                outcomes_B[group].tolist(),
                rollouts[group],
            )
            for group in (slice(at, at + self.num_generations) for at in range(0, len(inputs), self.num_generations))
        ]

    def _fresh_prompts(self, inputs: list[dict[str, Any]]) -> Iterator[int]:
        """Return row numbers of training prompts in no process's batch, in an order that all processes share."""
        # repr is needed, because a conversational prompt is a list of dicts, which no set can hold.
        prompts = [repr(example["prompt"]) for example in inputs[:: self.num_generations]]
        batch = set(gather_object(prompts))
        # The token count changes with every batch, is the same in all processes and is restored from a checkpoint.
        random = np.random.default_rng((self.args.seed, self.state.num_input_tokens_seen))
        rows = random.permutation(len(self.train_dataset)).tolist()
        return (row for row in rows if repr(self.train_dataset[row]["prompt"]) not in batch)

    def _draw(self, fresh: Iterator[int], lacking: int) -> list[dict[str, Any]]:
        """Draw fresh examples for one round, each prompt num_generations times.

        Every process gets the same number of prompts, which is the number that the process with the largest need
        requires. The list is empty, in all processes at once, if no process lacks a group or if the fresh prompts have
        run out.
        """
        # _P: one entry per process.
        lacking_P = self.accelerator.gather(torch.tensor([lacking], device=self.accelerator.device))
        rows = list(islice(fresh, int(lacking_P.max()) * self.accelerator.num_processes))
        # The share is rounded down, and the last few prompts are left over, because shares must have equal sizes.
        share = len(rows) // self.accelerator.num_processes
        start = self.accelerator.process_index * share
        return [self.train_dataset[row] for row in rows[start : start + share] for _ in range(self.num_generations)]

    @contextmanager
    def _unlogged(self) -> Iterator[None]:
        """Within the context, discard everything that TRL logs except the number of tokens."""
        metrics, logs = self._metrics, self._logs
        # TRL appends to the lists inside, so only a deep copy keeps the originals as they are.
        self._metrics, self._logs = copy.deepcopy((metrics, logs))
        try:
            yield
        finally:
            self._metrics, self._logs = metrics, logs
            self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]

    def _log_refill(self, kept: Sequence[Group], rounds: int, *, replaced: int, left: int) -> None:
        """Log shares and means over all processes. The mean reward is NaN if there is nothing to train on."""
        rewards = [reward for group in kept for reward in group.rewards_G if not math.isnan(reward)]
        # Sums are gathered, and not means, because processes may have scored different numbers of completions.
        counts = [len(kept) + left, replaced, left, len(rewards), sum(rewards)]
        sums_P = self.accelerator.gather(torch.tensor([counts], dtype=torch.float32, device=self.accelerator.device))
        all_groups, all_replaced, all_left, all_rewards, earned = sums_P.sum(dim=0).tolist()
        metrics = self._metrics["train"]
        metrics["refill/groups"].append(all_replaced / all_groups)
        metrics["refill/rounds"].append(rounds)
        metrics["refill/left"].append(all_left / all_groups)
        metrics["refill/empty"].append(float(all_left == all_groups))
        metrics["refill/reward"].append(earned / all_rewards if all_rewards else math.nan)
