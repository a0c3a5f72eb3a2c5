"""Evidence in levels from 0 to 11, which a prompt can show in one token each and a scorecard can give points for.

Many counts share a level, so that a student from scratch sees each level often enough to learn its meaning. Counts are
in steps of half a doubling. Scores are in thirds of a halving below the best of the list, so that the scale of the
pre-ranker does not matter. Popularity has no level, because item counts on 5-core data leak the held-out purchase
(decision 0006).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from prompts.tasks import RerankTask
from store.records import Evidence, Link, Similarity

LEVELS = 12
_HIGHEST = LEVELS - 1
_NO_LINK = Link("", 0, 0)


class EvidenceLevels(NamedTuple):
    """The levels of one candidate.

    score, last_weight: 0 is the best of the list, and 11 means none or far below. after_last, after_second_last, after:
    purchases after the newest item of the history, after the second newest, and after any. before_last, before:
    purchases before the newest item, and before any. shared_depth: length of the shared category path. shared_items,
    brand_items: items of the history under that path, and items of the candidate's brand.
    """

    score: int
    last_weight: int
    after_last: int
    after_second_last: int
    after: int
    before_last: int
    before: int
    shared_depth: int
    shared_items: int
    brand_items: int


def evidence_levels(task: RerankTask) -> list[EvidenceLevels]:
    """The levels of each candidate, in the task's order. Raises ValueError if a candidate has no evidence."""
    facts_K = [candidate.evidence for candidate in task.candidates if candidate.evidence is not None]
    if len(facts_K) < len(task.candidates):
        raise ValueError(f"only {len(facts_K)} of {len(task.candidates)} candidates have evidence; levels need all")
    best_score = max((facts.score for facts in facts_K), default=0.0)
    best_weight = max((facts.last_weight for facts in facts_K), default=0.0)
    # A short history is padded with an id that no item has.
    last, second_last = ([item.item_id for item in reversed(task.history[-2:])] + ["", ""])[:2]
    levels = []
    for facts in facts_K:
        links = {link.item_id: link for link in facts.links}
        after_last = links.get(last, _NO_LINK)
        levels.append(
            EvidenceLevels(
                score=_below(facts.score, best_score),
                last_weight=_below(facts.last_weight, best_weight),
                after_last=_count(after_last.after),
                after_second_last=_count(links.get(second_last, _NO_LINK).after),
                after=_count(sum(link.after for link in facts.links)),
                before_last=_count(after_last.before),
                before=_count(sum(link.before for link in facts.links)),
                shared_depth=min(_HIGHEST, len(facts.shared_category)),
                shared_items=min(_HIGHEST, facts.shared_category_items),
                brand_items=min(_HIGHEST, facts.same_brand_items),
            )
        )
    return levels


# The number of levels of scores and similarities in FineLevels.
FINE_LEVELS = 24


class FineLevels(NamedTuple):
    """The levels of one candidate, with its similarities; scores and similarities are finer, from 0 to 23.

    The first ten are as in EvidenceLevels, score and last_weight in sixths of a halving. text_last, text_mean,
    text_nearest: the angle to the newest item of the history, the one whose cosine is the mean, and that to the nearest
    item; 0 is the same and 23 a right angle or more. copurchase_*: the same of co-purchases. text_rank,
    copurchase_rank: how many candidates of the list are nearer to the newest item.
    """

    score: int
    last_weight: int
    after_last: int
    after_second_last: int
    after: int
    before_last: int
    before: int
    shared_depth: int
    shared_items: int
    brand_items: int
    text_last: int
    text_mean: int
    text_nearest: int
    copurchase_last: int
    copurchase_mean: int
    copurchase_nearest: int
    text_rank: int
    copurchase_rank: int


def fine_levels(task: RerankTask) -> list[FineLevels]:
    """The fine levels of each candidate, in the task's order. Raises ValueError if a candidate lacks evidence."""
    coarse_K = evidence_levels(task)
    facts_K: list[Evidence] = [candidate.evidence for candidate in task.candidates if candidate.evidence]
    texts = [facts.text for facts in facts_K if facts.text]
    copurchases = [facts.copurchase for facts in facts_K if facts.copurchase]
    if len(texts) < len(facts_K) or len(copurchases) < len(facts_K):
        raise ValueError("the candidates have no similarities; run `gr2 candidates` again to add them to their lists")
    best_score = max((facts.score for facts in facts_K), default=0.0)
    best_weight = max((facts.last_weight for facts in facts_K), default=0.0)
    return [
        FineLevels._make(
            (
                _below(facts.score, best_score, steps=6, highest=FINE_LEVELS - 1),
                _below(facts.last_weight, best_weight, steps=6, highest=FINE_LEVELS - 1),
                *coarse[2:],
                *(_angle(cosine) for similarity in (text, copurchase) for cosine in _cosines(similarity)),
                _rank(text.last, [other.last for other in texts]),
                _rank(copurchase.last, [other.last for other in copurchases]),
            )
        )
        for facts, coarse, text, copurchase in zip(facts_K, coarse_K, texts, copurchases, strict=True)
    ]


def _cosines(similarity: Similarity) -> tuple[float, float, float]:
    return similarity.last, similarity.mean, similarity.highest


def _angle(cosine: float) -> int:
    """Steps of a right angle. Cosines crowd near 1, and angles do not."""
    return min(FINE_LEVELS - 1, int(FINE_LEVELS * math.acos(max(-1.0, min(1.0, cosine))) / (math.pi / 2)))


def _rank(value: float, values: Sequence[float]) -> int:
    return min(_HIGHEST, sum(other > value for other in values))


def _below(value: float, best: float, steps: int = 3, highest: int = _HIGHEST) -> int:
    """Steps of a halving below the best. In thirds, a tenth of the best is level 9."""
    return min(highest, int(steps * (math.log2(best) - math.log2(value)))) if value > 0 else highest


def _count(count: int) -> int:
    """One level per half doubling: 0 for none, 1 for once, 3 for twice, 5 for four times."""
    return min(_HIGHEST, 1 + int(2 * math.log2(count))) if count > 0 else 0
