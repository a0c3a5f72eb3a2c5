from pathlib import Path

import numpy as np
import pytest

from curate.sids.embedding.copurchases import Copurchases, copurchase_vectors

# Items 0 to 3 are bought among themselves, 4 to 7 likewise, 8 never.
PAIRS = np.array(
    [(left, right) for group in (0, 4) for left in range(group, group + 4) for right in range(group, left)]
)
TEXTS = np.repeat(np.eye(3, dtype=np.float32), [4, 4, 1], axis=0)


def test_items_bought_together_are_near_and_the_others_are_not() -> None:
    vectors = copurchase_vectors(PAIRS, 9, seed=0)
    assert vectors.shape == (9, 8)
    products = vectors @ vectors.T
    assert products[0, 1] > 0.5 > abs(products[0, 5]) + 0.4
    assert not vectors[8].any()
    assert np.linalg.norm(vectors[:8], axis=1) == pytest.approx(np.ones(8), abs=1e-5)


def test_the_order_within_a_pair_does_not_matter() -> None:
    forth, back = copurchase_vectors(PAIRS, 9, seed=0), copurchase_vectors(PAIRS[:, ::-1], 9, seed=0)
    assert forth @ forth.T == pytest.approx(back @ back.T, abs=1e-4)


def test_what_nobody_bought_is_told_from_its_text(tmp_path: Path) -> None:
    fitted, joined = Copurchases.fit(TEXTS, PAIRS, 0.5, seed=0)
    assert joined.shape == (9, 3 + 8)
    assert (joined[:, :3] == TEXTS).all()
    assert np.linalg.norm(joined[:8, 3:], axis=1) == pytest.approx(np.full(8, 0.5), abs=1e-5)
    told = fitted.join(TEXTS[:1])[0, 3:]
    assert told @ joined[0, 3:] > 0.1 > abs(told @ joined[5, 3:])
    fitted.save(tmp_path)
    assert (Copurchases.load(tmp_path).join(TEXTS) == fitted.join(TEXTS)).all()


@pytest.mark.parametrize(("pairs", "weight"), [(PAIRS, 0.0), (PAIRS[:0], 1.0)])
def test_without_weight_or_pairs_the_text_is_all(pairs: np.ndarray, weight: float, tmp_path: Path) -> None:
    fitted, joined = Copurchases.fit(TEXTS, pairs, weight, seed=0)
    assert (joined == TEXTS).all()
    fitted.save(tmp_path)
    assert (Copurchases.load(tmp_path).join(TEXTS) == TEXTS).all()
