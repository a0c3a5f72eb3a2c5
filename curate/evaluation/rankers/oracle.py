"""The oracle of a simulated dataset: the Bayes-optimal ranking, an upper bound for any re-ranker."""

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
    """Returns the Bayes-optimal ranking of each list of a simulated dataset.

    orders: the ranking by history and set of candidates. A task does not contain the id of its list, but these two
    identify it, even if its candidates are shuffled.
    """

    orders: Mapping[tuple[tuple[str, ...], frozenset[str]], Sequence[str]]
    name: str = ORACLE
    settings: dict[str, Any] = field(default_factory=dict)

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """Return the simulator's ranking of each task.

        It is empty, and thus invalid, for a list without a stored ranking.
        """
        for task in tasks:
            key = tuple(item.item_id for item in task.history), frozenset(given_order(task))
            yield Ranked(self.orders.get(key, ()))


def load_oracle(store: Store, dataset: str, pre_ranker: str, split: str) -> OracleRanker:
    """Load the stored oracle rankings of a split. Raises InputError if there are none."""
    with store.reading() as session:
        rows = session.rows("oracle_orders", dataset=dataset, pre_ranker=pre_ranker, split=split)
    if not rows:
        raise InputError(
            f"there are no oracle rankings for the {split} lists of {dataset!r}; gr2 candidates stores them for "
            "simulated datasets"
        )
    return OracleRanker({(tuple(history), frozenset(item_ids)): item_ids for history, item_ids in rows})


def put_oracle(store: Store, dataset: str, pre_ranker: str) -> RankerMetrics:
    """Store the oracle's ranking of every list that contains its target, with the metrics of these rankings.

    Returns the metrics by (split, ranker), or {} for a dataset that was not simulated. A second call changes nothing.

    Raises InputError if the dataset was simulated by another version of gr2.
    """
    with store.reading() as session:
        facts = find_dataset(session, dataset)
        if facts["source"] != SOURCE:
            return {}
        lists = session.frame("lists_with_target", dataset=dataset, pre_ranker=pre_ranker)
    if lists.height == 0:
        return {}
    # The settings include the seed, so this simulator is the one that drew the interactions.
    simulator = Simulator(SimulatorSettings(**orjson.loads(facts["settings"])["simulator"]))
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
    """Raise InputError if the simulator of this version of gr2 makes another catalogue than the dataset has."""
    stored = {item_id: title for item_id, title, *_ in session.rows("items_of", dataset=dataset)}
    if stored != {item.item_id: item.title for item in simulator.items()}:
        raise InputError(f"{dataset!r} was simulated by another version of gr2; simulate it again under another name")
