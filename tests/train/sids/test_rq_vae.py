"""Each formula against a case worked out by hand and against a slow reference written apart from it."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from train.sids.rq_vae import (
    DeadCodes,
    EmaCodebooks,
    Quantization,
    RqVae,
    codebook_loss,
    commitment_loss,
    diversity_loss,
    info_nce,
    squared_error,
)

LINE = torch.tensor([[[0.0], [10.0]], [[-1.0], [1.0]]])


def model_on_a_line() -> RqVae:
    """One dimension, two levels, codes at 0 and 10, then -1 and 1."""
    model = RqVae(1, (), 1, 2, 2)
    model.codebooks_F_C_d.data.copy_(LINE)
    return model


def test_hand_worked_quantization() -> None:
    quantization = model_on_a_line().quantize(torch.tensor([[9.5], [0.75]]))
    assert quantization.codes_B_F.tolist() == [[1, 0], [0, 1]]
    assert quantization.residuals_F_B_d[..., 0].tolist() == [[9.5, 0.75], [-0.5, 0.75]]
    assert quantization.chosen_F_B_d[..., 0].tolist() == [[10.0, 0.0], [-1.0, 1.0]]
    # (9.5-10)^2 + (.75-0)^2 at the first level, (-.5+1)^2 + (.75-1)^2 at the second, over two latents
    assert float(commitment_loss(quantization)) == pytest.approx((0.25 + 0.5625 + 0.25 + 0.0625) / 2)
    assert codebook_loss(quantization).item() == pytest.approx(float(commitment_loss(quantization)))


def test_straight_through_has_the_codes_value_and_the_latents_gradient() -> None:
    latents = torch.tensor([[9.5], [0.75]], requires_grad=True)
    through = model_on_a_line().quantize(latents).straight_through(latents)
    assert through[:, 0].tolist() == [9.0, 1.0]
    (3 * through).sum().backward()
    assert latents.grad is not None
    assert latents.grad[:, 0].tolist() == [3.0, 3.0]


def test_each_loss_moves_only_what_it_is_for() -> None:
    model = model_on_a_line()
    latents = torch.tensor([[9.5]], requires_grad=True)
    codebook_loss(model.quantize(latents)).backward()
    assert latents.grad is None
    # 2 * (code - residual): 2 * (10 - 9.5), and 2 * (-1 + 0.5)
    assert model.codebooks_F_C_d.grad is not None
    assert model.codebooks_F_C_d.grad[..., 0].tolist() == [[0.0, 1.0], [-1.0, 0.0]]
    model.zero_grad()
    commitment_loss(model.quantize(latents)).backward()
    assert model.codebooks_F_C_d.grad is None
    # 2 * (9.5 - 10) of the first level, 2 * (-0.5 + 1) of the second
    assert latents.grad is not None
    assert latents.grad.item() == pytest.approx(0.0)


def test_the_squared_error_sums_over_dimensions() -> None:
    assert float(squared_error(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2))) == 2.5


def test_diversity_is_one_for_even_use_and_the_codebook_size_for_one_code() -> None:
    codebook = torch.tensor([[[0.0], [100.0]]])
    even = torch.tensor([[[0.1], [99.9], [-0.1], [100.1]]])
    alone = torch.tensor([[[0.1], [-0.1]]])
    assert float(diversity_loss(even, codebook)) == pytest.approx(1.0)
    assert float(diversity_loss(alone, codebook)) == pytest.approx(2.0)


def slow_diversity(residuals: Tensor, codebooks: Tensor) -> float:
    total = 0.0
    for level, codebook in enumerate(codebooks.tolist()):
        rows = residuals[level].tolist()
        distances = [[sum((a - b) ** 2 for a, b in zip(row, code, strict=True)) for code in codebook] for row in rows]
        tau = sum(min(row) for row in distances) / len(rows)
        shares = [0.0] * len(codebook)
        for row in distances:
            lowest = min(row)
            weights = [math.exp(-(distance - lowest) / tau) for distance in row]
            for code, weight in enumerate(weights):
                shares[code] += weight / sum(weights) / len(rows)
        total += len(codebook) * sum(share**2 for share in shares)
    return total / len(codebooks)


@given(st.integers(0, 1000))
def test_diversity_agrees_with_a_loop_and_stays_within_its_bounds(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    residuals, codebooks = torch.randn(2, 6, 3, generator=random), torch.randn(2, 5, 3, generator=random)
    loss = float(diversity_loss(residuals, codebooks))
    assert loss == pytest.approx(slow_diversity(residuals, codebooks), rel=1e-3)
    assert 1 - 1e-5 <= loss <= 5 + 1e-5


def slow_info_nce(left: Tensor, right: Tensor, items: list[list[int]], temperature: float) -> float:
    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    total = 0.0
    pairs = range(len(items))
    for own in pairs:
        for towards in (0, 1):
            score = {}
            for other in pairs:
                # Rows are left ends, columns right ends; `own` is the row going one way and the column going the other.
                row, column = (own, other) if towards == 0 else (other, own)
                the_same = items[column][1] in {items[row][1], items[row][0]} or items[row][0] == items[column][0]
                if other == own or not the_same:
                    score[other] = math.exp(cosine(left[row], right[column]) / temperature)
            total -= math.log(score[own] / sum(score.values()))
    return total / (2 * len(items))


@given(st.integers(0, 1000), st.integers(1, 7))
def test_info_nce_agrees_with_a_loop(seed: int, pairs: int) -> None:
    random = torch.Generator().manual_seed(seed)
    left, right = torch.randn(pairs, 4, generator=random), torch.randn(pairs, 4, generator=random)
    items = torch.randint(4, (pairs, 2), generator=random)
    wanted = slow_info_nce(left, right, items.tolist(), 0.5)
    assert float(info_nce(left, right, items, 0.5)) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_hand_worked_info_nce() -> None:
    # Ends of a pair are equal and ends of different pairs orthogonal: -log(e / (e + 1)) at temperature 1.
    ends = torch.eye(2)
    items = torch.tensor([[0, 1], [2, 3]])
    assert float(info_nce(ends, ends, items, 1.0)) == pytest.approx(-math.log(math.e / (math.e + 1)))
    # The other pair's right end is this very item: it is no negative, and nothing is left to tell apart.
    assert float(info_nce(ends, ends, torch.tensor([[0, 1], [2, 1]]), 1.0)) == pytest.approx(0.0)


def quantized(codes: list[list[int]], residuals: list[list[float]]) -> Quantization:
    seen = torch.tensor(residuals)[..., None]
    return Quantization(torch.tensor(codes), seen, torch.zeros_like(seen))


def test_hand_worked_moving_average() -> None:
    codebooks = torch.tensor([[[2.0], [7.0]]])
    ema = EmaCodebooks(codebooks, decay=0.75)
    ema.update(codebooks, quantized([[0], [0], [0]], [[4.0, 5.0, 6.0]]))
    # counts: .75 * 1 + .25 * 3 = 1.5 and .75; sums: .75 * 2 + .25 * 15 = 5.25 and .75 * 7
    assert codebooks[0, :, 0].tolist() == pytest.approx([3.5, 7.0])
    ema.restart(0, torch.tensor([1]), torch.tensor([[-3.0]]))
    ema.update(codebooks, quantized([[1]], [[-5.0]]))
    # .75 * -3 + .25 * -5 over .75 + .25
    assert codebooks[0, 1].item() == pytest.approx(-3.5)


def test_a_code_that_fades_for_ever_keeps_its_place() -> None:
    codebooks = torch.tensor([[[2.0], [7.0]]])
    ema = EmaCodebooks(codebooks, decay=0.5)
    for _ in range(200):
        ema.update(codebooks, quantized([[0]], [[3.0]]))
    assert codebooks[0, :, 0].tolist() == pytest.approx([3.0, 7.0])


def test_the_moving_average_ends_at_the_mean_of_what_is_assigned_at_every_level() -> None:
    random = torch.Generator().manual_seed(0)
    codebooks = torch.randn(4, 3, 2, generator=random)
    points = torch.randn(4, 30, 2, generator=random)
    codes = torch.randint(3, (30, 4), generator=random)
    ema = EmaCodebooks(codebooks, decay=0.9)
    for _ in range(400):
        ema.update(codebooks, Quantization(codes, points, points))
    for level, code in product(range(4), range(3)):
        assert codebooks[level, code].tolist() == pytest.approx(
            points[level][codes[:, level] == code].mean(dim=0).tolist(), abs=1e-4
        )


def test_dead_codes_go_to_the_worst_reconstructed_latents() -> None:
    codebooks = torch.tensor([[[0.0], [50.0], [60.0]]])
    dead = DeadCodes(1, 3, 2, torch.device("cpu"))
    batch = quantized([[0], [0], [0]], [[1.0, 9.0, -4.0]])
    assert dead.reset(codebooks, batch, None) == 0
    assert dead.reset(codebooks, batch, None) == 2
    assert codebooks[0, :, 0].tolist() == [0.0, 9.0, -4.0]
    assert dead.reset(codebooks, batch, None) == 0  # the count begins anew


def test_no_more_codes_move_than_there_are_latents_and_averages_begin_anew() -> None:
    codebooks = torch.tensor([[[0.0], [50.0], [60.0]]])
    ema = EmaCodebooks(codebooks, decay=0.5)
    assert DeadCodes(1, 3, 1, torch.device("cpu")).reset(codebooks, quantized([[0]], [[3.0]]), ema) == 1
    assert codebooks[0, :, 0].tolist() == [0.0, 3.0, 60.0]
    assert ema.sum_F_C_d[0, 1].item() == 3.0
