import itertools

import numpy as np
import pytest

from curate.datasets.simulator import BRANDS, LEAVES, ROUTINES, Simulator, SimulatorSettings
from store import InputError

SMALL = SimulatorSettings(users=50, items=2 * LEAVES, seed=3)


def test_the_same_seed_gives_the_same_shop_and_another_does_not() -> None:
    assert Simulator(SMALL).items() == Simulator(SMALL).items()
    assert Simulator(SMALL).interactions().equals(Simulator(SMALL).interactions())
    other = Simulator(SimulatorSettings(users=50, items=2 * LEAVES, seed=4))
    assert not other.interactions().equals(Simulator(SMALL).interactions())


def test_items_are_all_different_and_say_what_they_are() -> None:
    items = Simulator(SimulatorSettings(items=5_000)).items()
    assert len({item.item_id for item in items}) == len({item.title for item in items}) == 5_000
    assert {item.categories[-1] for item in items} == {step for steps in ROUTINES.values() for step in steps}
    assert {item.brand for item in items} == set(BRANDS)
    assert all(str(item.brand) in str(item.title) for item in items)


def test_nobody_buys_an_item_twice_and_times_go_on() -> None:
    for _, rows in Simulator(SMALL).interactions().group_by("user_id"):
        assert rows["item_id"].n_unique() == rows.height >= 5
        assert rows["timestamp"].is_sorted()


def predict_slowly(simulator: Simulator, history: list[str]) -> np.ndarray:
    """The definition, state by state, written without any of the simulator's shortcuts."""
    settings = simulator.settings
    ids = [item.item_id for item in simulator.items()]
    items = simulator.items()
    weights = simulator._weights_N
    routines = list(ROUTINES.items())

    def step(group: tuple[str, str], leaf: str, brand: str) -> np.ndarray:
        inside = np.array([weights[n] * (item.categories == (*group, leaf)) for n, item in enumerate(items)])
        loyal = np.array([inside[n] * (item.brand == brand) for n, item in enumerate(items)])
        loyal = loyal / loyal.sum() if loyal.sum() else inside / inside.sum()
        return settings.loyalty * loyal + (1 - settings.loyalty) * inside / inside.sum()

    total = np.zeros(len(ids))
    for (r, (group, leaves)), (b, brand) in itertools.product(enumerate(routines), enumerate(BRANDS)):
        chance = (1 + r) ** -0.5 * (1 + b) ** -0.5
        for at in range(len(history) + 1):
            own = np.mean([step(group, leaf, brand) for leaf in leaves], axis=0)
            following = own
            if at:
                last = items[ids.index(history[at - 1])].categories
                if last[:2] == group:
                    following = step(group, leaves[(leaves.index(last[2]) + 1) % len(leaves)], brand)
            mixed = settings.next_step * following + settings.same_routine * own
            mixed = mixed + (1 - settings.next_step - settings.same_routine) * weights / weights.sum()
            for item in history[:at]:
                mixed[ids.index(item)] = 0
            mixed = mixed / mixed.sum()
            if at < len(history):
                chance *= mixed[ids.index(history[at])]
        total += chance * mixed
    return total / total.sum()


def test_predictions_agree_with_the_definition() -> None:
    simulator = Simulator(SMALL)
    sequence = simulator.interactions().filter(user_id="U000007")["item_id"].to_list()
    for length in (0, 1, 3):
        expected = predict_slowly(simulator, sequence[:length])
        assert simulator.next_item_probabilities(sequence[:length]) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_predictions_are_distributions_over_what_is_not_bought() -> None:
    simulator = Simulator(SMALL)
    for _, rows in simulator.interactions().head(60).group_by("user_id"):
        history = rows["item_id"].to_list()
        probabilities = simulator.next_item_probabilities(history)
        assert probabilities.sum() == pytest.approx(1)
        assert (probabilities >= 0).all()
        assert all(probabilities[int(item[1:])] == 0 for item in history)


def test_predictions_are_calibrated() -> None:
    """What is bought next has, on average, the probability that was predicted of the best guess."""
    simulator = Simulator(SimulatorSettings(users=1_500, items=2 * LEAVES))
    hits, expected = [], []
    for _, rows in simulator.interactions().group_by("user_id", maintain_order=True):
        *history, target = rows["item_id"].to_list()
        probabilities = simulator.next_item_probabilities(history)
        hits.append(int(target[1:]) == probabilities.argmax())
        expected.append(probabilities.max())
    assert np.mean(hits) == pytest.approx(np.mean(expected), abs=3 * np.std(hits) / np.sqrt(len(hits)))


def test_the_oracle_order_is_by_probability() -> None:
    simulator = Simulator(SMALL)
    history = simulator.interactions()["item_id"].to_list()[:3]
    candidates = [item.item_id for item in simulator.items() if item.item_id not in history][:10]
    ((order,), (probabilities,)) = simulator.oracle_rankings([history], [candidates])
    everything = simulator.next_item_probabilities(history)
    assert sorted(order) == sorted(candidates)
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities == pytest.approx([everything[int(item[1:])] for item in order])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, "`users`"),
        ({"items": 10}, "`items`"),
        ({"next_step": 0.9}, "sum"),
        ({"loyalty": 1.5}, "loyalty is 1.5"),
        ({"mean_length": 4.0}, "mean_length is 4.0; it must be at least 5"),
    ],
)
def test_settings_out_of_range_are_clear_errors(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SimulatorSettings(**options)  # type: ignore[arg-type]
