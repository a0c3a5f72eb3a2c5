"""One optimizer that trains a model's matrices with Muon and everything else with AdamW.

A student trained from scratch learns to compare candidates after about half as many lists as with AdamW alone
(docs/log.md).

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The implementation is PyTorch's,
with its learning rate scaled to AdamW's as in arXiv 2502.16982. AdamW trains embeddings, norms and biases, as both
sources recommend.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class FloatMuon(torch.optim.Muon):
    """PyTorch's Muon. On a CPU it computes in the precision of the weights, with all matrices of one shape at once.

    PyTorch computes the products in bfloat16, for which few CPUs have instructions. Without them, these products took
    40% of a step of a tiny student. There must be one group of parameters, whose learning rate is scaled to AdamW's.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. closure: None on a CPU, since `MuonWithAdamW` has called it by then."""
        (group,) = self.param_groups
        # The device is checked at each step, because trainers move a model to its device after making the optimizer.
        if group["params"][0].device.type != "cpu":
            return super().step(closure)  # type: ignore[no-untyped-call]
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for weight in group["params"]:
            if weight.grad is not None:
                average = self.state[weight].setdefault("momentum_buffer", torch.zeros_like(weight.grad))
                average.lerp_(weight.grad, 1 - group["momentum"])
                by_shape[weight.shape].append((weight, weight.grad.lerp(average, group["momentum"])))
        for shape, members in by_shape.items():
            updates = orthogonalize(
                torch.stack([update for _, update in members]), group["ns_coefficients"], group["ns_steps"]
            )
            # The updates are as large as AdamW's, so that both parts share one learning rate.
            rate = group["lr"] * 0.2 * math.sqrt(max(shape))
            for (weight, _), update in zip(members, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-rate)
        return None


def orthogonalize(matrices_N: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Move the singular values of each matrix (N, rows, columns) to about 1, by Newton and Schulz's iteration."""
    if matrices_N.shape[1] > matrices_N.shape[2]:
        return orthogonalize(matrices_N.mT, coefficients, steps).mT
    a, b, c = coefficients
    result_N: Tensor = matrices_N / torch.linalg.matrix_norm(matrices_N, keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram_N = result_N @ result_N.mT
        change_N = torch.baddbmm(gram_N, gram_N, gram_N, beta=b, alpha=c)
        result_N = torch.baddbmm(result_N, change_N, result_N, beta=a)
    return result_N


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and AdamW behind the interface of one optimizer, with one learning rate for both.

    model: only its parameters that require gradients are trained, and there must be at least one. weight_decay: applies
    to the matrices that Muon trains.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        # Muon orthogonalises the update of a linear map. An embedding is a table of rows, and the output head often
        # shares its weight, so both belong to AdamW. The weights are compared by `id`, since comparing tensors with
        # `in` compares their elements.
        rows = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        head = getattr(model, "get_output_embeddings", lambda: None)()
        rows |= {id(head.weight)} if head is not None else set()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in rows]
        others = [p for p in trained if p.ndim != 2 or id(p) in rows]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                FloatMuon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
            )
        if others:
            self._parts.append(torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0))
        # Each part has one parameter group. Groups and state belong to this optimizer, so that learning rate
        # schedulers and checkpoints see a single one.
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters once. Returns the loss of `closure`, or None without one."""
        loss = closure() if closure is not None else None
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # Loading a checkpoint replaces groups and state of this object, so they are handed to the parts at every
            # step.
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss
