from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from curate.evaluation.metrics import Bootstrap, mean_value, ndcg_at_k, recall_at_k, reciprocal_rank, score_ranks


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


@given(ranks=st.lists(st.integers(0, 10), min_size=1, max_size=50))
def test_a_ranker_gains_nothing_over_itself(ranks: list[int]) -> None:
    gain = Bootstrap(np.array([ranks, ranks]).T).ndcg_gain(1, 0, 5)
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


@given(ranks=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=1, max_size=50), order=st.randoms())
def test_a_gain_is_the_difference_of_two_scores_and_turns_its_sign_with_the_rankers(
    ranks: list[tuple[int, int]], order: Random
) -> None:
    lists = Bootstrap(np.array(ranks))
    gain, loss = lists.ndcg_gain(1, 0, 5), lists.ndcg_gain(0, 1, 5)
    scores = [{metric.name: metric.value for metric in lists.score(column, (5,))} for column in (0, 1)]
    assert gain.value == pytest.approx(scores[1]["ndcg_at_5"] - scores[0]["ndcg_at_5"])
    assert (loss.value, loss.low, loss.high) == pytest.approx((-gain.value, -gain.high, -gain.low))
    order.shuffle(ranks)
    assert Bootstrap(np.array(ranks)).ndcg_gain(1, 0, 5) == gain


@given(ranks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_lists_with_the_same_row_are_counted_together(ranks: list[tuple[int, int]]) -> None:
    rows, counts = np.unique(np.array(ranks), axis=0, return_counts=True)
    lists = Bootstrap(np.array(ranks))
    assert lists.rows_U_C.tolist() == rows.tolist()
    for row, count in zip(rows, counts, strict=True):
        share = lists.mean("share", (lists.rows_U_C == row).all(axis=1).astype(float))
        assert share.value == pytest.approx(count / len(ranks))


def test_a_resample_is_of_lists_one_by_one() -> None:
    # Two rankers that agree but for one list in four: drawn list by list, the paired gain has this standard error.
    ranks = np.array([[1, 1]] * 300 + [[0, 1]] * 100)
    plain = np.random.default_rng(1).integers(0, 400, (2_000, 400))
    gains = (ndcg_at_k(ranks[:, 1], 5) - ndcg_at_k(ranks[:, 0], 5))[plain].mean(axis=1)
    gain = Bootstrap(ranks).ndcg_gain(1, 0, 5)
    assert gain.value == 0.25
    assert (gain.low, gain.high) == pytest.approx(np.quantile(gains, (0.025, 0.975)), abs=0.005)


def test_the_interval_of_a_gain_covers_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    chances = np.array([[0.3, 0.2, 0.5], [0.4, 0.2, 0.4]])
    values = np.array([1.0, 1 / np.log2(3), 0.0])
    true_gain = chances[1] @ values - chances[0] @ values
    covered = 0
    for seed in range(200):
        # Both rankers are right on easy lists: one uniform number a list decides for both.
        luck = rng.random(400)[:, None]
        ranks = np.stack([np.array([1, 2, 0])[(luck > np.cumsum(row)[:2]).sum(axis=1)] for row in chances], axis=1)
        gain = Bootstrap(ranks, seed=seed).ndcg_gain(1, 0, 5)
        covered += gain.low <= true_gain <= gain.high
    assert 180 <= covered <= 198


def test_pairing_makes_the_interval_of_a_gain_narrower_than_those_of_the_scores() -> None:
    ranks = np.random.default_rng(0).integers(1, 11, 500)
    better = np.where(ranks > 1, ranks - 1, 1)
    lists = Bootstrap(np.stack([ranks, better], axis=1))
    gain, score = lists.ndcg_gain(1, 0, 5), lists.score(0, (5,))[-1]
    assert gain.high - gain.low < (score.high - score.low) / 2


def test_shares_have_intervals_too() -> None:
    share = mean_value("valid_share", np.array([True] * 3 + [False]))
    assert share.value == 0.75
    assert 0 <= share.low < 0.75 < share.high <= 1
