import numpy as np
import pytest
from numpy.typing import NDArray

from curate.sids.quantizers import ResidualKMeans
from store import InputError


def vectors(count: int, dimensions: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def distinct(codes: NDArray[np.uint16]) -> int:
    return len(np.unique(codes, axis=0))


def test_codes_are_in_range_and_unique_while_there_is_room() -> None:
    codes = ResidualKMeans(4, 16).fit_assign(vectors(500)).codes_N_L
    assert codes.shape == (500, 4)
    assert codes.dtype == np.uint16
    assert codes.max() < 16
    assert distinct(codes) == 500


def test_identical_vectors_share_a_prefix_but_not_an_id() -> None:
    same = np.ones((16, 4), np.float32)
    codes = ResidualKMeans(3, 16).fit_assign(same).codes_N_L
    assert distinct(codes[:, :-1]) == 1
    assert distinct(codes) == 16
    crowded = ResidualKMeans(3, 16).fit_assign(np.ones((20, 4), np.float32)).codes_N_L
    assert distinct(crowded) == 16


def test_each_level_explains_more_of_the_vectors() -> None:
    residuals = [ResidualKMeans(levels, 8, random_last=False).fit_assign(vectors(300)).residual for levels in (1, 2, 3)]
    assert residuals[0] > residuals[1] > residuals[2] > 0


def test_vectors_near_each_other_share_the_first_code() -> None:
    centres = np.repeat(np.eye(8, dtype=np.float32) * 10, 20, axis=0)
    codes = ResidualKMeans(2, 8).fit_assign(centres + 0.01 * vectors(160)).codes_N_L
    assert all(len(set(codes[at : at + 20, 0])) == 1 for at in range(0, 160, 20))


def test_the_same_seed_gives_the_same_codes() -> None:
    first, again, other = (ResidualKMeans(3, 16, seed=seed).fit_assign(vectors(200)).codes_N_L for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_vectors_than_codes_are_fine(count: int) -> None:
    assert distinct(ResidualKMeans(4, 256).fit_assign(vectors(count)).codes_N_L) == count


def test_zero_vectors_are_fine() -> None:
    quantized = ResidualKMeans(2, 4).fit_assign(np.zeros((3, 5), np.float32))
    assert distinct(quantized.codes_N_L) == 3
    assert quantized.residual == 0.0


def test_no_vector_and_nan_are_clear_errors() -> None:
    with pytest.raises(InputError, match="nothing to quantize"):
        ResidualKMeans().fit_assign(np.zeros((0, 4), np.float32))
    broken = vectors(5)
    broken[3, 1] = np.nan
    with pytest.raises(InputError, match="vector 3 is not finite"):
        ResidualKMeans().fit_assign(broken)
