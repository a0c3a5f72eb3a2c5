"""Texts as vectors: what semantic IDs are quantized from.

The embedded embedder needs no model: TF-IDF over words and character n-grams, reduced by a truncated SVD (latent
semantic analysis, Deerwester et al. 1990). It knows neither items nor codes.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer


class TextEmbedder(Protocol):
    """Turns N texts into N vectors of one length."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of shape (N, D), finite."""


class TfidfSvdEmbedder:
    """TF-IDF and truncated SVD, by scikit-learn; fitted on the very texts that it embeds.

    A text of length 1 in the reduced space, or zero where it shares no term with another text: empty texts and texts of
    nothing but rare signs become the zero vector. Fewer texts than `dimensions` leave the last dimensions zero.
    """

    def __init__(self, dimensions: int = 64, seed: int = 0) -> None:
        self.dimensions = dimensions
        self.seed = seed

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit or zero vectors of shape (N, dimensions)."""
        vectors_N_D = np.zeros((len(texts), self.dimensions), np.float32)
        vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            min_df=2 if len(texts) > 10 else 1,
            max_df=0.5 if len(texts) > 10 else 1.0,
            dtype=np.float32,
        )
        try:
            terms_N_V = vectorizer.fit_transform(texts)
        except ValueError:  # no term is left: every text is empty, or shares nothing with another
            return vectors_N_D
        width = min(self.dimensions, *terms_N_V.shape)
        if width < 2:
            reduced = terms_N_V[:, :1].toarray()
        else:
            # Of texts all alike, scikit-learn divides no variance by no variance, for a ratio that we do not use.
            with np.errstate(invalid="ignore"):
                reduced = TruncatedSVD(width, random_state=self.seed).fit_transform(terms_N_V)
        lengths_N = np.linalg.norm(reduced, axis=1, keepdims=True)
        np.divide(reduced, lengths_N, out=vectors_N_D[:, : reduced.shape[1]], where=lengths_N > 1e-12)
        return vectors_N_D
