from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from curate.sids.embedding import embeddings
from curate.sids.embedding.embeddings import PROBE, embed_texts
from store import InputError, StoreError


class Letters:
    """Counts a, b and c, and remembers what it was asked."""

    name = "letters"

    def __init__(self, scale: float = 1.0) -> None:
        self.asked: list[str] = []
        self.scale = scale

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.asked += texts
        return self.scale * np.array([[text.count(letter) for letter in "abc"] for text in texts], np.float32)


def embed(folder: Path, embedder: Letters, texts: Sequence[str]) -> NDArray[np.float32]:
    return embed_texts(folder, embedder, texts, lambda _: None)


def test_each_text_is_embedded_once_and_only_new_ones_later(tmp_path: Path) -> None:
    first, later = Letters(), Letters()
    assert embed(tmp_path, first, ["ab", "ccc", "ab"]).tolist() == [[1, 1, 0], [0, 0, 3], [1, 1, 0]]
    assert first.asked == [PROBE, "ab", "ccc"]
    assert embed(tmp_path, later, ["ccc", "b", "ab"]).tolist() == [[0, 0, 3], [0, 1, 0], [1, 1, 0]]
    assert later.asked == [PROBE, "b"]


def test_empty_texts_are_zero_and_never_asked_for(tmp_path: Path) -> None:
    embedder = Letters()
    assert embed(tmp_path, embedder, ["", "  ", "a"]).tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert embedder.asked == [PROBE, "a"]
    assert embed(tmp_path, embedder, [""]).tolist() == [[0, 0, 0]]


def test_what_was_embedded_before_a_failure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "BATCH_TEXTS", 2)

    class Dies(Letters):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            if "cc" in texts:
                raise KeyboardInterrupt
            return super().embed(texts)

    with pytest.raises(KeyboardInterrupt):
        embed(tmp_path, Dies(), ["a", "b", "c", "cc"])
    rest = Letters()
    assert embed(tmp_path, rest, ["a", "b", "c", "cc"]).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 2]]
    assert rest.asked == [PROBE, "cc"]


def test_a_model_that_changed_under_its_name_is_found_out(tmp_path: Path) -> None:
    embed(tmp_path, Letters(), ["a"])
    embed(tmp_path, Letters(1.001), ["a"])  # another machine, half precision
    with pytest.raises(InputError, match=r"letters no longer gives the vectors.*remove .*letters to embed"):
        embed(tmp_path, Letters(1.2), ["a"])


def test_vectors_that_are_none_are_errors_and_nothing_of_them_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="letters gave a vector that is not finite for the text 'shampoo"):
        embed(tmp_path, Letters(np.nan), ["a"])

    class Short(Letters):
        def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
            return super().embed(texts)[1:]

    with pytest.raises(InputError, match=r"shape \(1, 3\) for 2 texts"):
        embed(tmp_path, Short(), ["a"])
    assert embed(tmp_path, Letters(), ["a"]).tolist() == [[1, 0, 0]]


def test_a_damaged_file_is_a_clear_error(tmp_path: Path) -> None:
    embed(tmp_path, Letters(), ["a"])
    next((tmp_path / "letters").glob("part-*")).write_bytes(b"no parquet")
    with pytest.raises(StoreError, match="cannot be read"):
        embed(tmp_path, Letters(), ["a"])
