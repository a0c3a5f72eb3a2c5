import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.sids.quantizers import nearest_codes
from curate.sids.unique_codes import Placement, complete_codes, draw_last_codes
from store import InputError

LINE = [np.arange(4, dtype=np.float32)[:, None] * 10]  # one fitted level whose codes stand at 0, 10, 20, 30


def on_line(*places: float) -> NDArray[np.float32]:
    return np.array(places, np.float32)[:, None]


@given(
    st.integers(2, 12), st.integers(1, 2), st.integers(0, 2**32), st.lists(st.integers(0, 5), min_size=1, max_size=3)
)
def test_the_places_of_a_prefix_are_a_permutation_of_all_combinations(
    codebook_size: int, levels: int, seed: int, prefix: list[int]
) -> None:
    size = codebook_size**levels
    drawn = draw_last_codes(np.tile(prefix, (size, 1)), np.arange(size), codebook_size, levels, seed)
    assert drawn.shape == (size, levels)
    assert drawn.min() == 0
    assert drawn.max() == codebook_size - 1
    assert len(np.unique(drawn, axis=0)) == size


def test_prefixes_and_seeds_draw_differently() -> None:
    prefixes = np.arange(1000)[:, None]
    first = draw_last_codes(prefixes, np.zeros(1000, np.int64), 256, 1, seed=0)[:, 0]
    other = draw_last_codes(prefixes, np.zeros(1000, np.int64), 256, 1, seed=1)[:, 0]
    assert len(np.unique(first)) > 230  # 251 of 256 are expected of a thousand uniform draws
    assert (first == other).mean() < 0.05


def test_items_of_one_prefix_get_ids_of_their_own_up_to_its_room() -> None:
    codes = np.array([[0], [0], [1], [0]])
    ids, moved = complete_codes(codes, on_line(0, 0, 10, 1), LINE, codebook_size=4, random_levels=1, seed=0)
    assert moved == 0
    assert ids[:, 0].tolist() == [0, 0, 1, 0]
    assert len(np.unique(ids, axis=0)) == 4


def test_a_full_prefix_sends_the_last_comers_to_the_nearest_with_room() -> None:
    latents = on_line(0, 0, 0, 0, 1, 9, 10)
    ids, moved = complete_codes(nearest_codes(latents, LINE), latents, LINE, codebook_size=4, random_levels=1, seed=0)
    assert moved == 1
    assert ids[:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert len(np.unique(ids, axis=0)) == 7


def test_every_id_can_be_taken_and_one_more_is_a_clear_error() -> None:
    same = np.zeros((16, 1), np.float32)
    ids, moved = complete_codes(np.zeros((16, 1), np.int64), same, LINE, codebook_size=4, random_levels=1, seed=0)
    assert len(np.unique(ids, axis=0)) == 16
    assert moved == 12
    with pytest.raises(InputError, match="all 16 semantic IDs are taken"):
        complete_codes(
            np.zeros((17, 1), np.int64), np.zeros((17, 1), np.float32), LINE, codebook_size=4, random_levels=1, seed=0
        )


def test_codes_without_a_vector_serve_when_the_others_are_full() -> None:
    only = [np.zeros((1, 1), np.float32)]
    ids, _ = complete_codes(
        np.zeros((10, 1), np.int64), np.zeros((10, 1), np.float32), only, codebook_size=4, random_levels=1, seed=0
    )
    assert sorted(ids[:, 0].tolist()) == [0] * 4 + [1] * 4 + [2] * 2


def test_without_random_levels_ids_may_be_shared_but_newcomers_share_none() -> None:
    ids, moved = complete_codes(np.array([[1], [1]]), on_line(10, 10), LINE, codebook_size=4, random_levels=0, seed=0)
    assert (ids.tolist(), moved) == ([[1], [1]], 0)
    book = Placement(ids, LINE, codebook_size=4, random_levels=0, seed=0)
    assert [book.place(np.array([11], np.float32)) for _ in range(3)] == [(2,), (0,), (3,)]


def test_newcomers_continue_where_the_last_one_stopped_and_skip_what_is_taken() -> None:
    ids, _ = complete_codes(
        np.zeros((3, 1), np.int64), on_line(0, 0, 0), LINE, codebook_size=4, random_levels=1, seed=5
    )
    fourth, _ = complete_codes(
        np.zeros((4, 1), np.int64), on_line(0, 0, 0, 0), LINE, codebook_size=4, random_levels=1, seed=5
    )
    assert Placement(ids, LINE, codebook_size=4, random_levels=1, seed=5).place(np.zeros(1, np.float32)) == tuple(
        fourth[3]
    )
    holes = Placement(ids[[0, 2]], LINE, codebook_size=4, random_levels=1, seed=5)
    assert holes.place(np.zeros(1, np.float32)) not in {tuple(ids[0]), tuple(ids[2])}


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=60), st.integers(0, 100))
def test_ids_are_unique_whatever_the_latents(latents: list[float], seed: int) -> None:
    points = np.array(latents, np.float32)[:, None]
    codebooks = [LINE[0], LINE[0] / 10]
    ids, _ = complete_codes(
        nearest_codes(points, codebooks), points, codebooks, codebook_size=4, random_levels=1, seed=seed
    )
    assert len(np.unique(ids, axis=0)) == len(points)
