"""Muon for a model's matrices and AdamW for the rest, as one optimizer: what lets a student from scratch learn fast.

A student learns to compare candidates after about half as many lists as with AdamW alone (docs/log.md).

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; PyTorch's implementation, its
learning rate scaled to AdamW's as in arXiv 2502.16982. Embeddings, norms and biases are AdamW's, as both say.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """One learning rate serves both parts. Only parameters that want gradients take part; the model has some."""

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        # Rows of an embedding are no linear map, and those of the head are often the same.
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
        # One group each. The groups and the state are this optimizer's, so that schedulers and checkpoints see one.
        super().__init__([group for part in self._parts for group in part.param_groups], {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both parts."""
        loss = closure() if closure is not None else None
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # Loading a checkpoint makes new groups and a new state.
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss
