"""Evidence in levels from 0 to 11, which a prompt can show in one token each and a scorecard can give points for.

Many counts share a level, so that a student from scratch sees each level often enough to learn its meaning. Counts are
in steps of half a doubling. Scores are in thirds of a halving below the best of the list, so that the scale of the
pre-ranker does not matter. Popularity has no level, because item counts on 5-core data leak the held-out purchase
(decision 0006).
"""

import math
from typing import NamedTuple

from prompts.tasks import RerankTask
from store.records import Link

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


def _below(value: float, best: float) -> int:
    """Thirds of a halving below the best. A tenth of the best is level 9."""
    return min(_HIGHEST, int(3 * (math.log2(best) - math.log2(value)))) if value > 0 else _HIGHEST


def _count(count: int) -> int:
    """One level per half doubling: 0 for none, 1 for once, 3 for twice, 5 for four times."""
    return min(_HIGHEST, 1 + int(2 * math.log2(count))) if count > 0 else 0
