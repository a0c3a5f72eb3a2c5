"""Vectors as codes, level by level on what the levels before left over (residual quantization).

Owns what every method shares, the nearest codes of a vector, and the method that needs no torch: residual k-means, with
k-means++ as the GR2 paper's first means, and balanced clusters as a switch (LETTER, arXiv 2405.07314, constrains its
k-means in the same way). It knows neither items nor texts; codes that make an ID unique are `unique_codes`' affair.
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

CHUNK = 16_384
BALANCED_ROUNDS = 8
CODEBOOKS_FILE = "quantizer.safetensors"

OnProgress = Callable[[str], None]


class FittedQuantizer(Protocol):
    """Maps vectors of D dimensions to latents of d, in which codebooks stand, and back.

    codebooks: one array (C_l, d) for each fitted level; a level has fewer than C codes where there was less to tell
    apart.
    """

    @property
    def codebooks(self) -> Sequence[NDArray[np.float32]]:
        """See above."""

    def encode(self, vectors_N_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Latents (N, d)."""

    def decode(self, latents_N_d: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors (N, D) as the latents tell them."""

    def save(self, folder: Path) -> None:
        """Write what `load` of the same method reads."""


class Fit(NamedTuple):
    """A fitted quantizer, and the codes (N, F) that its training vectors got."""

    quantizer: FittedQuantizer
    codes_N_F: NDArray[np.int64]


class Quantizer(Protocol):
    """Settings that can be fitted: `levels` codes of `codebook_size`, the last `random_levels` of them drawn."""

    method: ClassVar[str]

    @property
    def levels(self) -> int:
        """Codes of an ID."""

    @property
    def codebook_size(self) -> int:
        """Codes of a level."""

    @property
    def random_levels(self) -> int:
        """Last levels that are drawn from unused codes."""

    @property
    def seed(self) -> int:
        """Of every random choice."""

    def settings(self) -> dict[str, Any]:
        """Everything that decides what `fit` gives, as JSON can hold it."""

    def fit(self, vectors_N_D: NDArray[np.float32], pairs_P_2: NDArray[np.int64], on_progress: OnProgress) -> Fit:
        """Codebooks for the vectors, which are finite and at least one.

        pairs_P_2: rows of vectors whose items were taken one after the other; a method may do without them.
        """


@dataclass(frozen=True, slots=True)
class ResidualKMeans(ResidualKMeansSettings):
    """k-means at each level, on the residuals of the level before."""

    method: ClassVar[str] = "rq-kmeans"

    def settings(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def fit(self, vectors_N_D: NDArray[np.float32], pairs_P_2: NDArray[np.int64], on_progress: OnProgress) -> Fit:  # noqa: ARG002
        """Codebooks in the space of the vectors themselves; the pairs are not looked at."""
        residuals_N_D = vectors_N_D.astype(np.float32, copy=True)
        fitted = self.levels - self.random_levels
        codes_N_F = np.zeros((len(vectors_N_D), fitted), np.int64)
        codebooks = []
        cluster = _balanced_k_means if self.balanced else fit_k_means
        for level in range(fitted):
            codes_N_F[:, level], codebook_C_D = cluster(residuals_N_D, self.codebook_size, self.seed + level)
            residuals_N_D -= codebook_C_D[codes_N_F[:, level]]
            codebooks.append(codebook_C_D)
            on_progress(f"level {level + 1} of {fitted}: {len(codebook_C_D)} codes")
        return Fit(ResidualCodebooks(tuple(codebooks)), codes_N_F)


@dataclass(frozen=True, slots=True)
class ResidualCodebooks:
    """What residual k-means leaves: codebooks in the space of the vectors."""

    codebooks: tuple[NDArray[np.float32], ...]

    def encode(self, vectors_N_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vectors."""
        return vectors_N_D

    def decode(self, latents_N_d: NDArray[np.float32]) -> NDArray[np.float32]:
        """The latents."""
        return latents_N_d

    def save(self, folder: Path) -> None:
        """One safetensors file."""
        # safetensors writes memory as it lies, whatever its strides say.
        arrays = {f"codebook_{level}": np.ascontiguousarray(codes) for level, codes in enumerate(self.codebooks)}
        safetensors.numpy.save_file(arrays, folder / CODEBOOKS_FILE)

    @classmethod
    def load(cls, folder: Path) -> "ResidualCodebooks":
        """What `save` wrote."""
        arrays = safetensors.numpy.load_file(folder / CODEBOOKS_FILE)
        return cls(tuple(arrays[f"codebook_{level}"] for level in range(len(arrays))))


def squared_distances(left_N_D: NDArray[np.float32], right_C_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, C) of |left - right|^2, not below zero."""
    lengths_C = np.einsum("cd,cd->c", right_C_D, right_C_D)
    lengths_N = np.einsum("nd,nd->n", left_N_D, left_N_D)
    distances_N_C: NDArray[np.float32] = lengths_N[:, None] + lengths_C - 2 * (left_N_D @ right_C_D.T)
    return np.maximum(distances_N_C, 0, out=distances_N_C)


def nearest_codes(latents_N_d: NDArray[np.float32], codebooks: Sequence[NDArray[np.float32]]) -> NDArray[np.int64]:
    """At each level the code nearest to the residual: (N, F); the first of several that are equally near."""
    codes_N_F = np.zeros((len(latents_N_d), len(codebooks)), np.int64)
    for start in range(0, len(latents_N_d), CHUNK):
        residual_B_d = latents_N_d[start : start + CHUNK].astype(np.float32, copy=True)
        for level, codebook_C_d in enumerate(codebooks):
            # |r|^2 is the same for every code of a row.
            scores_B_C = np.einsum("cd,cd->c", codebook_C_d, codebook_C_d) - 2 * (residual_B_d @ codebook_C_d.T)
            codes_B = scores_B_C.argmin(axis=1)
            codes_N_F[start : start + CHUNK, level] = codes_B
            residual_B_d -= codebook_C_d[codes_B]
    return codes_N_F


def sum_codes(codes_N_F: NDArray[np.int64], codebooks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The latents (N, d) that codes stand for; a code that its codebook has no vector for adds nothing."""
    latents_N_d = np.zeros((len(codes_N_F), codebooks[0].shape[1]), np.float32)
    for level, codebook_C_d in enumerate(codebooks):
        known_N = codes_N_F[:, level] < len(codebook_C_d)
        latents_N_d[known_N] += codebook_C_d[codes_N_F[known_N, level]]
    return latents_N_d


def fit_k_means(
    vectors_N_D: NDArray[np.float32], codes: int, seed: int, *, rounds: int = 50
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes (N,) and codebook by k-means++ and Lloyd; no more clusters than there are different vectors."""
    clusters = min(codes, _different(vectors_N_D, codes))
    with warnings.catch_warnings():
        # Vectors that differ by rounding alone give fewer clusters than were asked for, which is right.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(clusters, init="k-means++", n_init=1, max_iter=rounds, random_state=seed).fit(vectors_N_D)
    return model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32)


def _balanced_k_means(
    vectors_N_D: NDArray[np.float32], codes: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """k-means whose clusters hold at most ceil(N / clusters) vectors each."""
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
        codebook_C_D = np.where(counts_C[:, None], sums_C_D / np.maximum(counts_C, 1)[:, None], codebook_C_D)
        if (codes_N == before_N).all():
            break
    return codes_N, codebook_C_D.astype(np.float32)


def _different(vectors_N_D: NDArray[np.float32], enough: int) -> int:
    """How many different vectors there are; stops counting where the first rows have `enough`."""
    first = len(np.unique(vectors_N_D[: 4 * enough], axis=0))
    return first if first >= enough else len(np.unique(vectors_N_D, axis=0))
