"""Residual quantization: turns vectors into codes, where each level quantizes the residual of the previous levels.

This module owns the interface of all methods, the nearest codes of a vector, and the method that needs no torch:
residual k-means with k-means++ initialization as in the GR2 paper, with balanced clusters as an option (LETTER, arXiv
2405.07314, constrains its k-means in the same way). It knows neither items nor texts. `unique_codes` adds the codes
that make IDs unique.

Axes: N items, D dimensions of a vector, d dimensions of a latent, F fitted levels, C codes of a level, P pairs.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning

from curate.sids.balance import assign_balanced
from curate.sids.settings import ResidualKMeansSettings
from store.progress import Counted

CHUNK = 16_384
BALANCED_ROUNDS = 8
CODEBOOKS_FILE = "quantizer.safetensors"

OnProgress = Callable[[str], None]


class FittedQuantizer(Protocol):
    """Maps vectors of D dimensions to latents of d dimensions and back. Codebooks are sets of latents.

    codebooks: one array (C_l, d) per fitted level. A level has fewer than C codes if it was fitted to fewer distinct
    vectors.
    """

    @property
    def codebooks(self) -> Sequence[NDArray[np.float32]]:
        """One array (C_l, d) per fitted level."""

    def encode(self, vectors_N_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the latents (N, d) of vectors."""

    def decode(self, latents_N_d: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors (N, D) that the latents stand for."""

    def save(self, folder: Path) -> None:
        """Write the files that `load` of the same method reads."""


class Fit(NamedTuple):
    """A fitted quantizer and the codes (N, F) of its training vectors."""

    quantizer: FittedQuantizer
    codes_N_F: NDArray[np.int64]


class Quantizer(Protocol):
    """Settings of a method that can be fitted: IDs of `levels` codes, of which the last `random_levels` are drawn."""

    method: ClassVar[str]

    @property
    def levels(self) -> int:
        """The number of codes per ID."""

    @property
    def codebook_size(self) -> int:
        """The number of codes per level."""

    @property
    def random_levels(self) -> int:
        """The number of last levels whose codes are not fitted, but drawn from the unused ones."""

    @property
    def seed(self) -> int:
        """The seed of all random choices."""

    def settings(self) -> dict[str, Any]:
        """Everything that determines the result of `fit`, in types that JSON can hold."""

    def fit(self, vectors_N_D: NDArray[np.float32], pairs_P_2: NDArray[np.int64], on_progress: OnProgress) -> Fit:
        """Fit codebooks to the vectors, of which there must be at least one. All must be finite.

        pairs_P_2: row numbers of items that users interacted with consecutively. A method may ignore them.
        on_progress: receives a line about each step.
        """


@dataclass(frozen=True, slots=True)
class ResidualKMeans(ResidualKMeansSettings):
    """k-means at each level, on the residuals of the level before."""

    method: ClassVar[str] = "rq-kmeans"

    def settings(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def fit(self, vectors_N_D: NDArray[np.float32], pairs_P_2: NDArray[np.int64], on_progress: OnProgress) -> Fit:  # noqa: ARG002
        """Fit codebooks in the space of the vectors themselves. The pairs are ignored."""
        residuals_N_D = vectors_N_D.astype(np.float32, copy=True)
        fitted = self.levels - self.random_levels
        codes_N_F = np.zeros((len(vectors_N_D), fitted), np.int64)
        codebooks = []
        cluster = _balanced_k_means if self.balanced else fit_k_means
        for level in range(fitted):
            codes_N_F[:, level], codebook_C_D = cluster(residuals_N_D, self.codebook_size, self.seed + level)
            # The next level quantizes the residual of this one.
            residuals_N_D -= codebook_C_D[codes_N_F[:, level]]
            codebooks.append(codebook_C_D)
            on_progress(Counted(f"level {level + 1} of {fitted}: {len(codebook_C_D)} codes", level + 1, fitted))
        return Fit(ResidualCodebooks(tuple(codebooks)), codes_N_F)


@dataclass(frozen=True, slots=True)
class ResidualCodebooks:
    """The result of residual k-means: codebooks in the space of the vectors, so latents are the vectors."""

    codebooks: tuple[NDArray[np.float32], ...]

    def encode(self, vectors_N_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors themselves."""
        return vectors_N_D

    def decode(self, latents_N_d: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the latents themselves."""
        return latents_N_d

    def save(self, folder: Path) -> None:
        """Write one safetensors file into the folder."""
        # safetensors writes raw memory and ignores strides.
        arrays = {f"codebook_{level}": np.ascontiguousarray(codes) for level, codes in enumerate(self.codebooks)}
        safetensors.numpy.save_file(arrays, folder / CODEBOOKS_FILE)

    @classmethod
    def load(cls, folder: Path) -> "ResidualCodebooks":
        """Read the codebooks that `save` wrote."""
        arrays = safetensors.numpy.load_file(folder / CODEBOOKS_FILE)
        return cls(tuple(arrays[f"codebook_{level}"] for level in range(len(arrays))))


def squared_distances(left_N_D: NDArray[np.float32], right_C_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the squared distances |left - right|^2, shape (N, C), never negative."""
    # |l|^2 + |r|^2 - 2 l r needs no array (N, C, D), but rounding can make it slightly negative.
    lengths_C = np.einsum("cd,cd->c", right_C_D, right_C_D)
    lengths_N = np.einsum("nd,nd->n", left_N_D, left_N_D)
    distances_N_C: NDArray[np.float32] = lengths_N[:, None] + lengths_C - 2 * (left_N_D @ right_C_D.T)
    return np.maximum(distances_N_C, 0, out=distances_N_C)


def nearest_codes(latents_N_d: NDArray[np.float32], codebooks: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
    """Return the code nearest to the residual at each level, shape (N, F). Ties go to the lower code."""
    codes_N_F = np.zeros((len(latents_N_d), len(codebooks)), np.int64)
    for start in range(0, len(latents_N_d), CHUNK):
        residual_B_d = latents_N_d[start : start + CHUNK].astype(np.float32, copy=True)
        for level, codebook_C_d in enumerate(codebooks):
            # The |r|^2 of a distance is left out, because it is the same for all codes of a row.
            scores_B_C = np.einsum("cd,cd->c", codebook_C_d, codebook_C_d) - 2 * (residual_B_d @ codebook_C_d.T)
            codes_B = scores_B_C.argmin(axis=1)
            codes_N_F[start : start + CHUNK, level] = codes_B
            residual_B_d -= codebook_C_d[codes_B]
    return codes_N_F


def sum_codes(codes_N_F: NDArray[np.int64], codebooks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the latents (N, d) that codes stand for. A code without a vector in its codebook adds nothing."""
    latents_N_d = np.zeros((len(codes_N_F), codebooks[0].shape[1]), np.float32)
    for level, codebook_C_d in enumerate(codebooks):
        known_N = codes_N_F[:, level] < len(codebook_C_d)
        latents_N_d[known_N] += codebook_C_d[codes_N_F[known_N, level]]
    return latents_N_d


def fit_k_means(
    vectors_N_D: NDArray[np.float32], codes: int, seed: int, *, rounds: int = 50
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Fit codes (N,) and a codebook by k-means++ and Lloyd, with at most as many clusters as distinct vectors.

    codes: the maximum number of clusters. rounds: the maximum number of iterations.
    """
    clusters = min(codes, _different(vectors_N_D, codes))
    with warnings.catch_warnings():
        # scikit-learn warns if vectors that differ only by rounding form fewer clusters than requested. That is fine.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(clusters, init="k-means++", n_init=1, max_iter=rounds, random_state=seed).fit(vectors_N_D)
    return model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32)


def _balanced_k_means(
    vectors_N_D: NDArray[np.float32], codes: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Run k-means with at most ceil(N / clusters) vectors per cluster."""
    clusters = min(codes, _different(vectors_N_D, codes))
    codebook_C_D, _ = kmeans_plusplus(vectors_N_D, clusters, random_state=seed)
    capacity = -(-len(vectors_N_D) // clusters)
    codes_N = np.full(len(vectors_N_D), -1)
    for _ in range(BALANCED_ROUNDS):
        before_N = codes_N
        codes_N = assign_balanced(squared_distances(vectors_N_D, codebook_C_D), capacity)
        sums_C_D = np.zeros_like(codebook_C_D)
        np.add.at(sums_C_D, codes_N, vectors_N_D)
        counts_C = np.bincount(codes_N, minlength=clusters)
        # An empty cluster keeps its centre.
        codebook_C_D = np.where(counts_C[:, None], sums_C_D / np.maximum(counts_C, 1)[:, None], codebook_C_D)
        if (codes_N == before_N).all():
            break
    return codes_N, codebook_C_D.astype(np.float32)


def _different(vectors_N_D: NDArray[np.float32], enough: int) -> int:
    """Return the number of distinct vectors, or at least `enough`: counting ends if the first rows have that many."""
    first = len(np.unique(vectors_N_D[: 4 * enough], axis=0))
    return first if first >= enough else len(np.unique(vectors_N_D, axis=0))
