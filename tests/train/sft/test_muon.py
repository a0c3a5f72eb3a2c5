from typing import Any

import pytest
import torch
from torch import nn

from train.sft.muon import MuonWithAdamW, orthogonalize


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.layer(self.embed(ids)).tanh())
        return result


def train(model: Small, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        ids = torch.arange(7).roll(step)
        loss = nn.functional.cross_entropy(model(ids), (ids + 1) % 7)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_matrices_are_muons_and_rows_of_tokens_and_biases_adamws() -> None:
    model = Small()
    twin = Small()
    optimizer = MuonWithAdamW(model, 0.01, 0.1)
    muon = torch.optim.Muon([twin.layer.weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([twin.embed.weight, twin.layer.bias], lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    for step in range(3):
        train(model, optimizer, range(step, step + 1))
        nn.functional.cross_entropy(twin(torch.arange(7).roll(step)), (torch.arange(7).roll(step) + 1) % 7).backward()
        for part in (muon, adamw):
            part.step()
            part.zero_grad()
    for key, value in model.state_dict().items():
        # PyTorch rounds updates of matrices to bfloat16: steps of 0.01 by up to 1/256.
        torch.testing.assert_close(value, twin.state_dict()[key], rtol=0, atol=2e-4)


@pytest.mark.parametrize("shape", [(3, 5, 5), (2, 4, 9), (2, 9, 4)])
def test_orthogonalizing_keeps_directions_and_evens_out_their_sizes(shape: tuple[int, int, int]) -> None:
    muon = torch.optim.Muon([nn.Parameter(torch.zeros(2, 2))])
    coefficients = muon.defaults["ns_coefficients"]
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for matrix, result in zip(matrices, orthogonalize(matrices, coefficients, 5), strict=True):
        left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
        evened = sizes / sizes.norm()
        for _ in range(5):
            evened = sum(factor * evened**power for factor, power in zip(coefficients, (1, 3, 5), strict=True))
        torch.testing.assert_close(result, left @ torch.diag(evened) @ right)
        assert ((evened > 0.3) & (evened < 1.3)).all()


def test_a_checkpoint_goes_on_as_if_nothing_had_happened(tmp_path: Any) -> None:
    whole = Small()
    optimizer = MuonWithAdamW(whole, 0.01, 0.1)
    train(whole, optimizer, range(3))
    torch.save((whole.state_dict(), optimizer.state_dict()), tmp_path / "checkpoint")
    losses = train(whole, optimizer, range(3, 6))
    resumed = Small()
    model_state, optimizer_state = torch.load(tmp_path / "checkpoint")
    resumed.load_state_dict(model_state)
    optimizer = MuonWithAdamW(resumed, 0.01, 0.1)
    optimizer.load_state_dict(optimizer_state)
    assert train(resumed, optimizer, range(3, 6)) == losses


def test_a_schedule_moves_the_learning_rate_of_both_parts() -> None:
    model = Small()
    optimizer = MuonWithAdamW(model, 1.0, 0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, optimizer, range(1))
    schedule.step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("frozen", ["layer", "embed"])
def test_what_is_frozen_takes_no_part(frozen: str) -> None:
    model = Small()
    getattr(model, frozen).requires_grad_(requires_grad=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, MuonWithAdamW(model, 0.01, 0.0), range(2))
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert not any(key.startswith(frozen) for key in moved)
