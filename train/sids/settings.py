"""Settings of methods that need torch, without torch."""

from dataclasses import dataclass

from curate.sids.settings import QuantizerSettings
from store.settings import option

METHODS = ("rq-kmeans", "rq-vae")
_GROUP = "Codes (rq-vae)"


@dataclass(frozen=True, slots=True)
class RqVaeSettings(QuantizerSettings):
    """Settings of one training of an RQ-VAE.

    hidden, latent: the widths of the encoder's layers and of the latents. codebook_weight, commitment_weight: beta and
    gamma of the paper. kmeans_init: whether codebooks begin at k-means++ clusters of the first latents, level by level,
    or at random. ema_decay: 0.95 to 0.99 makes codebooks moving averages, 0 trains them by gradient. diversity_weight:
    lambda; 0 is off. batch_size: items per step; fewer on a small catalogue, so that an epoch has several steps.
    reset_after: batches without use before a code is moved; 0 is off. contrastive_weight: of InfoNCE over co-interacted
    items; 0 is off. learning_rate: of AdamW.
    """

    epochs: int = option(200, help="Number of passes over the items.", low=1, high=100_000, group=_GROUP)
    batch_size: int = option(1024, help="Number of items per step.", low=2, high=1 << 20, group=_GROUP)
    learning_rate: float = option(1e-3, help="Learning rate of AdamW.", low=1e-8, high=1.0, group=_GROUP)
    hidden: tuple[int, ...] = (256, 128)
    latent: int = option(32, low=1, high=4096)
    codebook_weight: float = option(1.0, low=0.0, high=1e3)
    commitment_weight: float = option(0.25, low=0.0, high=1e3)
    kmeans_init: bool = option(
        True, help="Initialize the codebooks with k-means++, level by level, instead of at random.", group=_GROUP
    )
    ema_decay: float = option(
        0.99,
        help="Decay of the moving averages that update the codebooks, such as 0.95; 0 trains them by gradient.",
        low=0.0,
        high=0.9999,
        group=_GROUP,
    )
    diversity_weight: float = option(0.0, help="Weight of the diversity loss.", low=0.0, high=1e3, group=_GROUP)
    reset_after: int = option(
        0,
        help="Number of batches after which an unused code is moved; 0 never moves one.",
        low=0,
        high=1 << 31,
        group=_GROUP,
    )
    contrastive_weight: float = option(
        0.0,
        help="Weight of the InfoNCE loss over items that users interacted with consecutively.",
        low=0.0,
        high=1e3,
        group=_GROUP,
    )
    temperature: float = option(0.1, low=1e-3, high=100.0)
