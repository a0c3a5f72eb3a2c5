"""A tiny dataset whose every number can be worked out by hand, and a store that several configurations tried."""

import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from curate.datasets.ingest import IngestSettings, put_dataset
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from store import Store

Prepare = Callable[[Path, Callable[[Store], object]], Store]
PermuteItems = Callable[[Store, str], None]
START = datetime(2026, 1, 1)  # noqa: DTZ001


def shop(sequences: dict[str, list[str]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items a, b, c, ... named by the sequences, and interactions one day apart."""
    names = sorted({item for sequence in sequences.values() for item in sequence})
    items = pl.DataFrame(
        {
            "item_id": names,
            "title": [f"Item {name}" for name in names],
            "categories": [["Shop", "Even" if index % 2 == 0 else "Odd", name] for index, name in enumerate(names)],
            "brand": ["Acme" if index % 3 == 0 else "Other" for index in range(len(names))],
        }
    ).with_columns(pl.lit(None, pl.String).alias("description"))
    interactions = pl.DataFrame(
        [
            {"user_id": user, "item_id": item, "timestamp": START + timedelta(days=day)}
            for user, sequence in sequences.items()
            for day, item in enumerate(sequence)
        ]
    )
    return items, interactions


def put_shop(store: Store, name: str, sequences: dict[str, list[str]]) -> None:
    """Store a shop with all of its users and items."""
    items, interactions = shop(sequences)
    put_dataset(store, name, items, interactions, source="test", source_settings={}, settings=IngestSettings(k_core=0))


def put_tiny(store: Store) -> None:
    """Data set `tiny`: twelve users who mostly buy along the alphabet."""
    put_shop(
        store,
        "tiny",
        {
            f"u{number:02}": list(sequence)
            for number, sequence in enumerate(
                [
                    "abcde",
                    "abcdf",
                    "bcdea",
                    "acbde",
                    "fghij",
                    "ghijk",
                    "hijkl",
                    "fgihj",
                    "abfgc",
                    "klabc",
                    "jklde",
                    "cdehi",
                ]
            )
        },
    )


@pytest.fixture(scope="session")
def permute_items() -> PermuteItems:
    """`permute_items(store, where)` exchanges the items of the interactions that meet a condition in SQL, at random.

    What is fitted to other interactions alone must come out the same afterwards.
    """

    def permute(store: Store, where: str) -> None:
        with store.writing() as session:
            changed = session.connection.execute(
                f"""
                update interactions
                set item_id = other.item_id
                from (
                    select
                        dataset, user_id, position,
                        lag(item_id, 1, last_item) over (order by md5(user_id || position)) as item_id
                    from (
                        select *, last_value(item_id) over (
                            order by md5(user_id || position) rows between unbounded preceding and unbounded following
                        ) as last_item
                        from interactions
                        where {where}
                    )
                ) as other
                where interactions.dataset = other.dataset
                    and interactions.user_id = other.user_id
                    and interactions.position = other.position
                """
            ).fetchall()
        assert changed[0][0] > 1

    return permute


@pytest.fixture(scope="session")
def tiny_folder(prepare_folder: Callable[..., Path], empty_store_folder: Path) -> Path:
    """The folder of a store with dataset `tiny`. Only read it."""
    return prepare_folder(empty_store_folder, put_tiny)


@pytest.fixture
def tiny(tiny_folder: Path, tmp_path: Path) -> Store:
    """A store of one's own with dataset `tiny`."""
    return Store(shutil.copytree(tiny_folder, tmp_path / "store"))


def try_configurations(store: Store) -> None:
    """Traces of two arms on the same 30 lists, and of a third that answers one of them by what cannot be parsed."""
    for template in ("rerank_evidence.v1", "rerank.v1"):
        sample(store, EvidenceTeacher(), SamplingSettings("shop", limit=30, template=template, temperature=0.5))
    sample(store, FakeTeacher(lambda _: "no idea <b>"), SamplingSettings("shop", limit=1, max_attempts=1))


@pytest.fixture
def tried(prepare: Prepare, built_shop: Path) -> Store:
    """A shop of one's own that several arms tried."""
    return prepare(built_shop, try_configurations)
