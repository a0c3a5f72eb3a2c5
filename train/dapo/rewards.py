"""Rewards: what a completion earns for the order that it gives to a candidate list.

Pure and picklable, without torch and TRL. A completion is read by the parser and checked by the rules that curation
uses (`prompts.completion`, `curate.traces.rules`), and ranks are discounted as evaluation discounts them
(`curate.evaluation.metrics`): what training pays for is what is kept and measured. Of groups, advantages and models it
knows nothing.

With r_D the target's rank among the candidates D, r_o its rank in the answer, 1 the best, and R_fmt = 1 for an answer
that names every candidate once and nothing else, else 0:

    R_rank     (r_D - r_o) / |D|                                                                 arXiv 2602.07774
    plain      R_rank + alpha R_fmt; copying earns alpha for ever
    paper      R_rank + alpha R_fmt if R_rank > 0 or r_D = 1, else R_rank                        arXiv 2602.07774
    gated      R_rank + alpha where R_fmt = 1                                                    arXiv 2606.31984
    auc, ndcg  as gated, of several positives; a copied order that could be better earns alpha   arXiv 2606.31984
    chain      the share of cheap checks that a trace passes, after                              arXiv 2601.18533
    overlong   DAPO's soft punishment of length, equation 13                                     arXiv 2503.14476

The paper's condition is read as it stands: a target that was first brings alpha wherever the answer puts it. What an
answer earns that has no r_o, because it cannot be read or leaves the target out, the papers do not say. Ours is
`INVALID`, -1, which Diffusion-GR2 (arXiv 2607.01170) pays for the first kind; gated, auc and ndcg pay it for every
answer with R_fmt = 0. R_rank is never as low: were INVALID 0, a model that expects to demote the target would do better
to write nonsense. Under plain and paper an answer that names the target but is no permutation keeps its R_rank; that is
what the report's gate closes. docs/benchmarks/rewards.md shows what policies earn under each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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

INVALID = -1.0
CHAIN = (PARSED, "not_truncated", "known_sids", "permutation", "cites")


def rank_promotion(rank_before: int, rank_after: int, candidates: int) -> float:
    """By how much of the list a target moved up; within ±(candidates - 1) / candidates, negative when it moved down.

    >>> rank_promotion(4, 1, 10)
    0.3
    """
    return (rank_before - rank_after) / candidates


def auc(gains_K: Sequence[float]) -> float:
    """The share of pairs of unequal gain whose better half stands first; 0 where there is no such pair.

    gains_K: in the order to be scored. With gains 0 and 1 these are the report's pairs of a positive and a negative;
    with graded ones it departs: a 2 must also stand before a 1, so that 1 means that no order is better.

    >>> auc([0, 1, 0])
    0.5
    """
    pairs = [(first, second) for first, second in combinations(gains_K, 2) if first != second]
    return sum(first > second for first, second in pairs) / len(pairs) if pairs else 0.0


def ndcg(gains_K: Sequence[float]) -> float:
    """DCG over that of the best order, gains as they are and not as powers of 2; 0 where all are 0.

    gains_K: 0 or more each (the report has 0, 1 and 2), in the order to be scored.

    >>> ndcg([0, 0, 1])
    0.5
    """
    discounts_K = _discounts(len(gains_K))
    best = sum(map(mul, sorted(gains_K, reverse=True), discounts_K))
    return sum(map(mul, gains_K, discounts_K)) / best if best else 0.0


def overlong_punishment(tokens: int, max_tokens: int, cache_tokens: int) -> float:
    """0 up to max_tokens - cache_tokens, then linear to -1 at max_tokens, and -1 beyond.

    >>> overlong_punishment(90, 100, 20)
    -0.5
    """
    over = tokens - (max_tokens - cache_tokens)
    if over <= 0:
        return 0.0
    return -over / cache_tokens if over < cache_tokens else -1.0


class JudgedCompletion(NamedTuple):
    """A completion beside its candidate list: all that a reward looks at.

    ranking: the distinct candidates named, in their order; empty where the completion cannot be read. valid: R_fmt, it
    names each candidate once and nothing else. copied: it gives the candidates back as they came. rank_before,
    rank_after: of the target, 1 the best; None where it is not among the candidates, or not in the ranking, which may
    fall short of valid. gains_K: in the order of a valid ranking, else empty. tokens: 0 where not known.
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
        """R_rank: 0 where the candidates lack the target, None where the completion does not tell its rank."""
        if not self.ranking:
            return None
        if self.rank_before is None:
            return 0.0
        if self.rank_after is None:
            return None
        return rank_promotion(self.rank_before, self.rank_after, len(self.answer.task.candidates))

    def auc(self) -> float | None:
        """AUC of a valid ranking."""
        return auc(self.gains_K) if self.valid else None

    def ndcg(self) -> float | None:
        """NDCG of a valid ranking."""
        return ndcg(self.gains_K) if self.valid else None

    def diagnostics(self) -> dict[str, float | None]:
        """What a trainer logs; None, never 0, where there is nothing to measure."""
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
    """Read a completion against its candidates.

    candidates: semantic IDs in the pre-ranker's order. target: what plain, paper and gated look for. gains: what auc
    and ndcg score, one per candidate; without them 1 for the target and 0 for all others. history: semantic IDs, which
    chain takes for shown. finish_reason: "length" for a truncated completion. Titles are not known here: an answer that
    names them is not valid. Raises InputError on a candidate given twice.
    """
    task = _task(tuple(candidates), tuple(history))
    parsed = parse_completion(text, task)
    answer = Answer(task, target or "", finish_reason, parsed)
    rank_before = _rank(candidates, target)
    if isinstance(parsed, ParseFailure):
        return JudgedCompletion(answer, (), False, False, rank_before, None, (), tokens)
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
    """What the parser and the rules read against; kept, since a group of completions shares it."""
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
    """What rewards have to be told.

    alpha: the weight of R_fmt, .2 in Diffusion-GR2. max_tokens: the trainer's limit, at which a completion counts as
    truncated. cache_tokens: how far before the limit `overlong` sets in, 4,096 before 20,480 in DAPO.
    """

    format_weight: float = 0.2
    max_tokens: int = 1024
    cache_tokens: int = 256

    def __post_init__(self) -> None:
        if self.format_weight < 0:
            raise InputError(f"format_weight is {self.format_weight}; it must be 0 or more")
        if not 0 <= self.cache_tokens <= self.max_tokens:
            raise InputError(f"cache_tokens is {self.cache_tokens}; it must be 0 to max_tokens, {self.max_tokens}")


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
    if judged.copied and auc(judged.gains_K) < 1:
        return settings.format_weight
    return earned + settings.format_weight


def _chain(judged: JudgedCompletion, _: RewardSettings) -> float:
    return sum(verdict.passed for verdict in judge(judged.answer, CHAIN)) / len(CHAIN)


def _overlong(judged: JudgedCompletion, settings: RewardSettings) -> float:
    return overlong_punishment(judged.tokens, settings.max_tokens, settings.cache_tokens)


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
    },
)


@dataclass(frozen=True)
class RewardFunction:
    """A reward in the form that TRL's GRPOTrainer calls, logged under its name.

    Columns beside the completions: candidates, a list of semantic IDs each; target, one each or None; and, if the data
    has them, gains and history as `judge_completion` takes them. completion_ids are TRL's own. Raises InputError on an
    unknown name.

    >>> RewardFunction("conditional")(["..."], ['{"recommendations": ["b", "a"]}'], candidates=[["a", "b"]],
    target=["b"]) [0.7]
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
        """One reward a completion; a completion is a text, or chat messages of which the last one counts."""
        reward = REWARDS.find(self.name)
        return [reward(judged, self.settings) for judged in self.judge(completions, **columns)]

    def judge(
        self,
        completions: Sequence[str | Sequence[Mapping[str, Any]]],
        *,
        candidates: Sequence[Sequence[str]],
        **columns: Any,
    ) -> list[JudgedCompletion]:
        """The records that the rewards are computed from, for a trainer that logs their diagnostics."""
        absent = [None] * len(completions)
        optional = (columns.get(name) or absent for name in ("target", "gains", "history", "completion_ids"))
        judged = []
        for completion, sids, target, gains, history, token_ids in zip(completions, candidates, *optional, strict=True):
            text = completion if isinstance(completion, str) else completion[-1].get("content") or ""
            tokens = len(token_ids or ())
            finish_reason = "length" if tokens >= self.settings.max_tokens else "stop"
            judged.append(
                judge_completion(
                    text, sids, target, gains=gains, history=history or (), finish_reason=finish_reason, tokens=tokens
                )
            )
        return judged
