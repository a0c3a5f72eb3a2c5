"""One optimizer that trains a model's matrices with Muon and everything else with AdamW.

A student trained from scratch learns to compare candidates after about half as many lists as with AdamW alone
(docs/log.md).

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". The implementation is PyTorch's,
with its learning rate scaled to AdamW's as in arXiv 2502.16982. AdamW trains embeddings, norms and biases, as both
sources recommend.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon and AdamW behind the interface of one optimizer, with one learning rate for both.

    model: only its parameters that require gradients are trained, and there must be at least one. weight_decay: applies
    to the matrices that Muon trains.
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        # Muon orthogonalises the update of a linear map. An embedding is a table of rows, and the output head often
        # shares its weight, so both belong to AdamW. `id`, since comparing tensors with `in` compares their elements.
        rows = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        head = getattr(model, "get_output_embeddings", lambda: None)()
        rows |= {id(head.weight)} if head is not None else set()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        matrices = [p for p in trained if p.ndim == 2 and id(p) not in rows]
        others = [p for p in trained if p.ndim != 2 or id(p) in rows]
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                torch.optim.Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
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
            # Loading a checkpoint replaces groups and state of this object, so hand them to the parts at every step.
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss
