from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curate.sids.embedding.embedders import TfidfSvdEmbedder

TEXTS = [
    f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in ("soap", "brush", "towel", "lamp", "chair")
]


def embed(texts: list[str], dimensions: int = 8, seed: int = 0) -> NDArray[np.float32]:
    with TemporaryDirectory() as folder:
        return TfidfSvdEmbedder.fit(Path(folder), texts, dimensions=dimensions, seed=seed).embed(texts)


def test_texts_that_share_words_are_nearer() -> None:
    vectors = embed(TEXTS, dimensions=6)
    near = vectors[TEXTS.index("red soap")] @ vectors[TEXTS.index("blue soap")]
    far = vectors[TEXTS.index("red soap")] @ vectors[TEXTS.index("blue lamp")]
    assert near > far


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=30))
def test_any_texts_give_finite_unit_or_zero_vectors(texts: list[str]) -> None:
    vectors = embed(texts)
    assert vectors.shape == (len(texts), 8)
    assert vectors.dtype == np.float32
    lengths = np.linalg.norm(vectors, axis=1)
    assert all(length == pytest.approx(1, abs=1e-4) or length == 0 for length in lengths)


def test_texts_that_are_all_alike_get_one_vector() -> None:
    vectors = embed(["00:01"] * 20, dimensions=4)
    assert np.isfinite(vectors).all()
    assert len(np.unique(vectors.round(5), axis=0)) == 1


def test_identical_texts_get_identical_vectors_and_empty_ones_zero() -> None:
    vectors = embed(["same words", "same words", "", "other words here"], dimensions=4)
    assert (vectors[0] == vectors[1]).all()
    assert not vectors[2].any()


def test_an_embedder_is_fitted_once_and_loads_as_it_was(tmp_path: Path) -> None:
    fitted = TfidfSvdEmbedder.fit(tmp_path, TEXTS, dimensions=6)
    kept = next((tmp_path / fitted.name).iterdir()).stat().st_mtime_ns
    again = TfidfSvdEmbedder.fit(tmp_path, TEXTS[::-1], dimensions=6)
    assert again.name == fitted.name
    assert next((tmp_path / fitted.name).iterdir()).stat().st_mtime_ns == kept
    assert (again.embed(TEXTS) == fitted.embed(TEXTS)).all()
    assert (again.embed(TEXTS[3:4]) == fitted.embed(TEXTS)[3]).all()
    assert not again.embed(["never heard"]).any()


def test_corpus_size_and_seed_are_in_the_name(tmp_path: Path) -> None:
    names = {
        TfidfSvdEmbedder.fit(tmp_path, texts, dimensions=dimensions, seed=seed).name
        for texts, dimensions, seed in ((TEXTS, 6, 0), (TEXTS[1:], 6, 0), (TEXTS, 5, 0), (TEXTS, 6, 1))
    }
    assert len(names) == 4
