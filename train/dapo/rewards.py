"""Rewards: numbers for the order that a completion gives to a candidate list.

They are pure and picklable, without torch and TRL. Curation's parser reads a completion (`prompts.completion`),
curation's rules check it (`curate.traces.rules`), and ranks are discounted as in evaluation
(`curate.evaluation.metrics`). Training therefore rewards what curation keeps and evaluation measures. The module knows
no groups, advantages or models.

r_D is the target's rank among the candidates D, and r_o its rank in the answer; 1 is the best. R_fmt is 1 for an answer
that names every candidate once and nothing else, and 0 for any other. alpha is `format_weight`.

    R_rank         (r_D - r_o) / |D|                                                           arXiv 2602.07774
    unconditional  R_rank + alpha R_fmt; a copied order always earns alpha
    conditional    R_rank + alpha R_fmt if R_rank > 0 or r_D = 1, else R_rank                  arXiv 2602.07774
    format_gated   R_rank + alpha where R_fmt = 1                                              arXiv 2606.31984
    auc, ndcg      as format_gated, for several positives; a copied order that is not the
                   best possible earns alpha                                                   arXiv 2606.31984
    chain          the share of cheap checks that a trace passes, as in                        arXiv 2601.18533
    overlong       DAPO's soft punishment of length, equation 13                               arXiv 2503.14476
    overlong_on_success  the same for answers that succeed, and 0 for others: a short answer must not make up for a
                   wrong one, and long explanations of hard lists must not be punished before they help

The paper's condition is taken literally: if the target was first, alpha is paid wherever the answer puts it. An answer
without r_o cannot be read or leaves the target out, and the papers do not say what it earns. Here it earns `INVALID`,
-1, as in Diffusion-GR2 (arXiv 2607.01170). Under format_gated, auc and ndcg, every answer with R_fmt = 0 earns it too.
R_rank is always above -1. If INVALID were 0, a model that expects to demote the target would earn more by writing
nonsense. Under unconditional and conditional, an answer that names the target but is not a permutation keeps its
R_rank. The gate of arXiv 2606.31984 closes that gap. docs/benchmarks/rewards.md shows what typical answers earn under
each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import combinations
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from curate.evaluation.metrics import ndcg_at_k
from curate.traces.rules import PARSED, RULES, Answer, judge
from prompts.completion import ParseFailure, parse_completion
from prompts.tasks import Candidate, RerankTask, ShownItem
from store import InputError
from store.registry import Registry
from train.dapo.settings import DapoSettings

INVALID = -1.0
CHAIN = (PARSED, "not_truncated", "known_sids", "permutation", "cites")


def rank_promotion(rank_before: int, rank_after: int, candidates: int) -> float:
    """Return the share of the list by which a target moved up. It is negative if the target moved down.

    The range is ±(candidates - 1) / candidates.

    >>> rank_promotion(4, 1, 10)
    0.3
    """
    return (rank_before - rank_after) / candidates


def auc(gains_K: Sequence[float]) -> float:
    """Return the share of pairs with different gains in which the higher gain comes first; 0 if there is no such pair.

    gains_K: in the order to be scored. With gains of 0 and 1 these are the pairs of a positive and a negative, as in
    arXiv 2606.31984. Unlike there, a gain of 2 must also come before a gain of 1, so that 1 means the best order.

    >>> auc([0, 1, 0])
    0.5
    """
    pairs = [(first, second) for first, second in combinations(gains_K, 2) if first != second]
    return sum(first > second for first, second in pairs) / len(pairs) if pairs else 0.0


def ndcg(gains_K: Sequence[float]) -> float:
    """Return DCG divided by the DCG of the best order, with linear gains and not powers of 2; 0 if all gains are 0.

    gains_K: 0 or more each (0, 1 and 2 in arXiv 2606.31984), in the order to be scored.

    >>> ndcg([0, 0, 1])
    0.5
    """
    discounts_K = _discounts(len(gains_K))
    best = sum(map(mul, sorted(gains_K, reverse=True), discounts_K))
    return sum(map(mul, gains_K, discounts_K)) / best if best else 0.0


def overlong_punishment(tokens: int, max_tokens: int, cache_tokens: int) -> float:
    """Return 0 up to max_tokens - cache_tokens, then linearly down to -1 at max_tokens, and -1 beyond.

    >>> overlong_punishment(90, 100, 20)
    -0.5
    """
    over = tokens - (max_tokens - cache_tokens)
    if over <= 0:
        return 0.0
    return -over / cache_tokens if over < cache_tokens else -1.0


class JudgedCompletion(NamedTuple):
    """A completion and its candidate list: everything that a reward depends on.

    ranking: the distinct candidates that it names, in their order; empty if the completion cannot be read. valid:
    R_fmt, whether it names each candidate once and nothing else. copied: whether it repeats the order of the
    candidates. rank_before, rank_after: the rank of the target, 1 is the best; None if it is not among the candidates,
    or not in the ranking. gains_K: in the order of a valid ranking, else empty. tokens: 0 if unknown.
    """

    answer: Answer
    ranking: tuple[str, ...]
    valid: bool
    copied: bool
    rank_before: int | None
    rank_after: int | None
    gains_K: tuple[float, ...]
    tokens: int

    def promotion(self) -> float | None:
        """R_rank. It is 0 if the target is not among the candidates, and None if the ranking leaves the target out."""
        if not self.ranking:
            return None
        # No order can move a target that was not retrieved, so it speaks neither for nor against the answer.
        if self.rank_before is None:
            return 0.0
        if self.rank_after is None:
            return None
        return rank_promotion(self.rank_before, self.rank_after, len(self.answer.task.candidates))

    def auc(self) -> float | None:
        """The AUC of a valid ranking, or None."""
        return auc(self.gains_K) if self.valid else None

    def ndcg(self) -> float | None:
        """The NDCG of a valid ranking, or None."""
        return ndcg(self.gains_K) if self.valid else None

    def succeeds(self) -> bool:
        """Whether a valid ranking moves the target up or has it first."""
        promotion = self.promotion()
        return self.valid and promotion is not None and (promotion > 0 or self.rank_after == 1)

    def diagnostics(self) -> dict[str, float | None]:
        """Metrics for a trainer to log. None, in contrast to 0, means that there is nothing to measure."""
        return {
            "valid": float(self.valid),
            "copied": float(self.copied),
            "truncated": float(self.answer.finish_reason == "length"),
            "rank_before": self.rank_before,
            "rank_after": self.rank_after,
            "promotion": self.promotion(),
            "auc": self.auc(),
            "ndcg": self.ndcg(),
        }


def judge_completion(
    text: str,
    candidates: Sequence[str],
    target: str | None = None,
    *,
    gains: Sequence[float] | None = None,
    history: Sequence[str] = (),
    finish_reason: str = "stop",
    tokens: int = 0,
) -> JudgedCompletion:
    """Parse a completion and compare it with its candidates.

    candidates: semantic IDs in the pre-ranker's order. target: for unconditional, conditional and format_gated. gains:
    for auc and ndcg, one per candidate; the default is 1 for the target and 0 for all others. history: semantic IDs
    that the reasoning may cite, for chain. finish_reason: "length" for a truncated completion. Titles are not known
    here, so an answer that names items by title is invalid. Raises InputError if a candidate is given twice.
    """
    task = _task(tuple(candidates), tuple(history))
    parsed = parse_completion(text, task)
    answer = Answer(task, target or "", finish_reason, parsed)
    rank_before = _rank(candidates, target)
    if isinstance(parsed, ParseFailure):
        return JudgedCompletion(answer, (), False, False, rank_before, None, (), tokens)
    # An answer may repeat a candidate, and then its first mention counts.
    ranking = tuple(dict.fromkeys(parsed.ranking))
    valid = RULES.find("permutation").check(answer, parsed) is None
    copied = RULES.find("not_copied").check(answer, parsed) is not None
    gain_of = {target: 1.0} if gains is None else dict(zip(candidates, gains, strict=True))
    gains_K = tuple(gain_of.get(sid, 0.0) for sid in ranking) if valid else ()
    return JudgedCompletion(answer, ranking, valid, copied, rank_before, _rank(ranking, target), gains_K, tokens)


def _rank(sids: Sequence[str], target: str | None) -> int | None:
    return sids.index(target) + 1 if target in sids else None


@lru_cache(maxsize=1024)
def _task(candidates: tuple[str, ...], history: tuple[str, ...]) -> RerankTask:
    """Return the task that the parser and the rules need. It is cached, because all completions of a group share it.

    A semantic ID takes the place of the item's own id, which a trainer does not know.
    """
    if len(set(candidates)) < len(candidates):
        raise InputError(f"a candidate is given twice in {list(candidates)}; rewards need distinct semantic IDs")
    return RerankTask(
        history=tuple(ShownItem(sid, sid) for sid in history),
        candidates=tuple(Candidate(ShownItem(sid, sid)) for sid in candidates),
    )


@lru_cache
def _discounts(candidates: int) -> tuple[float, ...]:
    return tuple(ndcg_at_k(np.arange(1, candidates + 1), candidates).tolist())


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """Settings of all rewards.

    format_weight: alpha, the weight of R_fmt; 0.2 in Diffusion-GR2. max_tokens: the trainer's limit; a completion of
    that length counts as truncated. cache_tokens: the punishment of `overlong` begins this many tokens before the
    limit; DAPO has 4,096 and a limit of 20,480.
    """

    format_weight: float = 0.2
    max_tokens: int = 1024
    cache_tokens: int = 256

    def __post_init__(self) -> None:
        if self.format_weight < 0:
            raise InputError(f"format_weight is {self.format_weight}; it must be 0 or more")
        if not 0 <= self.cache_tokens <= self.max_tokens:
            raise InputError(f"cache_tokens is {self.cache_tokens}; it must be 0 to max_tokens, {self.max_tokens}")

    @classmethod
    def of(cls, settings: DapoSettings) -> "RewardSettings":
        """Return the reward settings of a training. The punishment of length begins at DAPO's share of the limit.

        DAPO's share is 4,096 of 20,480 tokens.
        """
        return cls(settings.format_weight, settings.max_tokens, settings.max_tokens // 5)


Reward = Callable[[JudgedCompletion, RewardSettings], float]


def _unconditional(judged: JudgedCompletion, settings: RewardSettings) -> float:
    promotion = judged.promotion()
    return INVALID if promotion is None else promotion + settings.format_weight * judged.valid


def _conditional(judged: JudgedCompletion, settings: RewardSettings) -> float:
    promotion = judged.promotion()
    if promotion is None:
        return INVALID
    bonus = judged.valid and (promotion > 0 or judged.rank_before == 1)
    return promotion + settings.format_weight * bonus


def _format_gated(
    rank_part: Callable[[JudgedCompletion], float | None], judged: JudgedCompletion, settings: RewardSettings
) -> float:
    earned = rank_part(judged)
    if earned is None or not judged.valid:
        return INVALID
    # A copied order earns nothing for its ranks, unless no order would be better, because copying must not pay.
    if judged.copied and auc(judged.gains_K) < 1:
        return settings.format_weight
    return earned + settings.format_weight


def _chain(judged: JudgedCompletion, _: RewardSettings) -> float:
    return sum(verdict.passed for verdict in judge(judged.answer, CHAIN)) / len(CHAIN)


def _overlong(judged: JudgedCompletion, settings: RewardSettings) -> float:
    return overlong_punishment(judged.tokens, settings.max_tokens, settings.cache_tokens)


def _overlong_on_success(judged: JudgedCompletion, settings: RewardSettings) -> float:
    return _overlong(judged, settings) if judged.succeeds() else 0.0


REWARDS: Registry[Reward] = Registry(
    "reward",
    "gr2.rewards",
    {
        "unconditional": _unconditional,
        "conditional": _conditional,
        "format_gated": partial(_format_gated, JudgedCompletion.promotion),
        "auc": partial(_format_gated, JudgedCompletion.auc),
        "ndcg": partial(_format_gated, JudgedCompletion.ndcg),
        "chain": _chain,
        "overlong": _overlong,
        "overlong_on_success": _overlong_on_success,
    },
)


@dataclass(frozen=True)
class RewardFunction:
    """A reward in the form that TRL's GRPOTrainer calls, and logs under its name.

    Beside the completions it takes these columns: candidates, a list of semantic IDs per row; target, one semantic ID
    per row or None; optionally gains and history, as in `judge_completion`; and completion_ids, which TRL adds. Raises
    InputError on an unknown name.

    >>> answer = '{"explanation": "", "recommendations": ["b", "a"]}'
    >>> RewardFunction("conditional")(["..."], [answer], candidates=[["a", "b"]], target=["b"])
    [0.7]
    """

    name: str
    settings: RewardSettings = RewardSettings()

    def __post_init__(self) -> None:
        REWARDS.find(self.name)

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(
        self,
        prompts: Sequence[Any],  # noqa: ARG002 (TRL passes them)
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        **columns: Any,
    ) -> list[float]:
        """Return one reward per completion.

        A completion is a text, or a list of chat messages whose last one is read.
        """
        reward = REWARDS.find(self.name)
        return [reward(judged, self.settings) for judged in self.judge(completions, **columns)]

    def judge(
        self,
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        candidates: Sequence[Sequence[str]],
        **columns: Any,
    ) -> list[JudgedCompletion]:
        """Judge completions. The trainer logs the diagnostics of the results, from which the rewards are computed."""
        # A column that the data lacks is None in every row.
        absent = [None] * len(completions)
        optional = (columns.get(name) or absent for name in ("target", "gains", "history", "completion_ids"))
        judged = []
        for completion, sids, target, gains, history, token_ids in zip(completions, candidates, *optional, strict=True):
            text = completion if isinstance(completion, str) else completion[-1].get("content") or ""
            tokens = len(token_ids or ())
            # TRL does not say why generation ended, but only a truncated completion has the maximum length.
            finish_reason = "length" if tokens >= self.settings.max_tokens else "stop"
            judged.append(
                judge_completion(
                    text, sids, target, gains=gains, history=history or (), finish_reason=finish_reason, tokens=tokens
                )
            )
        return judged


class OutcomeFunction(RewardFunction):
    """The part of a reward that depends on the order alone, without the format bonus and the rule against copies.

    This is R_rank under unconditional, conditional and format_gated, AUC under auc and NDCG under ndcg, and `INVALID`
    for an answer without such a value. A user's own reward is called with a format weight of 0. TRL logs the result as
    `outcome`. With a weight of 0 it changes no reward, and only tells which groups differ
    (`train.dapo.dynamic_sampling`).
    """

    @property
    def __name__(self) -> str:
        return "outcome"

    def __call__(
        self,
        prompts: Sequence[Any],  # noqa: ARG002 (TRL passes them)
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        **columns: Any,
    ) -> list[float]:
        """Return one outcome per completion."""
        reward, bare = REWARDS.find(self.name), replace(self.settings, format_weight=0.0)
        return [reward(judged._replace(copied=False), bare) for judged in self.judge(completions, **columns)]
