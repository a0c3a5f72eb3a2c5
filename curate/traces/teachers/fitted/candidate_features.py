"""The evidence of candidates as numeric features, from which LambdaMART learns.

A prompt can show all of this evidence. Features "to_best" and "rank" compare a candidate with the others of its list,
which a tree cannot do by itself.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from curate.traces.teachers.evidence import LEAST_SCORE
from prompts.tasks import RerankTask
from store.records import Evidence, Link, Similarity

RECENT = ("last", "second_last", "third_last")
SIMILARITIES = tuple(f"{kind}_{which}" for kind in ("text", "copurchase") for which in ("last", "mean", "highest"))
# The candidates of a list are ranked by these features. The position is already the rank by score.
RANKED = ("last_weight", "after_last", "after_all", *SIMILARITIES)
NO_LINK = Link("", 0, 0)
# The trees treat NaN as a missing value.
UNKNOWN = Similarity(math.nan, math.nan, math.nan)


def feature_names(*, popularity: bool = False) -> list[str]:
    """The names of the columns of `candidate_features`. Each of the RECENT items has two columns."""
    return [
        "position",
        "log_score",
        "log_score_to_best",
        "last_weight",
        "last_weight_to_best",
        *(f"{way}_{item}" for item in RECENT for way in ("after", "before")),
        "after_all",
        "before_all",
        "links",
        "shared_category_depth",
        "shared_category_items",
        "same_brand_items",
        "history_length",
        *SIMILARITIES,
        *(f"{name}_rank" for name in RANKED),
        *(["popularity"] if popularity else []),
    ]


def candidate_features(task: RerankTask, *, popularity: bool = False) -> NDArray[np.float32]:
    """Return one row of features per candidate, in the task's order and in the columns of `feature_names`.

    position: 0 is the first candidate of the input. log_score_to_best: the difference to the best of the list.
    last_weight_to_best: the ratio to the best of the list. Counts are those of Evidence; a candidate without evidence
    has counts of 0. Similarities that were not computed are NaN. rank: the number of candidates with a higher value.
    """
    facts_K = [candidate.evidence or Evidence(0.0) for candidate in task.candidates]
    log_scores_K = [math.log(max(facts.score, 0.0) + LEAST_SCORE) for facts in facts_K]
    best_score = max(log_scores_K, default=0.0)
    best_weight = max((facts.last_weight for facts in facts_K), default=0.0) or 1.0
    # Newest first, padded with an id that no item has, so that every task has the same columns.
    newest = [item.item_id for item in task.history[: -len(RECENT) - 1 : -1]]
    newest += [""] * (len(RECENT) - len(newest))
    rows = []
    for position, (facts, log_score) in enumerate(zip(facts_K, log_scores_K, strict=True)):
        by_item = {link.item_id: link for link in facts.links}
        recent = [by_item.get(item_id, NO_LINK) for item_id in newest]
        text, copurchase = facts.text or UNKNOWN, facts.copurchase or UNKNOWN
        rows.append(
            [
                position,
                log_score,
                log_score - best_score,
                facts.last_weight,
                facts.last_weight / best_weight,
                *(count for link in recent for count in (link.after, link.before)),
                sum(link.after for link in facts.links),
                sum(link.before for link in facts.links),
                len(facts.links),
                len(facts.shared_category),
                facts.shared_category_items,
                facts.same_brand_items,
                len(task.history),
                *(text.last, text.mean, text.highest),
                *(copurchase.last, copurchase.mean, copurchase.highest),
            ]
        )
    features_K_F = np.array(rows, np.float32)
    ranked_K_R = features_K_F[:, [feature_names().index(name) for name in RANKED]]
    ranks_K_R = (ranked_K_R[None, :, :] > ranked_K_R[:, None, :]).sum(axis=1)
    columns = [features_K_F, ranks_K_R]
    if popularity:
        columns.append(np.array([[facts.popularity] for facts in facts_K]))
    return np.concatenate(columns, axis=1, dtype=np.float32)


def features_of(tasks: Sequence[RerankTask], *, popularity: bool = False) -> NDArray[np.float32]:
    """Return the feature rows of all tasks, one task below the other."""
    return np.concatenate([candidate_features(task, popularity=popularity) for task in tasks])
