"""How IDs are made, by name: embedders and quantizers that need no torch; `train.sids.methods` knows the others too.

They come to `assignment` and `extension` as arguments, so that curation never imports torch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from curate.sids.embedding.embedders import TextEmbedder, TfidfSvdEmbedder
from curate.sids.embedding.openai_embedder import OpenAIEmbedder
from curate.sids.quantizers import FittedQuantizer, ResidualCodebooks, ResidualKMeans
from curate.sids.settings import EmbedderSettings
from store.installation import missing_package

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
