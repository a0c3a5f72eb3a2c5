from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.sids.quantizers import (
    Fit,
    ResidualCodebooks,
    ResidualKMeans,
    nearest_codes,
    squared_distances,
    sum_codes,
)

NO_PAIRS = np.zeros((0, 2), np.int64)


def vectors(count: int, dimensions: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def fit(quantizer: ResidualKMeans, vectors_N_D: NDArray[np.float32]) -> Fit:
    return quantizer.fit(vectors_N_D, NO_PAIRS, lambda _: None)


def left_over(levels: int) -> float:
    points = vectors(300)
    fitted, codes = fit(ResidualKMeans(levels, 8, random_levels=0), points)
    return float(((points - sum_codes(codes, fitted.codebooks)) ** 2).sum())


def test_hand_worked_codes() -> None:
    codebooks = [np.array([[0.0], [10.0]], np.float32), np.array([[-1.0], [0.0], [1.0]], np.float32)]
    points = np.array([[9.2], [0.4], [11.0], [-3.0]], np.float32)
    codes = nearest_codes(points, codebooks)
    assert codes.tolist() == [[1, 0], [0, 1], [1, 2], [0, 0]]
    assert sum_codes(codes, codebooks).ravel().tolist() == [9.0, 0.0, 11.0, -1.0]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 100))
def test_nearest_codes_agree_with_a_loop(count: int, levels: int, seed: int) -> None:
    points = vectors(count, 3, seed)
    codebooks = [vectors(5, 3, seed + level + 1) for level in range(levels)]
    for point, codes in zip(points, nearest_codes(points, codebooks), strict=True):
        residual = point.astype(np.float64)
        for code, codebook in zip(codes, codebooks, strict=True):
            distances = [float(((residual - row) ** 2).sum()) for row in codebook]
            assert distances[code] == pytest.approx(min(distances), rel=1e-4, abs=1e-5)
            residual = residual - codebook[code]


def test_distances_agree_with_their_definition() -> None:
    left, right = vectors(7, 3, 1), vectors(4, 3, 2)
    wanted = ((left[:, None] - right) ** 2).sum(axis=2)
    assert squared_distances(left, right) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("balanced", [False, True])
def test_training_codes_are_those_of_the_codebooks(balanced: bool) -> None:
    points = vectors(500)
    fitted, codes = fit(ResidualKMeans(4, 16, balanced=balanced), points)
    assert codes.shape == (500, 3)
    assert [len(codebook) for codebook in fitted.codebooks] == [16] * 3
    if balanced:
        assert all(np.bincount(level, minlength=16).max() <= 32 for level in codes.T)
    else:
        assert (nearest_codes(points, fitted.codebooks) == codes).mean() > 0.97


def test_each_level_explains_more_of_the_vectors() -> None:
    assert left_over(1) > left_over(2) > left_over(3) > 0


def test_vectors_near_each_other_share_the_first_code() -> None:
    centres = np.repeat(np.eye(8, dtype=np.float32) * 10, 20, axis=0)
    codes = fit(ResidualKMeans(2, 8), centres + 0.01 * vectors(160)).codes_N_F
    assert all(len(set(codes[at : at + 20, 0])) == 1 for at in range(0, 160, 20))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_same_seed_gives_the_same_codes(balanced: bool) -> None:
    first, again, other = (
        fit(ResidualKMeans(3, 16, seed=seed, balanced=balanced), vectors(200)).codes_N_F for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_vectors_than_codes_get_a_code_each(count: int) -> None:
    fitted, codes = fit(ResidualKMeans(4, 256), vectors(count))
    assert len(np.unique(codes[:, 0])) == count
    assert len(fitted.codebooks[0]) == count


def test_equal_vectors_get_one_code() -> None:
    fitted, codes = fit(ResidualKMeans(3, 4), np.zeros((6, 5), np.float32))
    assert not codes.any()
    assert [len(codebook) for codebook in fitted.codebooks] == [1, 1]


def test_codebooks_come_back_as_they_were_saved(tmp_path: Path) -> None:
    fitted = fit(ResidualKMeans(3, 8), vectors(50)).quantizer
    fitted.save(tmp_path)
    for saved, loaded in zip(fitted.codebooks, ResidualCodebooks.load(tmp_path).codebooks, strict=True):
        assert (saved == loaded).all()
