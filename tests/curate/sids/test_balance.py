import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from curate.sids.balance import assign_balanced


def test_a_hand_worked_case() -> None:
    # Both points like cluster 0; the one that loses less by going to cluster 1 goes.
    assert assign_balanced(np.array([[0.0, 1.0], [0.0, 5.0]]), 1).tolist() == [1, 0]


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 1000), st.integers(0, 2))
def test_no_cluster_overflows_and_the_cost_is_near_the_optimum(
    points: int, clusters: int, seed: int, slack: int
) -> None:
    capacity = -(-points // clusters) + slack
    costs = np.random.default_rng(seed).random((points, clusters))
    assigned = assign_balanced(costs, capacity, tolerance=0.01)
    assert np.bincount(assigned, minlength=clusters).max() <= capacity
    total = costs[np.arange(points), assigned].sum()
    rows, columns = linear_sum_assignment(np.repeat(costs, capacity, axis=1))
    assert total <= costs[rows, columns // capacity].sum() + 0.01 * points


def test_with_room_for_all_each_point_takes_its_cheapest() -> None:
    costs = np.random.default_rng(0).random((50, 5))
    assert (assign_balanced(costs, 50) == costs.argmin(axis=1)).all()


def test_identical_points_are_dealt_out() -> None:
    assert sorted(np.bincount(assign_balanced(np.zeros((10, 5)), 2)).tolist()) == [2] * 5


def test_too_many_points_are_an_error() -> None:
    with pytest.raises(ValueError, match="7 points do not fit into 3 clusters of 2"):
        assign_balanced(np.zeros((7, 3)), 2)
