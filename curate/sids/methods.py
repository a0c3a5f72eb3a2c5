"""How IDs are made, by name: embedders and quantizers that need no torch; `train.sids.methods` knows the others too.

They come to `assignment` and `extension` as arguments, so that curation never imports torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from curate.sids.embedding.embedders import TextEmbedder, TfidfSvdEmbedder
from curate.sids.embedding.openai_embedder import OpenAIEmbedder
from curate.sids.quantizers import FittedQuantizer, ResidualCodebooks, ResidualKMeans
from store.errors import InputError
from store.installation import missing_package


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """What turns texts into vectors.

    kind: tfidf-svd, fitted on the dataset's own texts; openai, an embeddings endpoint; hf, a Hugging Face model.
    model: of openai and hf. dimensions: of tfidf-svd. pooling: of hf.
    """

    kind: str = "tfidf-svd"
    model: str | None = None
    dimensions: int = 64
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if self.kind not in {"tfidf-svd", "openai", "hf"}:
            raise InputError(f"--embedder is {self.kind!r}; it must be tfidf-svd, hf or openai")
        if (self.kind == "tfidf-svd") != (self.model is None):
            raise InputError(f"--embedder {self.kind} {'takes no' if self.model else 'needs a'} --model")
        if not 1 <= self.dimensions <= 4096:
            raise InputError(f"--dimensions is {self.dimensions}; it must be from 1 to 4,096")


OpenEmbedder = Callable[[EmbedderSettings, Path, Sequence[str]], TextEmbedder]
"""Settings, the folder that keeps what is fitted, and the corpus to fit on, to an embedder."""

LoadQuantizer = Callable[[str, Path], FittedQuantizer]
"""A method's name and the folder of a version's model, to that model."""


def open_embedder(
    settings: EmbedderSettings, folder: Path, corpus: Sequence[str], *, base_url: str | None = None
) -> TextEmbedder:
    """The embedder of the settings, if it needs no torch; `folder` keeps what is fitted on the corpus."""
    if settings.kind == "tfidf-svd":
        return TfidfSvdEmbedder.fit(folder, corpus, dimensions=settings.dimensions)
    if settings.kind == "openai":
        assert settings.model is not None
        return OpenAIEmbedder(settings.model, base_url)
    raise missing_package(f"embedder {settings.kind}", "torch", "train")


def load_quantizer(method: str, folder: Path) -> FittedQuantizer:
    """What a version was made with, if it needs no torch."""
    if method == ResidualKMeans.method:
        return ResidualCodebooks.load(folder)
    raise missing_package(f"method {method}", "torch", "train")
