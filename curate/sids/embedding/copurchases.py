"""Vectors of co-purchases, which are joined to the vectors of the texts.

A text says what an item is, but not which items are bought with it. A next-item model over IDs needs both in the prefix
(docs/decisions/0007). The vectors are a truncated SVD of normalised co-purchase counts over training interactions. An
item without purchases gets the vector that a ridge regression predicts from its text, so new items have a place at
once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.linear_model import Ridge

COPURCHASES_FILE = "copurchases.safetensors"
DIMENSIONS = 64


@dataclass(frozen=True, slots=True)
class Copurchases:
    """Fitted co-purchase vectors.

    weight: length of the co-purchase part, beside a text part of length 1; 0 leaves it out. told_T_D: the ridge
    regression that predicts an item's co-purchase vector from its text vector.
    """

    weight: float
    told_T_D: NDArray[np.float32]

    @classmethod
    def fit(
        cls, texts_N_T: NDArray[np.float32], pairs_P_2: NDArray[np.int64], weight: float, *, seed: int
    ) -> tuple["Copurchases", NDArray[np.float32]]:
        """Fit the regression. Returns it with the joined vectors (N, T + D) of the items themselves.

        pairs_P_2: row numbers of items that somebody bought one after the other. Without pairs, with weight 0, or with
        fewer than 3 items, only the text is used.
        """
        if weight == 0 or len(pairs_P_2) == 0 or len(texts_N_T) < 3:
            nothing = cls(0.0, np.zeros((texts_N_T.shape[1], 0), np.float32))
            return nothing, nothing.join(texts_N_T)
        bought_N_D = copurchase_vectors(pairs_P_2, len(texts_N_T), seed=seed)
        known_N = bought_N_D.any(axis=1)
        ridge = Ridge(alpha=1.0, fit_intercept=False).fit(texts_N_T[known_N], bought_N_D[known_N])
        fitted = cls(weight, np.ascontiguousarray(ridge.coef_.T, np.float32))
        joined_N_X = fitted.join(texts_N_T)
        joined_N_X[known_N, texts_N_T.shape[1] :] = weight * bought_N_D[known_N]
        return fitted, joined_N_X

    def join(self, texts_N_T: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return joined vectors (N, T + D) of items of which only the text is known."""
        told_N_D = self.weight * _unit(texts_N_T @ self.told_T_D)
        return np.concatenate([texts_N_T, told_N_D], axis=1)

    def save(self, folder: Path) -> None:
        """Write one safetensors file into the folder."""
        arrays = {"told_T_D": self.told_T_D, "weight": np.array([self.weight], np.float32)}
        safetensors.numpy.save_file(arrays, folder / COPURCHASES_FILE)

    @classmethod
    def load(cls, folder: Path) -> "Copurchases":
        """Read the file that `save` wrote."""
        arrays = safetensors.numpy.load_file(folder / COPURCHASES_FILE)
        return cls(float(arrays["weight"][0]), arrays["told_T_D"])


def copurchase_vectors(
    pairs_P_2: NDArray[np.int64], items: int, *, seed: int, counts_P: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Return unit vectors (items, D) whose products follow how often two items were bought together.

    An item without purchases gets the zero vector. The counts C are normalised as C_ij / sqrt((1 + c_i) (1 + c_j)),
    where c_i is the sum of row i. An item that sells with everything says little, and a single pair does not make a
    rare item certain.

    counts_P: how often each pair was bought; None means once. Repeated pairs are added up.
    """
    both_ways = np.concatenate([pairs_P_2, pairs_P_2[:, ::-1]])
    times_P = np.ones(len(pairs_P_2), np.float32) if counts_P is None else counts_P.astype(np.float32)
    counts = sparse.csr_array((np.concatenate([times_P, times_P]), both_ways.T), shape=(items, items))
    damped_N = 1 / np.sqrt(1 + counts.sum(axis=1))
    normalised = sparse.diags_array(damped_N) @ counts @ sparse.diags_array(damped_N)
    width = min(DIMENSIONS, items - 1)
    reduced_N_D = TruncatedSVD(width, random_state=seed).fit_transform(normalised.tocsr())
    return _unit(reduced_N_D.astype(np.float32))


def _unit(vectors_N_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale the rows to length 1. Zero rows stay zero."""
    lengths_N = np.linalg.norm(vectors_N_D, axis=1, keepdims=True)
    units_N_D = np.zeros_like(vectors_N_D)
    np.divide(vectors_N_D, lengths_N, out=units_N_D, where=lengths_N > 1e-12)
    return units_N_D
