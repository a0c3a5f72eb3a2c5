"""Simulated data sets in the store, and the ceiling: the order of candidates that no re-ranker can beat on average."""

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
import orjson
import polars as pl

from curate.evaluation import RankerMetrics, put_evaluation
from curate.ingest import IngestSettings, IngestSummary, put_dataset
from curate.metrics import score_ranks
from curate.simulator import Simulator, SimulatorSettings
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
