"""The similarity of each candidate and its history: cosines of item vectors.

There are two kinds of vectors. Text vectors describe an item. Co-purchase vectors describe the items that are bought
with it. They also relate items that were never bought together but with the same other items. Co-purchase vectors are
fitted to the interactions that count as evidence of a list, so they know no more than its other evidence (decision
0006).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.sids.embedding.copurchases import copurchase_vectors
from curate.sids.embedding.embedders import TfidfSvdEmbedder
from curate.sids.embedding.embeddings import embed_texts

# Cosines are kept to this many decimals, because the last bits of a product differ between machines.
DECIMALS = 4
SEED = 0
KINDS = ("text", "copurchase")


@dataclass(frozen=True, slots=True)
class ItemVectors:
    """Vectors (N, D) of the items of a catalogue, of length 1, or 0 for items of which nothing is known.

    They are in double precision. Otherwise the last decimal of a cosine would depend on which lists are in a batch.
    """

    text_N_D: NDArray[np.float64]
    copurchase_N_D: NDArray[np.float64]


def text_vectors(folder: Path, texts: Sequence[str], on_progress: Callable[[str], None]) -> NDArray[np.float64]:
    """Vectors (N, D) of item texts by TF-IDF and SVD, cached in `folder`. Raises the errors of `embed_texts`."""
    embedder = TfidfSvdEmbedder.fit(folder, texts, seed=SEED)
    return embed_texts(folder, embedder, texts, on_progress).astype(np.float64)


def fit_copurchases(pairs: pl.DataFrame, items: int) -> NDArray[np.float64]:
    """Vectors (items, D) of the company in which items are bought.

    pairs: left_item, right_item (numbers of items) and times, the number of co-purchases. The vectors are 0 if there
    are no pairs or fewer than three items.
    """
    if pairs.height == 0 or items < 3:
        return np.zeros((items, 1))
    numbers_P_2 = pairs.select("left_item", "right_item").to_numpy().astype(np.int64)
    vectors_N_D = copurchase_vectors(numbers_P_2, items, counts_P=pairs["times"].to_numpy(), seed=SEED)
    return vectors_N_D.astype(np.float64)


def measure_similarities(vectors: ItemVectors, histories: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """The cosines of each candidate with the items of its history: with the newest, their mean and their maximum.

    histories: list and items, newest first. candidates: list and items, ordered by rank. Both contain item numbers, and
    the same lists in the same order. Returns list, rank and two times three columns. A cosine with an item of which
    nothing is known is 0.
    """
    # _B: lists, _H: items of the history, _K: candidates.
    history_B_H, known_B_H = _padded(histories["items"])
    candidates_B_K, proposed_B_K = _padded(candidates["items"])
    length_B_1 = known_B_H.sum(axis=1, keepdims=True)
    columns: dict[str, NDArray[np.float64]] = {}
    for kind, vectors_N_D in zip(KINDS, (vectors.text_N_D, vectors.copurchase_N_D), strict=True):
        cosines_B_K_H = vectors_N_D[candidates_B_K] @ vectors_N_D[history_B_H].transpose(0, 2, 1)
        known_B_K_H = np.broadcast_to(known_B_H[:, None, :], cosines_B_K_H.shape)
        columns[f"{kind}_last"] = cosines_B_K_H[:, :, 0]
        columns[f"{kind}_mean"] = np.where(known_B_K_H, cosines_B_K_H, 0).sum(axis=2) / length_B_1
        columns[f"{kind}_max"] = np.where(known_B_K_H, cosines_B_K_H, -1).max(axis=2)
    lists_B, places_K = candidates["list"].to_numpy(), np.arange(1, candidates_B_K.shape[1] + 1, dtype=np.int32)
    return pl.DataFrame(
        {
            "list": np.repeat(lists_B, proposed_B_K.sum(axis=1)),
            "rank": np.broadcast_to(places_K, proposed_B_K.shape)[proposed_B_K],
            **{
                name: np.round(cosines_B_K[proposed_B_K], DECIMALS).astype(np.float32)
                for name, cosines_B_K in columns.items()
            },
        }
    )


def _padded(lists: pl.Series) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Lists of numbers as one array padded with 0, and a mask that is true where the array has a number of its list."""
    lengths_B = lists.list.len().to_numpy()
    is_theirs = np.arange(lengths_B.max(initial=1)) < lengths_B[:, None]
    padded = np.zeros(is_theirs.shape, np.int64)
    padded[is_theirs] = lists.explode().to_numpy()
    return padded, is_theirs
