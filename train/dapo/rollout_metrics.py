"""What a trainer logs of the answers that it rolls out, beside what they earn.

TRL hands reward functions a `log_metric` and averages what it is told over completions, processes and steps. So a
reward that has judged its completions anyway tells TRL what it saw, at no second judging and without a hook in the
trainer. Of several rewards one should be a `LoggedReward`: a second would log the same again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from train.dapo.rewards import JudgedCompletion, RewardFunction

# Of all completions; everything else is of valid ones alone, or ranks before and after would be of different answers.
SHARES = ("valid", "copied", "truncated")


class LoggedReward(RewardFunction):
    """A reward function that logs the diagnostics of its completions as answers/<name>; what it pays is the same.

    answers/valid, copied and truncated are shares of all completions; answers/rank_before, rank_after, promotion, auc
    and ndcg are means over valid answers, and absent where there is none.
    """

    def judge(
        self,
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        candidates: Sequence[Sequence[str]],
        **columns: Any,
    ) -> list[JudgedCompletion]:
        """As RewardFunction's; log_metric, if the caller is TRL, is told of each completion."""
        all_judged = super().judge(completions, candidates=candidates, **columns)
        if log_metric := columns.get("log_metric"):
            for judged in all_judged:
                for name, value in judged.diagnostics().items():
                    if value is not None and (judged.valid or name in SHARES):
                        log_metric(f"answers/{name}", value)
        return all_judged
