"""Shops whose items' texts can be chosen."""

from collections.abc import Callable, Sequence

import polars as pl
import pytest

from curate.datasets.ingest import IngestSettings, put_dataset
from store import Store


@pytest.fixture
def put_texts(store: Store) -> Callable[[str, Sequence[str]], None]:
    """Stores a dataset of items i000, i001, ... with these titles, each bought by two users."""

    def put(name: str, titles: Sequence[str]) -> None:
        items = pl.DataFrame(
            {
                "item_id": [f"i{row:03}" for row in range(len(titles))],
                "title": titles,
                "categories": pl.Series([[]] * len(titles), dtype=pl.List(pl.String)),
                "brand": pl.Series([None] * len(titles), dtype=pl.String),
                "description": pl.Series([None] * len(titles), dtype=pl.String),
            }
        )
        interactions = pl.DataFrame(
            [{"user_id": user, "item_id": item} for user in ("u", "v") for item in items["item_id"]]
        ).with_columns(timestamp=pl.lit(None, pl.Datetime))
        put_dataset(
            store, name, items, interactions, source="test", source_settings={}, settings=IngestSettings(k_core=0)
        )

    return put
