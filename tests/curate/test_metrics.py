import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from curate.metrics import ndcg_at_k, recall_at_k, reciprocal_rank, score_ranks


def test_hand_worked_case() -> None:
    ranks = np.array([1, 2, 3, 6, 0])
    assert recall_at_k(ranks, 3).tolist() == [1, 1, 1, 0, 0]
    assert ndcg_at_k(ranks, 3).tolist() == pytest.approx([1, 1 / np.log2(3), 0.5, 0, 0])
    assert reciprocal_rank(ranks).tolist() == pytest.approx([1, 0.5, 1 / 3, 1 / 6, 0])


@given(rank=st.integers(1, 10), k=st.integers(1, 10))
def test_ndcg_agrees_with_scikit_learn(rank: int, k: int) -> None:
    relevance = np.zeros((1, 10))
    relevance[0, rank - 1] = 1
    expected = ndcg_score(relevance, np.arange(10, 0, -1.0)[None], k=k)
    assert ndcg_at_k(np.array([rank]), k)[0] == pytest.approx(expected)


@given(ranks=st.lists(st.integers(0, 10), min_size=1, max_size=50))
def test_metrics_stay_within_their_intervals_and_bounds(ranks: list[int]) -> None:
    for metric in score_ranks(np.array(ranks), (1, 5)):
        assert 0 <= metric.low <= metric.value + 1e-12
        assert metric.value - 1e-12 <= metric.high <= 1
        assert metric.n == len(ranks)


def test_the_interval_has_the_width_of_the_normal_approximation() -> None:
    ranks = np.array([1] * 300 + [0] * 700)
    metric = {metric.name: metric for metric in score_ranks(ranks, (1,))}["recall_at_1"]
    assert metric.value == 0.3
    assert metric.high - metric.low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 1000), rel=0.1)


def test_the_same_seed_gives_the_same_interval() -> None:
    ranks = np.arange(11)
    assert score_ranks(ranks, (5,), seed=1) == score_ranks(ranks, (5,), seed=1)
    assert score_ranks(ranks, (5,), seed=1) != score_ranks(ranks, (5,), seed=2)


def test_no_list_no_metric() -> None:
    assert score_ranks(np.array([], dtype=int), (5,)) == []
