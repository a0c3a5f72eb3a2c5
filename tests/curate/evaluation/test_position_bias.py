from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from curate.evaluation.position_bias import mean_kendall_tau, measure_position_bias, shuffle_candidates
from curate.evaluation.rankers.protocol import given_order
from prompts.tasks import Candidate, RerankTask, ShownItem


def task_of(*item_ids: str) -> RerankTask:
    return RerankTask((), tuple(Candidate(ShownItem(item_id, item_id)) for item_id in item_ids))


TASKS = [task_of(*"abcdefghij"), task_of(*"klmnopqrst")] * 50


def test_hand_worked_tau() -> None:
    # Of three pairs of items, the second ranking turns one round: (2 - 1) / 3.
    assert mean_kendall_tau(np.array([[0, 1, 2], [1, 0, 2]])) == pytest.approx(1 / 3)
    assert mean_kendall_tau(np.array([[0], [0]])) == 1


@given(st.lists(st.permutations(range(6)), min_size=2, max_size=5))
def test_tau_agrees_with_scipy(rankings: list[list[int]]) -> None:
    expected = np.mean([kendalltau(left, right).statistic for left, right in combinations(rankings, 2)])
    assert mean_kendall_tau(np.array(rankings)) == pytest.approx(expected)


def test_shuffles_keep_the_candidates_and_go_by_the_seed() -> None:
    shuffled = shuffle_candidates(TASKS, 3, seed=0)
    assert len(shuffled) == 3 * len(TASKS)
    assert [sorted(given_order(task)) for task in shuffled[::3]] == [given_order(task) for task in TASKS]
    assert shuffled == shuffle_candidates(TASKS, 3, seed=0)
    assert shuffled != shuffle_candidates(TASKS, 3, seed=1)


def test_a_ranker_that_ignores_positions_does_not_move() -> None:
    shuffled = shuffle_candidates(TASKS, 5, seed=0)
    bias = measure_position_bias(shuffled, [sorted(given_order(task)) for task in shuffled], 5)
    assert (bias.tau_B == 1).all()
    assert bias.top1_consistent_B.all()
    assert bias.first_picks_B_P.mean(axis=0) == pytest.approx([0.1] * 10, abs=0.05)


def test_a_ranker_that_copies_moves_with_the_shuffle() -> None:
    shuffled = shuffle_candidates(TASKS, 5, seed=0)
    bias = measure_position_bias(shuffled, [given_order(task) for task in shuffled], 5)
    assert abs(bias.tau_B.mean()) < 0.05
    assert bias.top1_consistent_B.mean() < 0.05
    assert bias.first_picks_B_P.mean(axis=0) == pytest.approx([1] + [0] * 9)
