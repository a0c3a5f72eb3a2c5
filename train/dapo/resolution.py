"""What a DAPO run can show, said before its first step: the prompts it will see, what they can resolve, what is left.

The target's NDCG@5 differs from list to list much more than training changes it. With n lists, the mean of the paired
differences between two orders has a standard error of sd / sqrt(n). A run that sees so few prompts that this error is
as large as the headroom cannot be told from chance. Differences and headroom come from a sample of the prompts that the
run draws from, answered by the student as in a rollout. This module knows no trainer and no torch.
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
    """lists: in the sample. answers: completions of each. valid: the share of valid answers. ndcg, ndcg_before: mean
    NDCG@5 of answers and of the input order. deviation: standard deviation, from list to list, of the difference of an
    answer and the input order. headroom: how much the best answer of a group is above the mean of its group, on
    average.
    """

    lists: int
    answers: int
    valid: float
    ndcg: float
    ndcg_before: float
    deviation: float
    headroom: float

    def standard_error(self, prompts: int) -> float:
        """Of the mean paired difference on this many lists."""
        return self.deviation / math.sqrt(prompts)

    def describe(self, prompts: int) -> tuple[str, str]:
        """Two lines for people, about a run that draws this many different prompts."""
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
    """How many different prompts a run draws, without those of refilling. available: prompts in the training data."""
    batches = math.ceil(settings.steps / settings.steps_per_batch)
    return min(batches * settings.prompts_per_batch * processes, available)


def resolve(judged: Sequence[JudgedCompletion], answers: int) -> Resolution:
    """The resolution by a sample of at least two lists, whose targets are among the candidates.

    judged: the completions of each list, one list after the other. As in an evaluation, the input order takes the place
    of an answer that is not valid.
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
        # An evaluation has one answer of each list, so the variance is that of one, averaged over the answers.
        deviation=math.sqrt(differences_B_G.var(axis=0, ddof=1).mean()),
        headroom=float((after_B_G.max(axis=1) - after_B_G.mean(axis=1)).mean()),
    )
