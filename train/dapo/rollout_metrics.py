"""Metrics of rolled-out answers that a trainer logs beside their rewards.

TRL passes a `log_metric` to reward functions and averages the logged values over completions, processes and steps. A
reward function judges its completions anyway, so it can log the details without judging twice and without a hook in
the trainer. If a run has several rewards, only one of them should be a `LoggedReward`: a second one would log the same
values again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from train.dapo.rewards import JudgedCompletion, RewardFunction

# These are averaged over all completions. All other metrics cover valid answers only; otherwise rank_before and
# rank_after would describe different sets of answers.
SHARES = ("valid", "copied", "truncated")


def describe_waste(metrics: Mapping[str, float]) -> str:
    """Describe batches that taught nothing, for a progress line.

    metrics: of a log entry. "" if all batches taught something.
    """
    if metrics.get("completions/clipped_ratio") == 1.0:
        return "nothing learned: every completion was cut off at max_tokens"
    # Without refilling, TRL's share of groups without spread is the only sign.
    empty = metrics.get("refill/empty", float(metrics.get("frac_reward_zero_std", 0.0) == 1.0))
    if empty == 1.0:
        return "nothing learned: no group has completions of different outcomes"
    return f"{empty:.0%} of batches gave no gradient" if empty else ""


class LoggedReward(RewardFunction):
    """A reward function that also logs the diagnostics of its completions as answers/<name>. Rewards do not change.

    answers/valid, copied and truncated are shares of all completions. answers/rank_before, rank_after, promotion, auc
    and ndcg are means over valid answers, and are absent if there are none.
    """

    def judge(
        self,
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        candidates: Sequence[Sequence[str]],
        **columns: Any,
    ) -> list[JudgedCompletion]:
        """Judge like RewardFunction, and log each completion if TRL calls it with log_metric."""
        all_judged = super().judge(completions, candidates=candidates, **columns)
        if log_metric := columns.get("log_metric"):
            for judged in all_judged:
                for name, value in judged.diagnostics().items():
                    if value is not None and (judged.valid or name in SHARES):
                        log_metric(f"answers/{name}", value)
        return all_judged
