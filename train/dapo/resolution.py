"""Estimates before the first step what a DAPO run can show: its prompts, their resolution and the remaining headroom.

The target's NDCG@5 differs from list to list much more than training changes it. With n lists, the mean of the paired
differences between two orders has a standard error of sd / sqrt(n). If a run sees so few prompts that this error is as
large as the headroom, its result cannot be told from chance. Differences and headroom come from a sample of the prompts
that the run draws from, which the student answers as in a rollout. This module knows no trainer and no torch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curate.evaluation.metrics import ndcg_at_k
from train.dapo.rewards import JudgedCompletion
from train.dapo.settings import DapoSettings


@dataclass(frozen=True, slots=True)
class Resolution:
    """The resolution of a run, estimated on a sample of its prompts.

    lists: the number of lists in the sample. answers: the number of completions per list. valid: the share of valid
    answers. ndcg, ndcg_before: mean NDCG@5 of answers and of the input order. deviation: standard deviation over lists
    of the difference between an answer and the input order. headroom: the mean gap between the best answer of a group
    and the mean of the group.
    """

    lists: int
    answers: int
    valid: float
    ndcg: float
    ndcg_before: float
    deviation: float
    headroom: float

    def standard_error(self, prompts: int) -> float:
        """The standard error of the mean paired difference on this many lists."""
        return self.deviation / math.sqrt(prompts)

    def describe(self, prompts: int) -> tuple[str, str]:
        """Describe in two lines, for people, what a run can resolve that draws this many different prompts."""
        error = (
            "on this number of lists, a paired difference in NDCG@5 has a standard error of "
            f"{self.standard_error(prompts):.4f}"
            if self.deviation
            # An error of 0 would say that everything can be resolved.
            else "no difference in NDCG@5 was found, so the standard error cannot be estimated"
        )
        return (
            f"the run draws {prompts:,} prompts, without those of refilling; {error}",
            f"estimated on {self.lists} of its training prompts, with {self.answers} answers each, {self.valid:.0%} of "
            f"them valid: NDCG@5 {self.ndcg:.4f}, {self.ndcg - self.ndcg_before:+.4f} compared with the input order; "
            f"headroom {self.headroom:.4f} (best answer of a group minus the group's mean)",
        )


def prompts_seen(settings: DapoSettings, available: int, processes: int = 1) -> int:
    """The number of different prompts that a run draws, without refilling. available: prompts in the training data."""
    batches = math.ceil(settings.steps / settings.steps_per_batch)
    return min(batches * settings.prompts_per_batch * processes, available)


def resolve(judged: Sequence[JudgedCompletion], answers: int) -> Resolution:
    """Estimate the resolution on a sample of at least two lists, whose targets are among the candidates.

    judged: the completions of each list, one list after the other. As in an evaluation, the input order takes the place
    of an invalid answer.
    """
    ranks = [(each.rank_before, each.rank_after if each.valid else each.rank_before) for each in judged]
    before_B_G, after_B_G = ndcg_at_k(np.array(ranks, dtype=float), 5).T.reshape(2, -1, answers)
    differences_B_G = after_B_G - before_B_G
    return Resolution(
        lists=len(after_B_G),
        answers=answers,
        valid=sum(each.valid for each in judged) / len(judged),
        ndcg=float(after_B_G.mean()),
        ndcg_before=float(before_B_G.mean()),
        # An evaluation has one answer per list, so this is the variance of a single answer, averaged over the answers.
        deviation=math.sqrt(differences_B_G.var(axis=0, ddof=1).mean()),
        headroom=float((after_B_G.max(axis=1) - after_B_G.mean(axis=1)).mean()),
    )
