"""Inputs of the kinds that people met in the field, from the folder `cases` beside that of the real data."""

from pathlib import Path
from typing import Any

import pytest

from curate.datasets.ingest import IngestSettings, IngestSummary, ingest
from store import InputError, Store


@pytest.fixture(scope="session")
def cases(real_data: Path) -> Path:
    folder = real_data.parent / "cases" / "ingest"
    if not folder.is_dir():
        pytest.skip(f"no inputs from the field in {folder}")
    return folder


def run(store: Store, folder: Path, items: str | None, interactions: str, **options: Any) -> IngestSummary:
    settings = IngestSettings(**{"k_core": 0, **options})
    return ingest(store, "shop", folder / items if items else None, folder / interactions, settings)


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_kuairand_is_ordered_by_its_finest_time(store: Store, cases: Path) -> None:
    run(store, cases / "kuairand", None, "log_standard.csv")
    assert fetch(store, "select distinct year(timestamp) from interactions") == [(2022,)]
    last = fetch(store, "select user_id::int, item_id::int from interactions where split = 'test' order by all")
    assert last == [(user, (user + 7) % 8) for user in range(6)]


@pytest.mark.parametrize("name", ["ratings.csv", "ratings.parquet", "ratings_int.csv"])
def test_identifiers_as_floats_are_joined_on_the_number(store: Store, cases: Path, name: str) -> None:
    summary = run(store, cases / "float_ids", "items.csv", name)
    assert (summary.items, summary.interactions, summary.dropped_unknown) == (8, 36, 0)
    assert fetch(store, "select distinct categories from items") == [([],)]


def test_recboles_sequences_are_separated_by_blanks(store: Store, cases: Path) -> None:
    run(store, cases / "recbole_atomic", "mini.item", "mini.inter")
    assert len(fetch(store, "select distinct unnest(categories) from items")) == 6
    assert fetch(store, "select len(categories) from items where item_id = '1'") == [(3,)]


@pytest.mark.parametrize("items", ["items_decimal.parquet", "items_nested.parquet", "items_ok.parquet"])
@pytest.mark.parametrize("interactions", ["inter_decimal_rating.parquet", "inter_ns.parquet"])
def test_parquet_is_read_by_value(store: Store, cases: Path, items: str, interactions: str) -> None:
    assert run(store, cases / "parquet_types", items, interactions).interactions == 36
    nested = items == "items_nested.parquet"
    assert fetch(store, "select distinct title[1], categories, brand from items") == [
        ("T", ["A", "B"] if nested else [], "B" if nested else None)
    ]
    assert fetch(store, "select min(timestamp)::date::varchar from interactions") == [("2014-05-13",)]
    rating = 4.5 if "rating" in interactions else None
    assert fetch(store, "select distinct rating from interactions") == [(rating,)]


def test_not_a_number_matters_only_where_something_uses_it(store: Store, cases: Path) -> None:
    with pytest.raises(InputError, match=r"inter\.jsonl:1: rating is nan"):
        run(store, cases / "json_nan", "items.jsonl", "inter.jsonl", min_rating=3)
    assert run(store, cases / "json_nan", "items.jsonl", "inter.jsonl").interactions == 36
    assert fetch(store, "select distinct brand from items") == [(None,)]


def test_tsv_with_csv_quotes_is_read_as_it_was_written(store: Store, cases: Path) -> None:
    run(store, cases / "tsv_quotes", "items.tsv", "inter.tsv")
    titles = dict(fetch(store, "select item_id, title from items"))
    assert (titles["I0"], titles["I3"]) == ('The "Best" thing 0', "Two\tparts")


def test_csv_keeps_blank_lines_within_quotes(store: Store, cases: Path) -> None:
    run(store, cases / "tsv_quotes", "items.csv", "inter.tsv")
    assert fetch(store, "select title from items where item_id = 'I0'") == [('The "Best", thing\n\nline 0',)]


def test_amazons_duplicates_are_dropped_and_missing_metadata_is_told(store: Store, cases: Path) -> None:
    folder = cases / "amazon2023_duplicates"
    with pytest.raises(InputError, match=r"item 'I0' is not in .*`drop_unknown_items`"):
        run(store, folder, "meta_missing_one.jsonl", "reviews.jsonl")
    summary = run(store, folder, "meta.jsonl", "reviews.jsonl")
    assert (summary.items, summary.dropped_repeated_items, summary.interactions) == (8, 1, 36)
    again = Store.open(store.folder.parent / "again", create=True)
    summary = run(again, folder, "meta_missing_one.jsonl", "reviews.jsonl", drop_unknown_items=True, min_rating=1)
    assert (summary.items, summary.dropped_low_rating, summary.dropped_unknown) == (7, 1, 4)


@pytest.mark.parametrize(
    ("folder", "items", "interactions"),
    [
        ("goodreads", "goodreads_books.json", "goodreads_inter.json"),
        ("rees46", "plain_items.csv", "rees46.csv"),
        ("rees46", None, "rees46.csv"),
        ("steam", "steam_games.json", "steam_reviews.json"),
        ("hm", "articles.csv", "transactions.csv"),
    ],
)
def test_common_dumps_are_read_as_they_are(
    store: Store, cases: Path, folder: str, items: str | None, interactions: str
) -> None:
    summary = run(store, cases / folder, items, interactions)
    assert (summary.users, summary.items, summary.interactions) == (6, 8, 36)
    assert summary.first_time is not None
    assert f"{summary.first_time:%Y-%m-%d}" == "2014-05-13"


def test_leading_zeros_are_kept(store: Store, cases: Path) -> None:
    summary = run(store, cases / "hm", "articles.csv", "transactions.csv")
    assert fetch(store, "select min(item_id) from items") == [("0108775010",)]
    assert summary.shuffled_ties == 36
