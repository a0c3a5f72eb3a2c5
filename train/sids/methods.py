"""How semantic IDs are made, by name: all methods and embedders, those that need torch included.

Each is imported when it is asked for: `gr2 sids` with residual k-means works without torch.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from curate.sids import methods
from curate.sids.embedding.embedders import TextEmbedder
from curate.sids.quantizers import FittedQuantizer, Quantizer, ResidualKMeans
from curate.sids.settings import EmbedderSettings
from store.errors import InputError
from store.installation import missing_package
from train.sids.settings import METHODS


def make_quantizer(method: str, settings: dict[str, Any]) -> Quantizer:
    """The method with its settings; those that are left out keep their defaults.

    Raises InputError on an unknown method, a setting that it does not have, or a value that it does not take.
    """
    kind: Any
    if method == "rq-kmeans":
        kind = ResidualKMeans
    elif method == "rq-vae":
        kind = _import_rq_vae().RqVaeQuantizer
    else:
        raise InputError(f"`method` is {method!r}; it must be one of {', '.join(METHODS)}")
    if unknown := settings.keys() - {field.name for field in fields(kind)}:
        raise InputError(f"method {method} has no {', '.join(f'`{name}`' for name in sorted(unknown))}")
    quantizer: Quantizer = kind(**settings)
    return quantizer


def load_quantizer(method: str, folder: Path) -> FittedQuantizer:
    """What a version was made with."""
    if method == "rq-vae":
        fitted: FittedQuantizer = _import_rq_vae().FittedRqVae.load(folder)
        return fitted
    return methods.load_quantizer(method, folder)


def open_embedder(
    settings: EmbedderSettings, folder: Path, corpus: Sequence[str], *, base_url: str | None = None
) -> TextEmbedder:
    """The embedder of the settings; `folder` keeps what is fitted on the corpus. base_url: of openai."""
    if settings.kind == "hf":
        try:
            from train.sids.hf_embedder import HfEmbedder  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise _needs_torch("embedder hf") from error
        assert settings.model is not None
        return HfEmbedder(settings.model, settings.pooling)
    return methods.open_embedder(settings, folder, corpus, base_url=base_url)


def _import_rq_vae() -> Any:
    try:
        from train.sids import rq_vae_training  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _needs_torch("method rq-vae") from error
    return rq_vae_training


def _needs_torch(what: str) -> InputError:
    return missing_package(what, "torch", "train")
