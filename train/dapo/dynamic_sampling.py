"""GRPO with DAPO's dynamic sampling: a step learns from groups whose rewards differ.

    0 < std(R_1, ..., R_G)    arXiv 2503.14476, section 3.2, equation 11, for graded rewards

A group that falls short of it has no advantage: it costs a rollout, teaches nothing and shrinks the step. TRL trains on
it all the same (its issue 3708); `DynamicSamplingTrainer` does what TRL does, and then:

1. groups without spread are dropped, and as many fresh prompts are rolled out by TRL's own method, round after round;
2. those that are left after the last round are masked out, so that the token mean of DAPO's loss is over the others;
3. what TRL logs stays a picture of the prompts as they came: the first rollouts, before anything was dropped.

DAPO samples without limit, and whole batches; here a limit of rounds bounds the cost of a step, and a round rolls out
only what is missing. Of rewards it knows no more than their values, of the data no more than its prompts.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import pad

from store.errors import InputError

# By how much of their size rewards differ that are equal but for the rounding of float32.
ROUNDING = 1e-6
# What TRL fills each field up with: prompts on the left, completions on the right. None is the padding token.
PROMPT_PADDING: dict[str, int | None] = {"prompt_ids": None, "prompt_mask": 0}
COMPLETION_PADDING: dict[str, int | None] = {
    "completion_ids": None,
    "completion_mask": 0,
    "tool_mask": 1,
    "old_per_token_logps": 0,
    "ref_per_token_logps": 0,
    "sampling_per_token_logps": 0,
    "importance_sampling_ratio": 1,
}
# One number a row.
ADVANTAGES = "advantages"


def rewards_differ(rewards_G: Sequence[float]) -> bool:
    """Whether rewards tell the completions of a group apart; NaN, which no reward function scored, says nothing.

    The range is asked, and not the deviation as TRL does: the mean of equal floats need not be one of them, so that
    TRL finds a deviation of 6e-8 in eight rewards of .7.
    """
    scored = [reward for reward in rewards_G if not math.isnan(reward)]
    return len(scored) > 1 and not math.isclose(min(scored), max(scored), rel_tol=ROUNDING, abs_tol=ROUNDING)


def merge_rows(
    parts: Sequence[Mapping[str, Tensor]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> dict[str, Tensor]:
    """Rows that TRL padded to several lengths, padded together and no further than their unmasked tokens need.

    parts: fields as TRL's GRPOTrainer makes them, (rows, tokens) each, and advantages, (rows,).
    """
    merged = {ADVANTAGES: torch.cat([part[ADVANTAGES] for part in parts])}
    for side, mask, padding in (
        ("left", "prompt_mask", PROMPT_PADDING),
        ("right", "completion_mask", COMPLETION_PADDING),
    ):
        for name in padding.keys() & parts[0].keys():
            rows: list[Tensor] = []
            for part in parts:
                # A field of no token cannot be computed with: of masked rows one stays. Only the importance ratio of a
                # whole sequence is narrower than its mask.
                lengths = part[mask].sum(dim=1).clamp_min(1).tolist()
                for row_T, tokens in zip(part[name].expand_as(part[mask]), lengths, strict=True):
                    rows.append(row_T[-tokens:] if side == "left" else row_T[:tokens])
            value = padding[name]
            merged[name] = pad(
                rows,
                padding_value=pad_token_id if value is None else value,
                padding_side=side,
                pad_to_multiple_of=pad_to_multiple_of,
            )
    return merged


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """The completions of one prompt. rows: TRL's fields of them. rewards_G: weighted sums, NaN where none scored."""

    rows: dict[str, Tensor]
    rewards_G: list[float]

    @property
    def is_informative(self) -> bool:
        """Its rewards differ, and not all of it is masked, as truncated completions may be."""
        return rewards_differ(self.rewards_G) and bool(self.rows["completion_mask"].any())

    def masked(self) -> dict[str, Tensor]:
        """Its rows, of which no token counts."""
        return {**self.rows, "completion_mask": torch.zeros_like(self.rows["completion_mask"])}


class DynamicSamplingTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer, whose steps learn from groups with spread.

    refill_rounds: how often at most a batch is refilled; 0 is TRL's trainer to the bit. Evaluation never refills.

    Fresh prompts come from the training data in a random order that is new for each batch, the same in every process,
    which takes its share of it, and the same after a checkpoint. Prompts of the batch are passed over, and no row is
    drawn twice for it; where too few are left, refilling ends. Each round every process rolls out as many groups as the
    neediest lacks, since TRL's collectives want equal sizes; informative ones that it does not need are dropped.

    A group without spread after the last round has its completions masked out, from attention, token counts and loss;
    with beta > 0 its KL term goes too. Losses that average over rows and not over tokens (grpo, sapo, dr_grpo, luspo)
    count its rows as zeros. A batch without any spread has loss 0 and moves nothing but weight decay and momentum.

    Logged beside TRL's metrics: refill/groups, the share of groups that were replaced; refill/rounds; refill/left, the
    share without spread after the last round; refill/reward, the mean reward of the completions trained on. What TRL
    and reward functions log of completions and rewards describes the first rollouts; num_tokens counts all of them.

    Raises InputError, where refill_rounds > 0, on a group that would be spread over processes, streamed data, images,
    and advantages that depend on the rest of the batch (scale_rewards="batch", normalize_then_sum).
    """

    # TRL's: metrics by mode and name, and rows of the table of completions.
    _metrics: dict[str, dict[str, list[float]]]
    _logs: dict[str, Any]

    def __init__(self, *args: Any, refill_rounds: int = 0, **others: Any) -> None:
        super().__init__(*args, **others)
        self.refill_rounds = refill_rounds
        if refill_rounds < 0:
            raise InputError(f"refill_rounds is {refill_rounds}; it must be 0 or more")
        if refill_rounds == 0:
            return
        rows = self.args.per_device_train_batch_size * self.args.steps_per_generation
        if rows % self.num_generations:
            raise InputError(
                f"each process generates {rows} completions at a time, which does not hold whole groups of "
                f"{self.num_generations}; choose per_device_train_batch_size * steps_per_generation as a multiple of "
                "num_generations"
            )
        if isinstance(self.train_dataset, datasets.IterableDataset):
            raise InputError("refilling draws prompts at random, which streamed data does not allow; load it whole")
        if self.scale_rewards == "batch" or self.multi_objective_aggregation != "sum_then_normalize":
            raise InputError(
                f"scale_rewards={self.scale_rewards!r} with {self.multi_objective_aggregation!r} scales advantages by "
                "the whole batch, which refilling changes; use 'group' or 'none' with 'sum_then_normalize'"
            )

    def _calculate_rewards(self, *args: Any) -> Tensor:
        """TRL's rewards, of which it keeps only advantages: (rows of all processes, reward functions)."""
        rewards_B_F: Tensor = super()._calculate_rewards(*args)
        self._rewards_B_F = rewards_B_F
        return rewards_B_F

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """What TRL makes of a batch, with groups without spread replaced or masked out; as many rows as TRL's."""
        if self.refill_rounds == 0 or not self.model.training:
            return self._sample(inputs)
        groups = self._sample_groups(inputs)
        kept = [group for group in groups if group.is_informative]
        left = [group for group in groups if not group.is_informative]
        lacking = len(left)
        fresh = self._fresh_prompts(inputs)
        rounds = 0
        while rounds < self.refill_rounds and (examples := self._draw(fresh, len(left))):
            rounds += 1
            with self._unlogged():
                groups = self._sample_groups(examples)
            for group in groups:
                if left and group.is_informative:
                    kept.append(group)
                    left.pop()
        self._log_refill(kept, rounds, replaced=lacking - len(left), left=len(left))
        merged = merge_rows(
            [group.rows for group in kept] + [group.masked() for group in left],
            self._tokenizer.pad_token_id,
            self.pad_to_multiple_of,
        )
        counted_B_T = merged["completion_mask"]
        if "tool_mask" in merged:
            counted_B_T = counted_B_T * merged["tool_mask"]
        merged["num_items_in_batch"] = self.accelerator.gather(counted_B_T.sum()).sum()
        return merged

    def _sample(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's own method, which logs and calls collectives: all processes call it with equally many inputs."""
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        return output

    def _sample_groups(self, inputs: list[dict[str, Any]]) -> list[Group]:
        """TRL's rollouts of this process: a prompt's copies stand side by side in the inputs, and so do its rows."""
        output = self._sample(inputs)
        del output["num_items_in_batch"]
        if unknown := output.keys() - {ADVANTAGES, *PROMPT_PADDING, *COMPLETION_PADDING}:
            raise InputError(f"refilling does not know {', '.join(sorted(unknown))}; train with refill_rounds=0")
        start = self.accelerator.process_index * len(inputs)
        rewards_B_F = self._rewards_B_F[start : start + len(inputs)]
        rewards_B = (rewards_B_F * self.reward_weights.to(rewards_B_F.device)).nansum(dim=1)
        rewards_B[rewards_B_F.isnan().all(dim=1)] = torch.nan
        return [
            Group({name: values[at : at + self.num_generations] for name, values in output.items()}, rewards_G.tolist())
            for at, rewards_G in zip(
                range(0, len(inputs), self.num_generations), rewards_B.split(self.num_generations), strict=True
            )
        ]

    def _fresh_prompts(self, inputs: list[dict[str, Any]]) -> Iterator[int]:
        """Rows of the training data whose prompts no process has in its batch, in the order of all processes."""
        prompts = [repr(example["prompt"]) for example in inputs[:: self.num_generations]]
        batch = set(gather_object(prompts))
        # A count that moves with every batch, is the same in all processes and comes back with a checkpoint.
        random = np.random.default_rng((self.args.seed, self.state.num_input_tokens_seen))
        rows = random.permutation(len(self.train_dataset)).tolist()
        return (row for row in rows if repr(self.train_dataset[row]["prompt"]) not in batch)

    def _draw(self, fresh: Iterator[int], lacking: int) -> list[dict[str, Any]]:
        """Fresh examples, num_generations of each prompt: as many here as in any process, where the neediest decides.

        Empty, in all processes at once, when none lacks a group or fresh prompts have run out.
        """
        lacking_P = self.accelerator.gather(torch.tensor([lacking], device=self.accelerator.device))
        rows = list(islice(fresh, int(lacking_P.max()) * self.accelerator.num_processes))
        share = len(rows) // self.accelerator.num_processes
        start = self.accelerator.process_index * share
        return [self.train_dataset[row] for row in rows[start : start + share] for _ in range(self.num_generations)]

    @contextmanager
    def _unlogged(self) -> Iterator[None]:
        """Forget what TRL logs meanwhile, except for how many tokens it generated."""
        metrics, logs = self._metrics, self._logs
        self._metrics, self._logs = copy.deepcopy((metrics, logs))
        try:
            yield
        finally:
            self._metrics, self._logs = metrics, logs
            self._metrics["train"]["num_tokens"] = [self.state.num_input_tokens_seen]

    def _log_refill(self, kept: Sequence[Group], rounds: int, *, replaced: int, left: int) -> None:
        """Log shares and means over all processes; no mean, which TRL writes as None, where nothing is trained on."""
        rewards = [reward for group in kept for reward in group.rewards_G if not math.isnan(reward)]
        counts = [len(kept) + left, replaced, left, len(rewards), sum(rewards)]
        sums_P = self.accelerator.gather(torch.tensor([counts], dtype=torch.float32, device=self.accelerator.device))
        all_groups, all_replaced, all_left, all_rewards, earned = sums_P.sum(dim=0).tolist()
        metrics = self._metrics["train"]
        metrics["refill/groups"].append(all_replaced / all_groups)
        metrics["refill/rounds"].append(rounds)
        metrics["refill/left"].append(all_left / all_groups)
        metrics["refill/reward"].append(earned / all_rewards if all_rewards else math.nan)
