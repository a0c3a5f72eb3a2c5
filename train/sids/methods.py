"""All methods that make semantic IDs, by name, including those that need torch.

Each method is imported only when it is used, so `gr2 sids` with residual k-means works without torch.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any

from curate.sids import methods
from curate.sids.quantizers import FittedQuantizer, Quantizer, ResidualKMeans
from store.errors import InputError
from store.installation import missing_package
from train.sids.settings import METHODS


def make_quantizer(method: str, settings: dict[str, Any]) -> Quantizer:
    """Make the quantizer of a method. Settings that are left out keep their defaults.

    Raises InputError on an unknown method, a setting that it does not have, or an invalid value.
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
    """Load the quantizer of a version."""
    if method == "rq-vae":
        fitted: FittedQuantizer = _import_rq_vae().FittedRqVae.load(folder)
        return fitted
    return methods.load_quantizer(method, folder)


def _import_rq_vae() -> Any:
    try:
        from train.sids import rq_vae_training  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise _needs_torch("method rq-vae") from error
    return rq_vae_training


def _needs_torch(what: str) -> InputError:
    return missing_package(what, "torch", "train")
