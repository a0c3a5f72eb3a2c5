import math
from dataclasses import replace

import numpy as np
import pytest

from curate.traces.teachers.fitted.candidate_features import candidate_features, feature_names
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.records import Evidence, Link, Similarity


@pytest.fixture
def task() -> RerankTask:
    """Three candidates after a, b: the last has the most evidence."""
    near, far = Similarity(0.5, 0.25, 0.75), Similarity(0.1, 0.2, 0.75)
    return RerankTask(
        (ShownItem("a", "<a>"), ShownItem("b", "<b>")),
        (
            Candidate(ShownItem("c", "<c>"), Evidence(2.0, popularity=5, text=far, copurchase=near)),
            Candidate(
                ShownItem("d", "<d>"),
                Evidence(1.0, 0.5, (Link("a", 1, 2),), ("Shop",), 2, text=near, copurchase=far),
            ),
            Candidate(
                ShownItem("e", "<e>"),
                Evidence(2.0, 1.0, (Link("b", 3, 0), Link("a", 4, 1)), ("Shop", "Even"), 1, 1, 2, near, near),
            ),
        ),
    )


def test_hand_worked_features(task: RerankTask) -> None:
    first, second, third = (
        dict(zip(feature_names(), row, strict=True)) for row in candidate_features(task).astype(float).tolist()
    )
    assert first["log_score"] == pytest.approx(math.log(2))
    assert (first["last_weight"], first["after_last"], first["history_length"]) == (0, 0, 2)
    assert second["log_score_to_best"] == pytest.approx(-math.log(2))
    assert (second["last_weight"], second["last_weight_to_best"]) == (0.5, 0.5)
    assert (second["after_last"], second["after_second_last"], second["before_second_last"]) == (0, 1, 2)
    assert (third["position"], third["after_last"], third["after_second_last"]) == (2, 3, 4)
    assert (third["after_all"], third["before_all"], third["links"]) == (7, 1, 2)
    assert (third["after_third_last"], third["before_third_last"]) == (0, 0)
    assert (third["shared_category_depth"], third["shared_category_items"], third["same_brand_items"]) == (2, 1, 1)
    assert (second["text_last"], second["text_mean"], second["text_highest"]) == (0.5, 0.25, 0.75)
    assert second["copurchase_last"] == pytest.approx(0.1)


def test_ranks_count_the_better_candidates_of_the_list(task: RerankTask) -> None:
    features = candidate_features(task)
    ranks = {name: features[:, column].tolist() for column, name in enumerate(feature_names()) if "rank" in name}
    assert ranks["after_all_rank"] == [2, 1, 0]
    # Equal values share the best rank.
    assert ranks["text_last_rank"] == [2, 0, 0]
    assert ranks["copurchase_mean_rank"] == [0, 2, 0]
    assert ranks["text_highest_rank"] == [0, 0, 0]


def test_item_counts_are_left_out_unless_asked_for(task: RerankTask) -> None:
    assert "popularity" not in feature_names()
    with_popularity = candidate_features(task, popularity=True)
    assert with_popularity[:, -1].tolist() == [5, 0, 2]
    assert np.array_equal(with_popularity[:, :-1], candidate_features(task))
    assert len(feature_names(popularity=True)) == with_popularity.shape[1]


def test_without_evidence_counts_are_zero_and_similarities_are_unknown(task: RerankTask) -> None:
    bare = replace(task, history=(), candidates=tuple(replace(c, evidence=None) for c in task.candidates))
    unknown = {name for name, value in zip(feature_names(), candidate_features(bare)[1], strict=True) if value != value}
    assert unknown == {f"{kind}_{which}" for kind in ("text", "copurchase") for which in ("last", "mean", "highest")}
