"""The methods that make IDs, by name: embedders, and the quantizers that need no torch.

`train.sids.methods` knows all quantizers. They come to `assignment` and `extension` as arguments, so that curation
never imports torch.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.sids.embedding.embedders import TextEmbedder
from curate.sids.quantizers import FittedQuantizer, ResidualCodebooks, ResidualKMeans
from curate.sids.settings import EmbedderSettings
from store.errors import InputError
from store.installation import missing_package
from store.registry import Factories

EMBEDDERS: Factories[TextEmbedder] = Factories(
    "embedder",
    "gr2.embedders",
    {
        "tfidf-svd": "curate.sids.embedding.embedders:open_tfidf_svd",
        "openai": "curate.sids.embedding.openai_embedder:OpenAIEmbedder",
        # Only the name is given, so that curation never imports torch.
        "hf": "train.sids.hf_embedder:HfEmbedder",
    },
    TextEmbedder,
)

IMPORTED = "imported"
"""The method of IDs that were made elsewhere."""

OpenEmbedder = Callable[[EmbedderSettings, Path, Sequence[str], str | None], TextEmbedder]
"""Settings, the folder that keeps what is fitted, the corpus to fit on, and the name of the embedder that was fitted
before and is wanted again, None to fit anew, to an embedder."""

LoadQuantizer = Callable[[str, Path], FittedQuantizer]
"""A method's name and the folder of a version's model, to that model."""


def open_embedder(
    settings: EmbedderSettings,
    folder: Path,
    corpus: Sequence[str],
    fitted: str | None = None,
    *,
    endpoint: Mapping[str, Any] | None = None,
) -> TextEmbedder:
    """Open the embedder of the settings. Its factory may ask by name for any of these arguments and for any setting.

    endpoint: the fields of EndpointSettings that are set. Raises InputError if there is no such embedder, if a model or
    an endpoint is given that it does not take, if one is missing that it needs, and if it is not the embedder that was
    fitted.
    """
    context = {
        "folder": folder,
        "corpus": corpus,
        "fitted": fitted,
        "dimensions": settings.dimensions,
        "pooling": settings.pooling,
        "embed_batch": settings.embed_batch,
    }
    opened = EMBEDDERS.make(settings.kind, context, {"model": settings.model, **(endpoint or {})})
    if not opened.name or Path(opened.name).name != opened.name:
        raise InputError(f"embedder {settings.kind} is called {opened.name!r}, which cannot name a folder")
    if fitted is not None and opened.name != fitted:
        raise InputError(
            f"embedder {settings.kind} now gives vectors called {opened.name!r}, but the version to extend has vectors "
            f"called {fitted!r}, and the two cannot be compared; make new IDs instead"
        )
    return opened


def load_quantizer(method: str, folder: Path) -> FittedQuantizer:
    """Load the quantizer of a version. Raises InputError if the method needs torch."""
    if method in (ResidualKMeans.method, IMPORTED):
        return ResidualCodebooks.load(folder)
    raise missing_package(f"method {method}", "torch", "train")
