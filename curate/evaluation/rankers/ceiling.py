"""The ceiling of a simulated data set: the order of candidates that no ranker can beat on average."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curate.datasets.simulation import OPTIMAL
from curate.evaluation.rankers.protocol import Ranked, given_order
from prompts.tasks import RerankTask
from store import InputError, Store


@dataclass(frozen=True, slots=True)
class CeilingRanker:
    """The order that no ranker can beat on average, for the lists of a simulated data set.

    orders: by what a task shows, its history and the set of its candidates: a task does not say which list it is.
    """

    orders: Mapping[tuple[tuple[str, ...], frozenset[str]], Sequence[str]]
    name: str = OPTIMAL
    settings: dict[str, Any] = field(default_factory=dict)

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """The simulator's order; not valid for a list that it has not ordered."""
        for task in tasks:
            shown = tuple(item.item_id for item in task.history), frozenset(given_order(task))
            yield Ranked(self.orders.get(shown, ()))


def load_ceiling(store: Store, dataset: str, pre_ranker: str, split: str) -> CeilingRanker:
    """The optimal orders that the store holds. Raises InputError where it holds none."""
    with store.reading() as session:
        rows = session.rows("optimal_orders", dataset=dataset, pre_ranker=pre_ranker, split=split)
    if not rows:
        raise InputError(
            f"the best order of {split} lists of {dataset!r} is not known; gr2 candidates stores it for simulated data"
        )
    return CeilingRanker({(tuple(history), frozenset(item_ids)): item_ids for history, item_ids in rows})
