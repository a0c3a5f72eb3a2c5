import numpy as np
import polars as pl
import pytest

from curate.evaluation.ranker_comparison import Comparison

# Of four lists that hold their target; a fifth does not.
RANKS_B_R = np.array([[1, 2], [2, 1], [4, 1], [6, 6]])
NDCG_OF_RANK = {1: 1.0, 2: 1 / np.log2(3), 4: 1 / np.log2(5), 6: 0.0}
COMPARED = Comparison(("first", "second"), RANKS_B_R, misses=1, seed=0)
GAINS = [NDCG_OF_RANK[second] - NDCG_OF_RANK[first] for first, second in RANKS_B_R.tolist()]


def test_a_list_without_its_target_is_a_miss_end_to_end_and_no_list_of_what_is_conditional() -> None:
    metrics = {(ranker, metric.name): metric for ranker, metric in COMPARED.metrics()}
    assert metrics["second", "recall_at_1"].value == pytest.approx(2 / 5)
    assert metrics["second", "recall_at_1"].n == 5
    assert metrics["second", "conditional_recall_at_1"].value == pytest.approx(2 / 4)
    assert metrics["first", "conditional_recall_at_5"].value == pytest.approx(3 / 4)
    assert metrics["first", "conditional_mrr"].value == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 6) / 4)


def test_gains_are_over_the_first_ranker() -> None:
    gains = {ranker: metric for ranker, metric in COMPARED.metrics() if metric.name.endswith("_gain")}
    assert list(gains) == ["second"]
    assert gains["second"].name == "conditional_ndcg_at_5_gain"
    assert gains["second"].value == pytest.approx(np.mean(GAINS))
    assert gains["second"].n == 4


def test_a_difference_is_of_the_later_ranker_over_the_earlier() -> None:
    ((ranker, other, gain),) = COMPARED.differences()
    assert (ranker, other) == ("second", "first")
    assert gain.value == pytest.approx(np.mean(GAINS))
    assert gain.low <= gain.value <= gain.high


def test_a_slice_counts_the_lists_of_its_bucket_and_no_list_without_one() -> None:
    buckets = pl.DataFrame({"history": ["short", "short", "long", None]})
    firsts = {
        (ranker, slice_, bucket): (metric.value, metric.n)
        for ranker, slice_, bucket, metric in COMPARED.slices(buckets)
        if metric.name == "conditional_recall_at_1"
    }
    assert firsts == {
        ("first", "history", "short"): (0.5, 2),
        ("second", "history", "short"): (0.5, 2),
        ("first", "history", "long"): (0.0, 1),
        ("second", "history", "long"): (1.0, 1),
    }
