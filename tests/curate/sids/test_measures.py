import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from curate.sids.measures import (
    measure_ids,
    neighbour_recall,
    perplexity,
    prefix_numbers,
    prefix_purity,
    reconstruction_error,
)
from curate.sids.quantizers import ResidualCodebooks
from store.records import Item


def test_perplexity_of_hand_worked_shares() -> None:
    assert perplexity(np.array([3, 3, 3]), 8) == pytest.approx(1.0)
    assert perplexity(np.arange(8), 8) == pytest.approx(8.0)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert perplexity(np.array([0, 0, 0, 1]), 8) == pytest.approx(math.exp(entropy))


@given(st.lists(st.integers(0, 15), min_size=1))
def test_perplexity_lies_between_one_and_the_codes_in_use(codes: list[int]) -> None:
    assert 1 - 1e-9 <= perplexity(np.array(codes), 16) <= len(set(codes)) + 1e-9


@given(st.lists(st.tuples(st.integers(0, 65_535), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_prefixes_have_one_number_each(codes: list[tuple[int, int, int]]) -> None:
    for level, numbers in enumerate(prefix_numbers(np.array(codes, np.uint16)), 1):
        names = {code: index for index, code in enumerate({code[:level] for code in codes})}
        assert adjusted_rand_score(numbers, [names[code[:level]] for code in codes]) == pytest.approx(1.0)


def test_purity_counts_items_that_share_a_prefix_alone() -> None:
    prefix, category = np.array([0, 0, 0, 1, 1, 2]), np.array([5, 5, 6, 6, 7, 8])
    assert prefix_purity(prefix, category) == pytest.approx(3 / 5)
    assert math.isnan(prefix_purity(np.arange(4), np.zeros(4, np.int64)))


def test_neighbour_recall_agrees_with_a_loop() -> None:
    random = np.random.default_rng(1)
    points = random.normal(size=(40, 3)).astype(np.float32)
    prefix = random.integers(0, 4, 40)
    kept = 0
    for row, point in enumerate(points):
        distances = ((points - point) ** 2).sum(axis=1)
        distances[row] = np.inf
        kept += int((prefix[np.argsort(distances)[:10]] == prefix[row]).sum())
    assert neighbour_recall([prefix], points) == [pytest.approx(kept / 400)]
    assert neighbour_recall([np.zeros(40, np.int64)], points) == [1.0]
    assert math.isnan(neighbour_recall([np.zeros(1, np.int64)], points[:1])[0])


def line(*places: float) -> NDArray[np.float32]:
    return np.array(places, np.float32)[:, None]


def test_hand_worked_variance() -> None:
    # Codes at 0 and 10, then -1 and 1; points 9 and 1 are met exactly, 10 and 0 miss by 1; variance around 5.
    quantizer = ResidualCodebooks((line(0, 10), line(-1, 1)))
    codes = np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    first, both = reconstruction_error(codes, line(9, 1, 10, 0), quantizer)
    variance = 16 + 16 + 25 + 25
    assert first == pytest.approx((1 + 1 + 0 + 0) / variance)
    assert both == pytest.approx((0 + 0 + 1 + 1) / variance)
    assert reconstruction_error(codes, line(2, 2, 2, 2), quantizer) == [0.0, 0.0]


def test_a_report_of_hand_worked_ids() -> None:
    quantizer = ResidualCodebooks((line(0, 10),))
    ids = np.array([[0, 1], [0, 2], [1, 0], [1, 0]], np.uint16)
    items = [Item("a", categories=("x",)), Item("b", categories=("x",)), Item("c", categories=("y",)), Item("d")]
    found = {(row.measure, row.level): row.value for row in measure_ids(ids, 4, line(0, 0, 10, 10), quantizer, items)}
    assert [found["distinct_prefixes", level] for level in (1, 2)] == [2, 3]
    assert [found["largest_prefix", level] for level in (1, 2)] == [2, 2]
    assert [found["shared", level] for level in (1, 2)] == [1.0, 0.5]
    assert [found["codes_used", level] for level in (1, 2)] == [2, 3]
    assert [found["category_purity", level] for level in (1, 2)] == [0.75, 0.5]
    assert found["reconstruction_error", 1] == 0.0
    assert ("reconstruction_error", 2) not in found
