import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.sids.embedders import TfidfSvdEmbedder

TEXTS = [
    f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("soap", "brush", "towel", "lamp", "chair")
]


def test_texts_that_share_words_are_nearer() -> None:
    vectors = TfidfSvdEmbedder(dimensions=6).embed(TEXTS)
    near = vectors[TEXTS.index("red soap")] @ vectors[TEXTS.index("blue soap")]
    far = vectors[TEXTS.index("red soap")] @ vectors[TEXTS.index("blue lamp")]
    assert near > far


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=30))
def test_any_texts_give_finite_unit_or_zero_vectors(texts: list[str]) -> None:
    vectors = TfidfSvdEmbedder(dimensions=8).embed(texts)
    assert vectors.shape == (len(texts), 8)
    assert vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert all(length == pytest.approx(1, abs=1e-4) or length == 0 for length in lengths)


def test_texts_that_are_all_alike_get_one_vector() -> None:
    vectors = TfidfSvdEmbedder(dimensions=4).embed(["00:01"] * 20)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(5), axis=0)) == 1


def test_identical_texts_get_identical_vectors_and_empty_ones_zero() -> None:
    vectors = TfidfSvdEmbedder(dimensions=4).embed(["same words", "same words", "", "other words here"])
    assert vectors[0] == pytest.approx(vectors[1])
    assert not vectors[2].any()


def test_the_same_seed_gives_the_same_vectors() -> None:
    assert (TfidfSvdEmbedder(6, seed=1).embed(TEXTS) == TfidfSvdEmbedder(6, seed=1).embed(TEXTS)).all()
