from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curate.sids.quantizers import nearest_codes, sum_codes
from store import InputError
from train.sids.rq_vae_training import FittedRqVae, RqVaeQuantizer

SMALL = {"levels": 3, "codebook_size": 8, "random_levels": 0, "hidden": (16,), "latent": 4, "batch_size": 64}
NO_PAIRS = np.zeros((0, 2), np.int64)


def clusters(seed: int = 0) -> NDArray[np.float32]:
    """Sixty points in each of six places."""
    random = np.random.default_rng(seed)
    centres = np.repeat(random.normal(size=(6, 8)), 60, axis=0)
    return (centres + 0.1 * random.normal(size=centres.shape)).astype(np.float32)


def fit(
    points: NDArray[np.float32], pairs: NDArray[np.int64] = NO_PAIRS, **settings: object
) -> tuple[FittedRqVae, NDArray[np.int64]]:
    quantizer = RqVaeQuantizer(**{**SMALL, "epochs": 30, **settings})  # type: ignore[arg-type]
    fitted, codes = quantizer.fit(points, pairs, lambda _: None)
    assert isinstance(fitted, FittedRqVae)
    return fitted, codes


def unexplained(points: NDArray[np.float32], fitted: FittedRqVae, codes: NDArray[np.int64]) -> float:
    decoded = fitted.decode(sum_codes(codes, fitted.codebooks))
    return float(((points - decoded) ** 2).sum() / ((points - points.mean(axis=0)) ** 2).sum())


PAIRS = np.array([(row, row + 1) for row in range(0, 358, 2)])
SWITCHES = {
    "plain": {"kmeans_init": False, "ema_decay": 0.0},
    "k-means++": {"ema_decay": 0.0},
    "ema": {},
    "diversity": {"diversity_weight": 0.1},
    "reset": {"reset_after": 5},
    "contrastive": {"contrastive_weight": 0.1},
    "all": {"diversity_weight": 0.1, "reset_after": 5, "contrastive_weight": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize("settings", SWITCHES.values(), ids=SWITCHES.keys())
def test_with_any_switch_training_explains_the_vectors_and_repeats_itself(settings: dict[str, object]) -> None:
    points = clusters()
    fitted, codes = fit(points, PAIRS, **settings)
    assert unexplained(points, fitted, codes) < 0.35
    again, codes_again = fit(points, PAIRS, **settings)
    assert (codes == codes_again).all()
    assert all(torch.equal(a, b) for a, b in zip(fitted.model.parameters(), again.model.parameters(), strict=True))
    _, other = fit(points, PAIRS, **settings, seed=1)
    assert (codes != other).any()


def test_training_leaves_the_random_numbers_of_its_caller_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    fit(clusters(), epochs=1)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.slow
def test_the_contrastive_term_brings_what_is_bought_together_under_one_prefix() -> None:
    # Two kinds of text; each is bought with the other of its own number, never with its own kind.
    random = np.random.default_rng(0)
    points = (np.repeat(np.eye(8), 40, axis=0) + 0.05 * random.normal(size=(320, 8))).astype(np.float32)
    pairs = np.array([(40 * kind + row, 40 * (kind + 4) + row) for kind in range(4) for row in range(40)])

    def together(weight: float) -> float:
        _, codes = fit(points, pairs, contrastive_weight=weight, epochs=60, codebook_size=4)
        return float((codes[pairs[:, 0], 0] == codes[pairs[:, 1], 0]).mean())

    assert together(1.0) > together(0.0) + 0.3


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    points = clusters()
    fitted, codes = fit(points, epochs=3)
    fitted.save(tmp_path)
    loaded = FittedRqVae.load(tmp_path)
    assert loaded.settings == fitted.settings
    assert (nearest_codes(loaded.encode(points), loaded.codebooks) == codes).all()
    assert (loaded.decode(loaded.encode(points)) == fitted.decode(fitted.encode(points))).all()


def test_progress_tells_loss_perplexity_and_uniqueness() -> None:
    told: list[str] = []
    RqVaeQuantizer(**SMALL, epochs=2).fit(clusters(), NO_PAIRS, told.append)  # type: ignore[arg-type]
    assert told[-1].startswith("epoch 2 of 2: loss ")
    assert "perplexity" in told[-1]
    assert told[-1].endswith("distinct IDs in the fitted levels")


@pytest.mark.parametrize("points", [np.ones((1, 5)), np.zeros((7, 5)), np.eye(3, 5)], ids=["one", "equal", "few"])
@pytest.mark.parametrize("settings", SWITCHES.values(), ids=SWITCHES.keys())
def test_few_and_equal_vectors_are_fine(points: NDArray[np.float64], settings: dict[str, object]) -> None:
    pairs = np.array([(0, len(points) - 1)])
    fitted, codes = fit(points.astype(np.float32), pairs, **settings, epochs=5)
    assert codes.shape == (len(points), 3)
    assert np.isfinite(fitted.encode(points.astype(np.float32))).all()


def test_settings_that_cannot_be_are_clear_errors() -> None:
    with pytest.raises(InputError, match=r"`ema_decay` is 1.0; it must be from 0 to 0.9999"):
        RqVaeQuantizer(ema_decay=1.0)
    with pytest.raises(InputError, match="`epochs` is 0"):
        RqVaeQuantizer(epochs=0)
    with pytest.raises(InputError, match="there are none"):
        fit(clusters(), contrastive_weight=1.0)


def test_a_loss_that_is_not_finite_ends_training() -> None:
    points = clusters()
    points[3, 1] = np.nan
    with pytest.raises(InputError, match="the loss of epoch 1 is nan"):
        fit(points, kmeans_init=False)
