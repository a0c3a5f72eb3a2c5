"""Embeds texts as vectors, from which semantic IDs are quantized.

The embedder of this module needs no model: TF-IDF over words, reduced by a truncated SVD (latent semantic analysis,
Deerwester et al. 1990). It knows neither items nor codes. Other embedders have the same protocol: `openai_embedder`,
and `train.sids.hf_embedder`, which needs torch.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import orjson
import safetensors.numpy
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from store.temporary import temporary_folder

EMBEDDER_FILE = "embedder.safetensors"


class TextEmbedder(Protocol):
    """Turns texts into vectors of one length. An embedder with the same name always gives a text the same vector."""

    @property
    def name(self) -> str:
        """The name of the embedder, which must be usable as the name of a folder."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return vectors of shape (N, D). No text may be empty."""


class TfidfSvdEmbedder:
    """TF-IDF and truncated SVD by scikit-learn, fitted on a corpus.

    A vector has length 1, or is zero if the text shares no term with the corpus. If there are fewer texts or terms than
    dimensions, the last dimensions are zero.

    terms: V terms. idf_V: their inverse document frequencies. axes_D_V: the singular vectors, which are fewer than
    `dimensions` if the corpus has no more.
    """

    def __init__(
        self, name: str, dimensions: int, terms: list[str], idf_V: NDArray[np.float32], axes_D_V: NDArray[np.float32]
    ) -> None:
        self.name = name
        self._dimensions = dimensions
        self._terms = terms
        self._idf_V = idf_V
        self._axes_D_V = axes_D_V
        if terms:
            self._vectorizer = TfidfVectorizer(sublinear_tf=True, vocabulary=terms, dtype=np.float32)
            self._vectorizer.idf_ = idf_V

    @classmethod
    def fit(cls, folder: Path, corpus: Sequence[str], *, dimensions: int = 64, seed: int = 0) -> Self:
        """Fit the embedder of a corpus, or load it if `folder` has it already.

        It is stored in a folder of `folder` that is named by corpus, dimensions and seed.
        """
        digest = hashlib.sha256(orjson.dumps([dimensions, seed, *sorted(set(corpus))])).hexdigest()
        name = f"tfidf-svd-{dimensions}-{digest[:12]}"
        if (folder / name / EMBEDDER_FILE).exists():
            return cls.load(folder / name)
        embedder = cls(name, dimensions, *_fit(corpus, dimensions, seed))
        embedder.save(folder)
        return embedder

    def save(self, folder: Path) -> None:
        """Store the embedder in `folder`, under its name."""
        (folder / self.name).mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as temporary:
            safetensors.numpy.save_file(
                # safetensors writes raw memory and ignores strides.
                {"idf_V": self._idf_V, "axes_D_V": np.ascontiguousarray(self._axes_D_V)},
                temporary / EMBEDDER_FILE,
                metadata={"terms": orjson.dumps(self._terms).decode(), "dimensions": str(self._dimensions)},
            )
            (temporary / EMBEDDER_FILE).replace(folder / self.name / EMBEDDER_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load an embedder from the folder that `save` made for it."""
        with safetensors.safe_open(folder / EMBEDDER_FILE, "np") as file:
            metadata = file.metadata()
            idf_V, axes_D_V = file.get_tensor("idf_V"), file.get_tensor("axes_D_V")
        return cls(folder.name, int(metadata["dimensions"]), orjson.loads(metadata["terms"]), idf_V, axes_D_V)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit or zero vectors of shape (N, dimensions)."""
        vectors_N_D = np.zeros((len(texts), self._dimensions), np.float32)
        if not self._terms:
            return vectors_N_D
        reduced_N_D = np.asarray(self._vectorizer.transform(texts) @ self._axes_D_V.T)
        lengths_N = np.linalg.norm(reduced_N_D, axis=1, keepdims=True)
        np.divide(reduced_N_D, lengths_N, out=vectors_N_D[:, : reduced_N_D.shape[1]], where=lengths_N > 1e-12)
        return vectors_N_D


def open_tfidf_svd(folder: Path, corpus: Sequence[str], dimensions: int, fitted: str | None = None) -> TfidfSvdEmbedder:
    """Load the embedder called `fitted` from `folder`, or fit the embedder of the corpus if `fitted` is None."""
    if fitted is not None:
        return TfidfSvdEmbedder.load(folder / fitted)
    return TfidfSvdEmbedder.fit(folder, corpus, dimensions=dimensions)


def _fit(
    corpus: Sequence[str], dimensions: int, seed: int
) -> tuple[list[str], NDArray[np.float32], NDArray[np.float32]]:
    """Return terms, their inverse document frequencies, and singular vectors."""
    few = len(corpus) <= 10
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, min_df=1 if few else 2, max_df=1.0 if few else 0.5, dtype=np.float32
    )
    try:
        terms_N_V = vectorizer.fit_transform(corpus)
    except ValueError:  # no term is left: every text is empty, or shares nothing with another
        return [], np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
    terms = vectorizer.get_feature_names_out().tolist()
    width = min(dimensions, *terms_N_V.shape)
    if width < 2:
        axes_D_V = np.eye(1, len(terms), dtype=np.float32)
    else:
        # If all texts are alike, scikit-learn divides zero variance by zero variance, for a ratio that is not used
        # here.
        with np.errstate(divide="ignore", invalid="ignore"):
            axes_D_V = TruncatedSVD(width, random_state=seed).fit(terms_N_V).components_.astype(np.float32)
    return terms, vectorizer.idf_.astype(np.float32), axes_D_V
