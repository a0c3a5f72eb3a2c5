"""The residual-quantized variational autoencoder of semantic IDs: its network and each term of its loss.

This module owns the formulas on tensors; the loop over epochs is in `rq_vae_training`. Sources: RQ-VAE, Lee et al. 2022
(arXiv 2203.01941), as TIGER (arXiv 2305.05065) uses it on item texts; EMA codebooks, van den Oord et al. 2017 (arXiv
1711.00937, appendix A.1); the diversity and contrastive terms of GR2 (arXiv 2602.07774). GR2 states neither the sizes
of the encoder nor the inputs of the contrastive term, so both are our choice.

Axes: B batch, N items, F fitted levels, C codes of a level, D dimensions of a vector, d dimensions of a latent, P pairs
of items.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Quantization(NamedTuple):
    """The residual quantization of latents (B, d) at F levels.

    codes_B_F: int64, the chosen codes. residuals_F_B_d: the input of each level, with a gradient to the latents.
    chosen_F_B_d: the chosen code vectors, with a gradient to the codebooks.
    """

    codes_B_F: Tensor
    residuals_F_B_d: Tensor
    chosen_F_B_d: Tensor

    def straight_through(self, latents_B_d: Tensor) -> Tensor:
        """Return the sum of the chosen code vectors (B, d).

        Its gradient goes to the latents, as if without quantization.
        """
        # argmin has no gradient. The detached difference sets the value, and the latents carry the gradient.
        return latents_B_d + (self.chosen_F_B_d.sum(dim=0) - latents_B_d).detach()


class RqVae(nn.Module):
    """Encoder and decoder MLPs around F codebooks of C vectors each.

    dimensions: D of the input vectors. hidden: layer widths between D and d, reversed in the decoder. latent: d.
    levels: F. codebook_size: C.
    """

    codebooks_F_C_d: nn.Parameter
    # These are buffers, so that they are saved with the weights. They standardize the input vectors.
    mean_D: Tensor
    scale: Tensor

    def __init__(self, dimensions: int, hidden: Sequence[int], latent: int, levels: int, codebook_size: int) -> None:
        super().__init__()
        widths = [dimensions, *hidden, latent]
        self.encoder = _mlp(widths)
        self.decoder = _mlp(widths[::-1])
        self.codebooks_F_C_d = nn.Parameter(torch.empty(levels, codebook_size, latent).uniform_(-1, 1) / codebook_size)
        self.register_buffer("mean_D", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(()))

    def encode(self, vectors_B_D: Tensor) -> Tensor:
        """Return latents (B, d)."""
        encoded: Tensor = self.encoder((vectors_B_D - self.mean_D) / self.scale)
        return encoded

    def decode(self, latents_B_d: Tensor) -> Tensor:
        """Return vectors (B, D)."""
        decoded: Tensor = self.decoder(latents_B_d)
        return decoded * self.scale + self.mean_D

    def quantize(self, latents_B_d: Tensor) -> Quantization:
        """Choose the nearest code of each level for the residual that the previous levels left."""
        codes, residuals, chosen = [], [], []
        residual_B_d = latents_B_d
        for codebook_C_d in self.codebooks_F_C_d:
            codes_B = torch.cdist(residual_B_d.detach(), codebook_C_d.detach()).argmin(dim=1)
            codes.append(codes_B)
            residuals.append(residual_B_d)
            chosen.append(codebook_C_d[codes_B])
            # The code is detached, so that a level's loss moves its own codes and the latents, but no codes of earlier
            # levels.
            residual_B_d = residual_B_d - chosen[-1].detach()
        return Quantization(torch.stack(codes, dim=1), torch.stack(residuals), torch.stack(chosen))


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    # The last layer is linear, because latents and vectors have negative values too.
    return nn.Sequential(*layers[:-1])


def squared_error(left_B_D: Tensor, right_B_D: Tensor) -> Tensor:
    """Return the squared distance |left - right|^2, summed over dimensions and averaged over all other axes."""
    return (left_B_D - right_B_D).square().sum(dim=-1).mean()


def codebook_loss(quantization: Quantization) -> Tensor:
    """Return the sum over levels of |sg[residual] - code|^2, which moves codes towards their assigned residuals."""
    # squared_error averages over levels as well. The factor turns the mean into the paper's sum.
    return squared_error(quantization.residuals_F_B_d.detach(), quantization.chosen_F_B_d) * len(
        quantization.chosen_F_B_d
    )


def commitment_loss(quantization: Quantization) -> Tensor:
    """Return the sum over levels of |residual - sg[code]|^2, which moves latents towards their codes."""
    return squared_error(quantization.residuals_F_B_d, quantization.chosen_F_B_d.detach()) * len(
        quantization.chosen_F_B_d
    )


def diversity_loss(residuals_F_B_d: Tensor, codebooks_F_C_d: Tensor) -> Tensor:
    """Return C * sum_j p_j^2, averaged over levels: 1 if all codes are used equally, C if one code is always used.

    p_j is the mean over the batch of softmax(-|residual - code_j|^2 / tau), with tau the batch's mean squared distance
    to the nearest code. The papers do not say how p_j gets a gradient; this soft share is our choice.
    """
    distances_F_B_C = torch.cdist(residuals_F_B_d, codebooks_F_C_d).square()
    # tau is detached. Otherwise the loss could shrink by moving tau instead of spreading the codes.
    nearest_F = distances_F_B_C.detach().amin(dim=2).mean(dim=1).clamp_min(1e-12)
    share_F_C = (-distances_F_B_C / nearest_F[:, None, None]).softmax(dim=2).mean(dim=1)
    return share_F_C.square().sum(dim=1).mean() * codebooks_F_C_d.shape[1]


def info_nce(left_P_d: Tensor, right_P_d: Tensor, items_P_2: Tensor, temperature: float) -> Tensor:
    """Return the symmetric InfoNCE of P pairs of items over cosine similarities.

    Source: van den Oord et al. 2018, arXiv 1807.03748. The other pairs of the batch are the negatives. left_P_d,
    right_P_d: the two ends of each pair. items_P_2: the item numbers of both ends; a negative that is one of the pair's
    own items is left out. temperature: divides similarities.
    """
    logits_P_P = functional.normalize(left_P_d, dim=1) @ functional.normalize(right_P_d, dim=1).T / temperature
    left_P, right_P = items_P_2.unbind(dim=1)
    # Popular items occur in many pairs. As negatives of themselves they would be pushed apart from themselves.
    same_P_P = (right_P[None, :] == right_P[:, None]) | (right_P[None, :] == left_P[:, None])
    same_P_P |= left_P[:, None] == left_P[None, :]
    # The diagonal holds the positives.
    same_P_P.fill_diagonal_(fill_value=False)
    logits_P_P = logits_P_P.masked_fill(same_P_P, -torch.inf)
    own_P = torch.arange(len(logits_P_P), device=logits_P_P.device)
    return (functional.cross_entropy(logits_P_P, own_P) + functional.cross_entropy(logits_P_P.T, own_P)) / 2


class EmaCodebooks:
    """Codebooks as exponential moving averages of the residuals assigned to them, instead of training by gradient.

    count_j <- decay * count_j + (1 - decay) * n_j, sum_j likewise, code_j = sum_j / count_j. A code without
    assignments stays where it is, because count and sum shrink by the same factor.
    """

    def __init__(self, codebooks_F_C_d: Tensor, decay: float) -> None:
        self.decay = decay
        self.count_F_C = torch.ones(codebooks_F_C_d.shape[:2], device=codebooks_F_C_d.device)
        self.sum_F_C_d = codebooks_F_C_d.detach().clone()

    @torch.no_grad()
    def update(self, codebooks_F_C_d: Tensor, quantization: Quantization) -> None:
        """Add one batch to the averages and update the codebooks in place."""
        taken_F_B_C = functional.one_hot(quantization.codes_B_F.T, codebooks_F_C_d.shape[1]).to(codebooks_F_C_d.dtype)
        self.count_F_C.lerp_(taken_F_B_C.sum(dim=1), 1 - self.decay)
        self.sum_F_C_d.lerp_(taken_F_B_C.mT @ quantization.residuals_F_B_d, 1 - self.decay)
        # Below this, count and sum are almost 0 and their quotient is rounding noise.
        alive_F_C = self.count_F_C > 1e-6
        codebooks_F_C_d[alive_F_C] = (self.sum_F_C_d / self.count_F_C[..., None])[alive_F_C]

    @torch.no_grad()
    def restart(self, level: int, codes: Tensor, vectors: Tensor) -> None:
        """Restart the averages of some codes of a level at the given vectors."""
        self.count_F_C[level, codes] = 1.0
        self.sum_F_C_d[level, codes] = vectors


class DeadCodes:
    """Finds codes that have not been used for `patience` batches, and moves them to the worst-quantized latents."""

    def __init__(self, levels: int, codebook_size: int, patience: int, device: torch.device) -> None:
        self.patience = patience
        self.unused_F_C = torch.zeros(levels, codebook_size, dtype=torch.int64, device=device)

    @torch.no_grad()
    def reset(self, codebooks_F_C_d: Tensor, quantization: Quantization, ema: EmaCodebooks | None) -> int:
        """Count one batch and move dead codes, at most one per level to each latent. Returns the number of moves."""
        left_B_d = quantization.residuals_F_B_d[-1] - quantization.chosen_F_B_d[-1]
        worst_B = left_B_d.square().sum(dim=1).argsort(descending=True, stable=True)
        moved = 0
        for level in range(len(self.unused_F_C)):
            self.unused_F_C[level] += 1
            self.unused_F_C[level, quantization.codes_B_F[:, level]] = 0
            # Of two codes at the same latent one would never be used, so the rest wait for later batches.
            dead = (self.unused_F_C[level] >= self.patience).nonzero()[:, 0][: len(worst_B)]
            vectors = quantization.residuals_F_B_d[level, worst_B[: len(dead)]]
            codebooks_F_C_d[level, dead] = vectors
            self.unused_F_C[level, dead] = 0
            if ema is not None:
                # Without this, the next update would put the code back to its old average.
                ema.restart(level, dead, vectors)
            moved += len(dead)
        return moved
