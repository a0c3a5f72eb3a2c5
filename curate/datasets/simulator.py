"""Simulates shoppers with known reasons: a catalogue with purchase routines, and users who follow them with noise.

Each user has a hidden routine (shampoo, conditioner, hair mask, styling gel) and a hidden favourite brand. The next
item is drawn from the items not yet bought. The distribution is a mixture of three parts: the routine's next step after
the last item, any step of the routine, and any item by popularity. Within a step the favourite brand is preferred.

There are finitely many hidden states, so the probability of every next item given the history is exact. It gives an
oracle: the best possible order of any candidates, an upper bound for every re-ranker. The simulator is our own; the
papers have none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

from store import InputError
from store.records import Item
from store.settings import check, option

ROUTINES: dict[tuple[str, str], tuple[str, ...]] = {
    ("Beauty", "Hair Care"): ("Shampoo", "Conditioner", "Hair Mask", "Styling Gel"),
    ("Beauty", "Skin Care"): ("Cleanser", "Toner", "Serum", "Moisturiser"),
    ("Beauty", "Nails"): ("Polish Remover", "Base Coat", "Nail Polish", "Top Coat"),
    ("Beauty", "Make-up"): ("Primer", "Foundation", "Concealer", "Setting Powder"),
    ("Grooming", "Shaving"): ("Pre-shave Oil", "Shaving Cream", "Razor", "After-shave Balm"),
    ("Household", "Laundry"): ("Detergent", "Fabric Softener", "Stain Remover"),
    ("Household", "Dishes"): ("Dish Soap", "Sponge", "Rinse Aid"),
    ("Garden", "Vegetable Bed"): ("Seeds", "Potting Soil", "Fertiliser", "Plant Stakes"),
    ("Kitchen", "Espresso"): ("Espresso Beans", "Tamper", "Milk Jug", "Descaler"),
    ("Sports", "Running"): ("Running Socks", "Energy Gel", "Blister Plaster", "Recovery Balm"),
}
BRANDS = ("Alderly", "Brightwell", "Corvane", "Dunmere", "Eastholm", "Fennick", "Greyfold", "Harrowby")
LINES = (
    "Essential",
    "Pure",
    "Daily",
    "Gentle",
    "Active",
    "Classic",
    "Fresh",
    "Sensitive",
    "Intense",
    "Natural",
    "Soft",
)
LEAVES = sum(len(steps) for steps in ROUTINES.values())
# The number of purchases of the user with the fewest.
SHORTEST = 5
START = datetime(2024, 1, 1)  # noqa: DTZ001


@dataclass(frozen=True, slots=True)
class SimulatorSettings:
    """Settings of the simulator.

    users, items: their numbers; there are at least two items of each kind of product. next_step, same_routine:
    probability of the first two parts of the mixture; the rest is noise. loyalty: probability that an item of a step is
    of the favourite brand. mean_length: mean length of a history, at least 5.
    """

    users: int = option(2000, help="Number of simulated users.", low=1)
    items: int = option(600, help="Number of items in the catalogue.", low=2 * LEAVES)
    seed: int = option(0, help="Seed; the same seed gives the same data.", low=0)
    next_step: float = 0.6
    same_routine: float = 0.2
    loyalty: float = 0.75
    mean_length: float = 9.0

    def __post_init__(self) -> None:
        check(self)
        if min(self.next_step, self.same_routine) < 0 or self.next_step + self.same_routine >= 1:
            raise InputError("next_step and same_routine must be 0 or more, and their sum under 1")
        if not 0 <= self.loyalty <= 1:
            raise InputError(f"loyalty is {self.loyalty}; it must be a probability, from 0 to 1")
        if not self.mean_length >= SHORTEST:
            raise InputError(f"mean_length is {self.mean_length}; it must be at least {SHORTEST}")


class Simulator:
    """The catalogue, its users, and the best recommendations for them. All three depend only on the settings.

    Hidden states are numbered by routine, then by brand: S = routines x brands.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        self.settings = settings
        self._leaf_N = np.arange(settings.items) % LEAVES
        self._brand_N = np.arange(settings.items) // LEAVES % len(BRANDS)
        rank_N = np.arange(settings.items) // LEAVES
        # The popularity of items is shuffled. Otherwise the first brand would lead in every product.
        shuffle = np.random.default_rng([settings.seed, 1])
        weights_N = np.empty(settings.items)
        for leaf in range(LEAVES):
            members = np.flatnonzero(self._leaf_N == leaf)
            weights_N[members] = 1.0 / (1.0 + shuffle.permutation(rank_N[members])) ** 0.8
        self._weights_N = weights_N
        self._numbers = {item_id: number for number, item_id in enumerate(self._item_ids)}
        self._likelihoods: dict[tuple[int, ...], NDArray[np.float64]] = {}

    @cached_property
    def _item_ids(self) -> list[str]:
        width = len(str(self.settings.items - 1))
        return [f"P{number:0{width}}" for number in range(self.settings.items)]

    def items(self) -> list[Item]:
        """The catalogue. All titles are different."""
        leaves = [(*group, step) for group, steps in ROUTINES.items() for step in steps]
        catalogue = []
        for number, item_id in enumerate(self._item_ids):
            categories = leaves[self._leaf_N[number]]
            brand = BRANDS[self._brand_N[number]]
            again = number // LEAVES // len(BRANDS)
            line = LINES[(again + self._leaf_N[number]) % len(LINES)]
            size = f", No. {again // len(LINES) + 1}" if again >= len(LINES) else ""
            catalogue.append(Item(item_id, f"{brand} {line} {categories[-1]}{size}", categories, brand))
        return catalogue

    def interactions(self) -> pl.DataFrame:
        """The purchases of all users, with columns user_id, item_id and timestamp."""
        rng = np.random.default_rng([self.settings.seed, 2])
        users: list[str] = []
        numbers: list[int] = []
        times: list[datetime] = []
        for user in range(self.settings.users):
            moment = START + timedelta(days=float(rng.uniform(0, 300)))
            for number in self._draw_sequence(rng):
                users.append(f"U{user:06}")
                numbers.append(number)
                times.append(moment)
                moment += timedelta(days=float(rng.exponential(12)), hours=1)
        return pl.DataFrame(
            {
                "user_id": users,
                "item_id": [self._item_ids[number] for number in numbers],
                "timestamp": pl.Series(times, dtype=pl.Datetime("us")),
            }
        )

    def next_item_probabilities(self, history: Sequence[str]) -> NDArray[np.float64]:
        """The exact probability of each item to be bought next, in catalogue order; 0 for items already bought.

        Raises KeyError if an item of the history is not in the catalogue.
        """
        numbers = tuple(self._numbers[item] for item in history)
        probabilities_N = self._predict(numbers, np.arange(self.settings.items))
        probabilities_N[list(numbers)] = 0.0
        return probabilities_N

    def oracle_rankings(
        self, histories: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]
    ) -> tuple[list[list[str]], list[list[float]]]:
        """For each history, its candidates from the most to the least probable, and their probabilities.

        Raises KeyError if an item is not in the catalogue.
        """
        orders, probabilities = [], []
        for history, items in zip(histories, candidates, strict=True):
            numbers = np.array([self._numbers[item] for item in items])
            found_K = self._predict(tuple(self._numbers[item] for item in history), numbers)
            order = np.argsort(-found_K, kind="stable")
            orders.append([items[place] for place in order])
            probabilities.append(found_K[order].tolist())
        return orders, probabilities

    @cached_property
    def _priors_S(self) -> NDArray[np.float64]:
        routines_R = 1.0 / (1.0 + np.arange(len(ROUTINES))) ** 0.5
        brands_B = 1.0 / (1.0 + np.arange(len(BRANDS))) ** 0.5
        priors_S = np.outer(routines_R, brands_B).ravel()
        total = float(priors_S.sum())
        normalised_S: NDArray[np.float64] = priors_S / total
        return normalised_S

    @cached_property
    def _step_L_B_N(self) -> NDArray[np.float64]:
        """P(item | step of a routine, favourite brand)."""
        inside_L_N = (self._leaf_N == np.arange(LEAVES)[:, None]) * self._weights_N
        inside_L_N /= inside_L_N.sum(axis=1, keepdims=True)
        loyal_L_B_N = inside_L_N[:, None] * (self._brand_N == np.arange(len(BRANDS))[:, None])
        sums_L_B = loyal_L_B_N.sum(axis=2, keepdims=True)
        any_L_B_N = np.broadcast_to(inside_L_N[:, None], loyal_L_B_N.shape)
        # If a step has no item of the brand, the choice is among all items of the step.
        loyal_L_B_N = np.where(sums_L_B > 0, loyal_L_B_N / np.maximum(sums_L_B, 1e-300), any_L_B_N)
        mixed_L_B_N: NDArray[np.float64] = self.settings.loyalty * loyal_L_B_N + (1 - self.settings.loyalty) * any_L_B_N
        return mixed_L_B_N

    @cached_property
    def _leaves_of_routine(self) -> list[list[int]]:
        numbers = iter(range(LEAVES))
        return [[next(numbers) for _ in steps] for steps in ROUTINES.values()]

    @cached_property
    def _without_last_S_N(self) -> NDArray[np.float64]:
        """P(item | state) for an empty history."""
        settings = self.settings
        routine_R_B_N = np.stack([self._step_L_B_N[leaves].mean(axis=0) for leaves in self._leaves_of_routine])
        noise_N = self._weights_N / self._weights_N.sum()
        follows = settings.next_step + settings.same_routine
        mixed_R_B_N: NDArray[np.float64] = follows * routine_R_B_N + (1 - follows) * noise_N
        return mixed_R_B_N.reshape(-1, settings.items)

    @cached_property
    def _by_last_leaf(self) -> list[NDArray[np.float64]]:
        """P(item | state, leaf of the last item), each of shape (S, N), where bought items still have a probability.

        The routine of the leaf continues with its next step; the first step follows the last one. Other routines have
        no next step.
        """
        by_leaf = []
        brands = len(BRANDS)
        for routine, leaves in enumerate(self._leaves_of_routine):
            for place in range(len(leaves)):
                mixed_S_N = self._without_last_S_N.copy()
                states = slice(routine * brands, (routine + 1) * brands)
                following = leaves[(place + 1) % len(leaves)]
                routine_B_N = self._step_L_B_N[leaves].mean(axis=0)
                mixed_S_N[states] += self.settings.next_step * (self._step_L_B_N[following] - routine_B_N)
                by_leaf.append(mixed_S_N)
        return by_leaf

    def _mixture_S_N(self, history: tuple[int, ...]) -> NDArray[np.float64]:
        return self._by_last_leaf[self._leaf_N[history[-1]]] if history else self._without_last_S_N

    def _draw_sequence(self, rng: np.random.Generator) -> list[int]:
        """The numbers of one user's items, in order of purchase."""
        state = int(rng.choice(len(self._priors_S), p=self._priors_S))
        length = SHORTEST + int(rng.poisson(self.settings.mean_length - SHORTEST))
        numbers: list[int] = []
        for _ in range(length):
            chances_N = self._mixture_S_N(tuple(numbers[-1:]))[state].copy()
            chances_N[numbers] = 0.0
            steps_N = np.cumsum(chances_N)
            numbers.append(int(np.searchsorted(steps_N, rng.random() * steps_N[-1], side="right")))
        return numbers

    def _likelihood_S(self, history: tuple[int, ...]) -> NDArray[np.float64]:
        """log P(history | state). It is cached for each prefix, because the lists of one user share prefixes."""
        known = self._likelihoods.get(history)
        if known is None:
            if not history:
                known = np.zeros(len(self._priors_S))
            else:
                *before, last = history
                earlier = tuple(before)
                known = self._likelihood_S(earlier) + np.log(self._given_state(earlier, np.array([last]))[:, 0])
            self._likelihoods[history] = known
        return known

    def _given_state(self, history: tuple[int, ...], items: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(item | state, history) of shape (S, items): the mixture, normalised over the items not yet bought."""
        mixture_S_N = self._mixture_S_N(history)
        left_S = 1.0 - mixture_S_N[:, list(history)].sum(axis=1)
        given_S_K: NDArray[np.float64] = mixture_S_N[:, items] / left_S[:, None]
        return given_S_K

    def _predict(self, history: tuple[int, ...], items: NDArray[np.int64]) -> NDArray[np.float64]:
        """P(item | history): the mean over the states, weighted by the posterior P(state | history)."""
        log_S = np.log(self._priors_S) + self._likelihood_S(history)
        posterior_S = np.exp(log_S - log_S.max())
        posterior_S /= posterior_S.sum()
        predicted: NDArray[np.float64] = posterior_S @ self._given_state(history, items)
        return predicted
