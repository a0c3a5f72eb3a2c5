"""Simulated datasets in the store."""

from dataclasses import asdict

import polars as pl

from curate.datasets.ingest import IngestSettings, IngestSummary, put_dataset
from curate.datasets.simulator import Simulator, SimulatorSettings
from store import Store

SOURCE = "simulated"
DEFAULTS = SimulatorSettings()


def simulate(
    store: Store,
    dataset: str,
    *,
    users: int = DEFAULTS.users,
    items: int = DEFAULTS.items,
    seed: int = DEFAULTS.seed,
) -> IngestSummary:
    """Simulate users and store their purchases as a dataset, split by leave-last-out.

    If the store already has the same dataset, nothing changes. Raises InputError if another dataset has the name.
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
