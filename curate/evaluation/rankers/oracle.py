"""The oracle of a simulated dataset: the order of candidates that no ranker can beat on average."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import polars as pl

from curate.datasets.catalogue import find_dataset
from curate.datasets.simulation import SOURCE
from curate.datasets.simulator import Simulator, SimulatorSettings
from curate.evaluation.metrics import score_ranks
from curate.evaluation.rankers.protocol import Ranked, given_order
from curate.evaluation.results import RankerMetrics, put_evaluation
from prompts.tasks import RerankTask
from store import InputError, Session, Store

ORACLE = "oracle"
KS = (1, 3, 5)


@dataclass(frozen=True, slots=True)
class OracleRanker:
    """The order that no ranker can beat on average, for the lists of a simulated dataset.

    orders: by what a task shows, its history and the set of its candidates: a task does not say which list it is.
    """

    orders: Mapping[tuple[tuple[str, ...], frozenset[str]], Sequence[str]]
    name: str = ORACLE
    settings: dict[str, Any] = field(default_factory=dict)

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """The simulator's order; not valid for a list that it has not ordered."""
        for task in tasks:
            shown = tuple(item.item_id for item in task.history), frozenset(given_order(task))
            yield Ranked(self.orders.get(shown, ()))


def load_oracle(store: Store, dataset: str, pre_ranker: str, split: str) -> OracleRanker:
    """The optimal orders that the store holds. Raises InputError where it holds none."""
    with store.reading() as session:
        rows = session.rows("oracle_orders", dataset=dataset, pre_ranker=pre_ranker, split=split)
    if not rows:
        raise InputError(
            f"the best order of {split} lists of {dataset!r} is not known; gr2 candidates stores it for simulated data"
        )
    return OracleRanker({(tuple(history), frozenset(item_ids)): item_ids for history, item_ids in rows})


def put_oracle(store: Store, dataset: str, pre_ranker: str) -> RankerMetrics:
    """Order the candidates of every list that holds its target as the simulator knows best, store the orders and their
    metrics, and return these by (split, ranker).

    The same again changes nothing; a dataset that was not simulated has no oracle and gives {}.
    """
    with store.reading() as session:
        found = find_dataset(session, dataset)
        if found["source"] != SOURCE:
            return {}
        lists = session.frame("lists_with_target", dataset=dataset, pre_ranker=pre_ranker)
    if lists.height == 0:
        return {}
    simulator = Simulator(SimulatorSettings(**orjson.loads(found["settings"])["simulator"]))
    with store.reading() as session:
        _check_catalogue(session, dataset, simulator)
    orders, probabilities = simulator.oracle_rankings(lists["history"].to_list(), lists["item_ids"].to_list())
    rankings = lists.select("list_id").with_columns(
        pl.Series("item_ids", orders, dtype=pl.List(pl.String)),
        pl.Series("probabilities", probabilities, dtype=pl.List(pl.Float32)),
    )
    metrics: RankerMetrics = {}
    ranks = np.array([order.index(target) + 1 for order, target in zip(orders, lists["target_item_id"], strict=True)])
    for split in ("train", "valid", "test"):
        if (lists["split"] == split).any():
            metrics[split, ORACLE] = score_ranks(ranks[(lists["split"] == split).to_numpy()], KS)
    with store.writing() as session:
        session.put("oracle_rankings", rankings)
    put_evaluation(store, dataset, {}, metrics)
    return metrics


def _check_catalogue(session: Session, dataset: str, simulator: Simulator) -> None:
    """Raises InputError where this gr2 simulates another catalogue than the one that made the dataset."""
    stored = {item_id: title for item_id, title, *_ in session.rows("items_of", dataset=dataset)}
    if stored != {item.item_id: item.title for item in simulator.items()}:
        raise InputError(f"{dataset!r} was simulated by another version of gr2: simulate it again under another name")
