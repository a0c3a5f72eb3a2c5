"""Training of the RQ-VAE on item vectors, with a setting for each technique of the GR2 paper for unique, balanced IDs.

This module owns epochs, seeds and progress; the formulas are in `rq_vae`. It knows vectors and pairs of rows, not items
or texts.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from curate.sids.measures import perplexity
from curate.sids.quantizers import Fit, OnProgress, fit_k_means, nearest_codes
from store.errors import InputError
from store.progress import Counted
from train.sids.rq_vae import (
    DeadCodes,
    EmaCodebooks,
    RqVae,
    codebook_loss,
    commitment_loss,
    diversity_loss,
    info_nce,
    squared_error,
)
from train.sids.settings import RqVaeSettings

# The number of rows per forward pass outside training, which bounds memory for millions of items.
CHUNK = 16_384
K_MEANS_ROUNDS = 20
MODEL_FILE = "quantizer.safetensors"
PROGRESS_S = 2.0
# The minimum number of steps per epoch, which makes batches smaller on a small catalogue, down to LEAST_BATCH.
STEPS = 8
LEAST_BATCH = 32


@dataclass(frozen=True, slots=True)
class RqVaeQuantizer(RqVaeSettings):
    """Settings of one training; `fit` trains."""

    method: ClassVar[str] = "rq-vae"

    def settings(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def fit(self, vectors_N_D: NDArray[np.float32], pairs_P_2: NDArray[np.int64], on_progress: OnProgress) -> Fit:
        """Train an RQ-VAE. The same vectors, pairs and seed give the same codes on the same machine.

        vectors_N_D: one vector per item. pairs_P_2: row numbers of items that users interacted with consecutively.
        on_progress: receives a line about an epoch every few seconds.

        Raises InputError if the contrastive term is on without any pairs, or if the loss is not finite.
        """
        if self.contrastive_weight and len(pairs_P_2) == 0:
            raise InputError(
                "contrastive_weight needs pairs of items that users interacted with consecutively, and there are none; "
                "set it to 0"
            )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # nn.Linear draws from the global generator, so its state is set here and restored afterwards.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            model = RqVae(
                vectors_N_D.shape[1], self.hidden, self.latent, self.levels - self.random_levels, self.codebook_size
            ).to(device)
        vectors = torch.from_numpy(vectors_N_D).to(device)
        model.mean_D.copy_(vectors.mean(dim=0))
        # All dimensions have one scale, so that their relative importance stays as the embedder made it.
        model.scale.copy_((vectors - model.mean_D).square().sum(dim=1).mean().sqrt().clamp_min(1e-12))
        fitted = FittedRqVae(model, self)
        if self.kmeans_init:
            _init_by_k_means(model, fitted.encode(vectors_N_D), self.seed)
        training = _Training(self, model, vectors, torch.from_numpy(pairs_P_2).to(device))
        training.run(lambda epoch, loss: on_progress(self._describe(epoch, loss, fitted, vectors_N_D)))
        return Fit(fitted, nearest_codes(fitted.encode(vectors_N_D), fitted.codebooks))

    def _describe(self, epoch: int, loss: float, fitted: "FittedRqVae", vectors_N_D: NDArray[np.float32]) -> Counted:
        codes_N_F = nearest_codes(fitted.encode(vectors_N_D), fitted.codebooks)
        unique = len(np.unique(codes_N_F, axis=0)) / len(codes_N_F)
        used = " ".join(f"{perplexity(codes_N, self.codebook_size):.0f}" for codes_N in codes_N_F.T)
        message = (
            f"epoch {epoch} of {self.epochs}: loss {loss:.4f}, perplexity {used} of "
            f"{self.codebook_size}, {unique:.1%} distinct IDs in the fitted levels"
        )
        return Counted(message, epoch, self.epochs)


class FittedRqVae:
    """A trained RQ-VAE, which maps vectors to latents and back."""

    def __init__(self, model: RqVae, settings: RqVaeQuantizer) -> None:
        self.model = model
        self.settings = settings

    @property
    def codebooks(self) -> Sequence[NDArray[np.float32]]:
        """F arrays of shape (C, d)."""
        return list(self.model.codebooks_F_C_d.detach().cpu().numpy())

    def encode(self, vectors_N_D: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the latents (N, d) of vectors (N, D)."""
        return self._in_chunks(self.model.encode, vectors_N_D, self.settings.latent)

    def decode(self, latents_N_d: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors (N, D) of latents (N, d)."""
        return self._in_chunks(self.model.decode, latents_N_d, len(self.model.mean_D))

    def save(self, folder: Path) -> None:
        """Write one safetensors file into the folder, with the settings in its header."""
        settings = {"settings": json.dumps(self.settings.settings(), sort_keys=True)}
        safetensors.torch.save_file(self.model.state_dict(), folder / MODEL_FILE, metadata=settings)

    @classmethod
    def load(cls, folder: Path) -> "FittedRqVae":
        """Load the model that `save` wrote into the folder."""
        with safetensors.safe_open(folder / MODEL_FILE, "pt") as file:
            stored = json.loads(file.metadata()["settings"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # A file of another release may have settings that this one does not know.
        field_names = {field.name for field in fields(RqVaeQuantizer)}
        settings = RqVaeQuantizer(
            **{name: value for name, value in stored.items() if name in field_names}
            | {"hidden": tuple(stored["hidden"])}
        )
        levels, codes, latent = state["codebooks_F_C_d"].shape
        model = RqVae(len(state["mean_D"]), settings.hidden, latent, levels, codes)
        model.load_state_dict(state)
        return cls(model, settings)

    @torch.no_grad()
    def _in_chunks(self, function: Any, rows_N_X: NDArray[np.float32], width: int) -> NDArray[np.float32]:
        out = np.empty((len(rows_N_X), width), np.float32)
        device = self.model.mean_D.device
        for start in range(0, len(rows_N_X), CHUNK):
            chunk = torch.from_numpy(np.ascontiguousarray(rows_N_X[start : start + CHUNK], np.float32)).to(device)
            out[start : start + CHUNK] = function(chunk).cpu().numpy()
        return out


class _Training:
    """One training run: model, optimizer and random state."""

    def __init__(
        self,
        settings: RqVaeQuantizer,
        model: RqVae,
        vectors: Tensor,
        pairs: Tensor,
    ) -> None:
        self.settings = settings
        self.model = model
        self.vectors = vectors
        self.pairs = pairs
        self.random = torch.Generator().manual_seed(settings.seed)
        codebooks = model.codebooks_F_C_d
        self.ema = EmaCodebooks(codebooks, settings.ema_decay) if settings.ema_decay else None
        self.dead = (
            DeadCodes(codebooks.shape[0], codebooks.shape[1], settings.reset_after, vectors.device)
            if settings.reset_after
            else None
        )
        # Moving averages write the codebooks themselves. An optimizer would work against them, and decay their weights.
        codebooks.requires_grad_(self.ema is None)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=1e-4)

    def run(self, on_epoch: Callable[[int, float], None]) -> None:
        """Train for all epochs, each over every item once. `on_epoch` gets number and loss of an epoch now and then."""
        last_report = time.monotonic()
        for epoch in range(1, self.settings.epochs + 1):
            # The losses are summed on the device, because reading each loss would wait for the GPU at every step.
            losses = torch.zeros((), device=self.vectors.device)
            order_N = torch.randperm(len(self.vectors), generator=self.random)
            batches = torch.split(order_N, self._batch_size())
            for batch_B in batches:
                losses += self._step(batch_B.to(self.vectors.device))
            loss = float(losses) / len(batches)
            if not np.isfinite(loss):
                raise InputError(f"the loss of epoch {epoch} is {loss}; lower the learning rate")
            if time.monotonic() - last_report >= PROGRESS_S or epoch == self.settings.epochs:
                last_report = time.monotonic()
                on_epoch(epoch, loss)

    def _batch_size(self) -> int:
        """The batch size of the settings, or less on a small catalogue, so that an epoch has about STEPS steps.

        With one step per epoch, 200 epochs would leave the IDs of 600 items collapsed.
        """
        return min(self.settings.batch_size, max(LEAST_BATCH, len(self.vectors) // STEPS))

    def _step(self, batch_B: Tensor) -> Tensor:
        settings, model = self.settings, self.model
        vectors_B_D = self.vectors[batch_B]
        latents_B_d = model.encode(vectors_B_D)
        quantization = model.quantize(latents_B_d)
        decoded_B_D = model.decode(quantization.straight_through(latents_B_d))
        # The loss is in units of the data's scale, so that the weights of the other terms mean the same for every
        # embedder.
        loss = squared_error(decoded_B_D, vectors_B_D) / model.scale.square()
        loss = loss + settings.commitment_weight * commitment_loss(quantization)
        if self.ema is None:
            loss = loss + settings.codebook_weight * codebook_loss(quantization)
        if settings.diversity_weight:
            loss = loss + settings.diversity_weight * diversity_loss(
                quantization.residuals_F_B_d, model.codebooks_F_C_d
            )
        if settings.contrastive_weight:
            loss = loss + settings.contrastive_weight * self._contrast()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(model.codebooks_F_C_d.data, quantization)
        # This comes after the update, which would otherwise overwrite the codes that were moved.
        if self.dead is not None:
            self.dead.reset(model.codebooks_F_C_d.data, quantization, self.ema)
        return loss.detach()

    def _contrast(self) -> Tensor:
        """Return InfoNCE of a random batch of pairs, computed on their quantized latents."""
        count = min(self.settings.batch_size, len(self.pairs))
        rows_P = torch.randint(len(self.pairs), (count,), generator=self.random)
        items_P_2 = self.pairs[rows_P.to(self.pairs.device)]
        latents = self.model.encode(self.vectors[items_P_2.flatten()])
        ends = self.model.quantize(latents).straight_through(latents).reshape(len(items_P_2), 2, -1)
        return info_nce(ends[:, 0], ends[:, 1], items_P_2, self.settings.temperature)


def _init_by_k_means(model: RqVae, latents_N_d: NDArray[np.float32], seed: int) -> None:
    """Set the codebooks to k-means clusters of the residuals, level by level.

    If there are fewer clusters than codes, the remaining codes keep their random vectors.
    """
    residuals_N_d = latents_N_d.copy()
    for level, codebook_C_d in enumerate(model.codebooks_F_C_d.data):
        codes_N, clusters_C_d = fit_k_means(residuals_N_d, len(codebook_C_d), seed + level, rounds=K_MEANS_ROUNDS)
        codebook_C_d[: len(clusters_C_d)] = torch.from_numpy(clusters_C_d)
        residuals_N_d -= clusters_C_d[codes_N]
