"""Vectors as codes: residual k-means, the method that needs no torch.

Level by level, k-means++ on what the levels before left over (the initialisation that the GR2 paper needs); the last
level is drawn at random from the codes that its prefix has not used, so that items which no level can tell apart still
get IDs of their own. It knows neither items nor texts.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from store.errors import InputError


@dataclass(frozen=True, slots=True)
class Quantized:
    """Codes of N vectors at L levels, and how much they hold of the vectors.

    codes_N_L: uint16. residual: mean squared length of what no codebook level explains, over that of the vectors; the
    random last level explains nothing.
    """

    codes_N_L: NDArray[np.uint16]
    residual: float


@dataclass(frozen=True, slots=True)
class ResidualKMeans:
    """levels: codes per vector. codebook_size: codes per level. random_last: draw the last level, do not fit it."""

    levels: int = 4
    codebook_size: int = 256
    random_last: bool = True
    seed: int = 0

    def fit_assign(self, vectors_N_D: NDArray[np.float32]) -> Quantized:
        """Fit the codebooks on the vectors and give each its codes.

        Raises InputError on no vector, or one that is not finite.
        """
        if len(vectors_N_D) == 0:
            raise InputError("there is nothing to quantize: no vector was given")
        if not np.isfinite(vectors_N_D).all():
            row = int(np.flatnonzero(~np.isfinite(vectors_N_D).all(axis=1))[0])
            raise InputError(f"vector {row} is not finite; an embedder must not give NaN or infinity")
        residuals_N_D = vectors_N_D.astype(np.float32, copy=True)
        codes_N_L = np.zeros((len(vectors_N_D), self.levels), np.uint16)
        fitted = self.levels - (self.random_last and self.levels > 1)
        for level in range(fitted):
            codes_N, codebook_C_D = _k_means(residuals_N_D, self.codebook_size, self.seed + level)
            codes_N_L[:, level] = codes_N
            residuals_N_D -= codebook_C_D[codes_N]
        if fitted < self.levels:
            codes_N_L[:, -1] = _draw_unused(codes_N_L[:, :-1], self.codebook_size, self.seed)
        energy = float((vectors_N_D**2).sum())
        return Quantized(codes_N_L, float((residuals_N_D**2).sum()) / energy if energy else 0.0)


def _k_means(vectors_N_D: NDArray[np.float32], codes: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes and codebook; no more clusters than there are different vectors."""
    clusters = min(codes, len(np.unique(vectors_N_D, axis=0)))
    with warnings.catch_warnings():
        # Vectors that differ by rounding alone give fewer clusters than were asked for, which is right.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(clusters, init="k-means++", n_init=1, max_iter=50, random_state=seed).fit(vectors_N_D)
    return model.labels_.astype(np.int64), model.cluster_centers_.astype(np.float32)


def _draw_unused(prefixes_N_P: NDArray[np.uint16], codes: int, seed: int) -> NDArray[np.uint16]:
    """A last code for each vector: those of one prefix get different codes, as far as there are enough."""
    rng = np.random.default_rng(seed)
    _, prefix_N = np.unique(prefixes_N_P, axis=0, return_inverse=True)
    drawn_N = np.zeros(len(prefixes_N_P), np.uint16)
    order = np.argsort(prefix_N.ravel(), kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(prefix_N.ravel()[order])) + 1):
        rounds = -(-len(members) // codes)
        drawn_N[members] = np.concatenate([rng.permutation(codes) for _ in range(rounds)])[: len(members)]
    return drawn_N
