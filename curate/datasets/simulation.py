"""Simulated data sets in the store, and the ceiling: the order of candidates that no re-ranker can beat on average."""

from dataclasses import asdict

import numpy as np
import orjson
import polars as pl

from curate.datasets.catalogue import find_data_set
from curate.datasets.ingest import IngestSettings, IngestSummary, put_dataset
from curate.datasets.simulator import Simulator, SimulatorSettings
from curate.evaluation.evaluate import RankerMetrics, put_evaluation
from curate.evaluation.metrics import score_ranks
from store import InputError, Session, Store

SOURCE = "simulated"
OPTIMAL = "bayes_optimal"
KS = (1, 3, 5)


def simulate(store: Store, dataset: str, *, users: int = 2000, items: int = 600, seed: int = 0) -> IngestSummary:
    """Simulate users and store what they bought, split by leave-last-out.

    The same settings again change nothing. Raises InputError where another data set has the name.
    """
    settings = SimulatorSettings(users=users, items=items, seed=seed)
    simulator = Simulator(settings)
    catalogue = pl.DataFrame(
        [
            {
                "item_id": item.item_id,
                "title": item.title,
                "categories": list(item.categories),
                "brand": item.brand,
                "description": item.description,
            }
            for item in simulator.items()
        ],
        schema_overrides={"description": pl.String},
    )
    return put_dataset(
        store,
        dataset,
        catalogue,
        simulator.interactions(),
        source=SOURCE,
        source_settings={"simulator": asdict(settings)},
        settings=IngestSettings(k_core=0),
    )


def put_ceiling(store: Store, dataset: str, pre_ranker: str) -> RankerMetrics:
    """Order the candidates of every list that holds its target as the simulator knows best, store the orders and their
    metrics, and return these by (split, ranker).

    The same again changes nothing; a data set that was not simulated has no ceiling and gives {}.
    """
    with store.reading() as session:
        found = find_data_set(session, dataset)
        if found["source"] != SOURCE:
            return {}
        lists = session.frame("lists_with_target", dataset=dataset, pre_ranker=pre_ranker)
    if lists.height == 0:
        return {}
    simulator = Simulator(SimulatorSettings(**orjson.loads(found["settings"])["simulator"]))
    with store.reading() as session:
        _check_catalogue(session, dataset, simulator)
    orders, probabilities = simulator.optimal_rankings(lists["history"].to_list(), lists["item_ids"].to_list())
    rankings = lists.select("list_id").with_columns(
        pl.Series("item_ids", orders, dtype=pl.List(pl.String)),
        pl.Series("probabilities", probabilities, dtype=pl.List(pl.Float32)),
    )
    metrics: RankerMetrics = {}
    ranks = np.array([order.index(target) + 1 for order, target in zip(orders, lists["target_item_id"], strict=True)])
    for split in ("train", "valid", "test"):
        if (lists["split"] == split).any():
            metrics[split, OPTIMAL] = score_ranks(ranks[(lists["split"] == split).to_numpy()], KS)
    with store.writing() as session:
        session.put("optimal_rankings", rankings)
    put_evaluation(store, dataset, {}, metrics)
    return metrics


def _check_catalogue(session: Session, dataset: str, simulator: Simulator) -> None:
    """Raises InputError where this gr2 simulates another catalogue than the one that made the data set."""
    stored = {item_id: title for item_id, title, *_ in session.rows("items_of", dataset=dataset)}
    if stored != {item.item_id: item.title for item in simulator.items()}:
        raise InputError(f"{dataset!r} was simulated by another version of gr2: simulate it again under another name")
