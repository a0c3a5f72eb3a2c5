"""Settings of quantizers and embedders, which make semantic IDs, without the libraries that these need."""

from dataclasses import dataclass
from typing import Any

from store.errors import InputError
from store.records import FOLDS
from store.settings import check, option


@dataclass(frozen=True, slots=True)
class QuantizerSettings:
    """Settings of every quantizer: IDs have `levels` codes, of which the last `random_levels` are drawn."""

    levels: int = option(4, help="Number of codes per semantic ID.", low=1, high=8, group="Codes")
    codebook_size: int = option(256, help="Number of codes per level.", low=2, high=65_536, group="Codes")
    random_levels: int = option(
        1,
        help="Number of last levels whose codes are drawn at random from those that a prefix has not used; 0 fits all "
        "levels.",
        low=0,
        high=3,
        group="Codes",
    )
    seed: int = option(0, help="Seed; the same seed gives the same IDs.", low=0, group="Codes")

    def __post_init__(self) -> None:
        check(self)
        if self.random_levels >= self.levels:
            raise InputError(
                f"`random_levels` is {self.random_levels}; it must be less than `levels`, which is {self.levels}"
            )


@dataclass(frozen=True, slots=True)
class ResidualKMeansSettings(QuantizerSettings):
    """Settings of residual k-means.

    balanced: no code gets more than ceil(N / C) training vectors, at the least total distance that allows it.
    """

    balanced: bool = option(False, help="Limit each code to an equal share of the items.", group="Codes (rq-kmeans)")


@dataclass(frozen=True, slots=True)
class PurchaseSettings:
    """How IDs learn from the purchases in training interactions.

    copurchase_weight: the length of the co-purchase part of an item's vector; the text part has length 1. The default
    is the best of several by next-item recommendation on Beauty's valid interactions (docs/decisions/0007).
    held_out_folds: folds of users whose purchases the IDs do not learn from, neither by the co-purchase part nor by the
    pairs of the contrastive term.
    """

    copurchase_weight: float = option(
        1.5,
        help="Weight of an item's co-purchases relative to its text; 0 uses only the text.",
        low=0,
        group="Vectors",
    )
    held_out_folds: tuple[int, ...] = option(
        (),
        help="Folds of users whose purchases are left out, comma-separated. Default: none.",
        low=0,
        high=FOLDS - 1,
        group="Vectors",
    )

    def __post_init__(self) -> None:
        check(self)

    def to_settings(self) -> dict[str, Any]:
        """The fields as the settings of a version store them.

        Folds are left out if none is held out, as in older versions.
        """
        folds = sorted(set(self.held_out_folds))
        return {"copurchase_weight": self.copurchase_weight} | ({"held_out_folds": folds} if folds else {})


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """Settings of the embedder, which turns texts into vectors.

    kind: a name in curate.sids.methods.EMBEDDERS: tfidf-svd, fitted on the dataset's own texts; openai, an embeddings
    endpoint; hf, a Hugging Face model; or your own as module:object. model: for openai and hf. dimensions: for
    tfidf-svd. pooling: for hf. embed_batch: for openai.
    """

    kind: str = option(
        "tfidf-svd",
        help="Embedder of the items' texts: tfidf-svd, hf (a Hugging Face model; needs torch), openai (an embeddings "
        "endpoint), or your own as module:object.",
        group="Vectors",
        flag="embedder",
    )
    model: str | None = option(
        None, help="Model of the embedder. hf: a folder or a name on the hub. openai: a name.", group="Vectors"
    )
    dimensions: int = option(64, help="Number of dimensions of tfidf-svd's vectors.", low=1, high=4096, group="Vectors")
    pooling: str = option(
        "mean", help="Pooling of hf's token vectors.", choices=("mean", "last", "cls"), group="Vectors"
    )
    embed_batch: int = option(
        256, help="Number of texts in one request to an embeddings endpoint.", low=1, group="Vectors"
    )

    def __post_init__(self) -> None:
        check(self)
