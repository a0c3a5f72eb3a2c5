import contextlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.datasets.formats import INTERACTION_SCHEMA, ITEM_SCHEMA, read_interactions, read_items
from store import InputError

MOMENT = datetime(2014, 5, 13, 16, 53, 20)  # noqa: DTZ001


def items(path: Path, text: str | bytes, kind: str = "auto") -> list[dict[str, Any]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row for chunk in read_items(path, kind) for row in chunk.to_pylist()]


def interactions(path: Path, text: str | bytes, kind: str = "auto") -> list[dict[str, Any]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row for chunk in read_interactions(path, kind) for row in chunk.to_pylist()]


ITEM = {
    "item_id": "B1",
    "title": "Soft Soap",
    "categories": ["Beauty", "Bath", "Soap"],
    "brand": "Acme",
    "description": "It foams.",
}


@pytest.mark.parametrize(
    "text",
    [
        '{"item_id":"B1","title":"Soft Soap","categories":"Beauty > Bath > Soap","brand":"Acme",'
        '"description":"It foams."}',
        '{"item_id":"B1","name":"Soft Soap","category":["Beauty","Bath","Soap"],"store":"Acme",'
        '"description":["It","foams."]}',
        "item_id,title,categories,brand,description\nB1,Soft Soap,Beauty > Bath > Soap,Acme,It foams.\n",
        "item_id\ttitle\tcategories\tbrand\tdescription\nB1\tSoft Soap\tBeauty|Bath|Soap\tAcme\tIt foams.\n",
        # Amazon 2014's metadata are Python dictionaries, with several paths
        "{'asin': 'B1', 'title': 'Soft Soap', 'categories': [['Beauty'], ['Beauty', 'Bath', 'Soap']], 'brand': 'Acme', "
        "'description': 'It foams.', 'price': 3.5}",
        # Amazon 2023
        '{"parent_asin":"B1","title":"Soft Soap","categories":["Beauty","Bath","Soap"],"store":"Acme",'
        '"description":["It foams."],"main_category":"All Beauty","average_rating":4.1}',
        "item_id:token\ttitle:token_seq\tcategories:token_seq\tbrand:token\tdescription:token_seq\n"
        "B1\tSoft Soap\tBeauty > Bath > Soap\tAcme\tIt foams.\n",
    ],
)
def test_items_come_from_many_kinds_of_files(tmp_path: Path, text: str) -> None:
    (row,) = items(tmp_path / "items", text)
    assert {name: row[name] for name in ITEM} == ITEM
    assert row["line"] == (1 if text.startswith("{") else 2)


INTERACTION = {"user_id": "U1", "item_id": "B1", "timestamp": MOMENT, "rating": 4.0}


@pytest.mark.parametrize(
    "text",
    [
        '{"user_id":"U1","item_id":"B1","timestamp":1400000000,"rating":4}',
        '{"user_id":"U1","item_id":"B1","timestamp":"2014-05-13T16:53:20Z","rating":4}',
        '{"user_id":"U1","item_id":"B1","timestamp":"2014-05-13 18:53:20+02:00","rating":"4.0"}',
        "user_id,item_id,timestamp,rating\nU1,B1,1400000000,4.0\n",
        "userId;itemId;timestamp;rating\nU1;B1;1400000000.0;4.0\n",
        # Amazon 2014
        '{"reviewerID":"U1","asin":"B1","overall":4.0,"unixReviewTime":1400000000,"reviewTime":"05 13, 2014"}',
        # Amazon 2023 counts milliseconds and names the parent beside the variant
        '{"rating":4.0,"asin":"B9","parent_asin":"B1","user_id":"U1","timestamp":1400000000000,"verified_purchase":true}',
        "user_id,parent_asin,rating,timestamp,history\nU1,B1,4.0,1400000000000,B7 B8\n",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\nU1\tB1\t4.0\t1400000000\n",
        # MovieLens 100K and 1M have no header
        "U1\tB1\t4\t1400000000\n",
        "U1::B1::4::1400000000\n",
    ],
)
def test_interactions_come_from_many_kinds_of_files(tmp_path: Path, text: str) -> None:
    (row,) = interactions(tmp_path / "interactions", text)
    assert {name: row[name] for name in INTERACTION} == INTERACTION


def test_amazons_ratings_without_header_are_taken_on_the_users_word(tmp_path: Path) -> None:
    text = "U1,B1,4.0,1400000000\n"
    assert interactions(tmp_path / "f", text, "amazon-2014")[0]["item_id"] == "B1"
    with pytest.raises(InputError, match="`format`"):
        interactions(tmp_path / "f", text)


def test_movielens_items_of_100k_are_latin_1_with_genre_flags(tmp_path: Path) -> None:
    flags = ["0"] * 19
    flags[3] = flags[5] = "1"
    line = "|".join(["1", "Caf\xe9 (1995)", "01-Jan-1995", "", "http://x", *flags])
    (row,) = items(tmp_path / "u.item", line.encode("latin-1"))
    assert (row["title"], row["categories"]) == ("Café (1995)", ["Animation", "Comedy"])


def test_movielens_items_of_1m(tmp_path: Path) -> None:
    (row,) = items(tmp_path / "movies.dat", "1::Toys (1995)::Animation|Comedy\n")
    assert (row["item_id"], row["categories"]) == ("1", ["Animation", "Comedy"])


def test_parquet_is_read_in_any_of_its_types(tmp_path: Path) -> None:
    table = pa.table({"user_id": [1, 2], "item_id": ["a", "b"], "timestamp": [MOMENT, MOMENT], "rating": [4, 5]})
    pq.write_table(table, tmp_path / "f.csv")
    rows = [row for chunk in read_interactions(tmp_path / "f.csv") for row in chunk.to_pylist()]
    assert [(row["user_id"], row["timestamp"], row["line"]) for row in rows] == [("1", MOMENT, 1), ("2", MOMENT, 2)]


def test_numbers_are_identifiers_too_and_unknown_brands_are_none(tmp_path: Path) -> None:
    (row,) = items(tmp_path / "f", '{"item_id": 5.0, "brand": "Unknown", "title": ""}')
    assert (row["item_id"], row["brand"], row["title"], row["categories"]) == ("5", None, None, [])


def test_the_schemas_are_kept_over_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curate.datasets.formats.CHUNK_ROWS", 2)
    (tmp_path / "f").write_text("".join(f'{{"item_id": {n}, "title": "t"}}\n' for n in range(5)))
    chunks = list(read_items(tmp_path / "f"))
    assert [chunk.num_rows for chunk in chunks] == [2, 2, 1]
    assert all(chunk.schema == ITEM_SCHEMA for chunk in chunks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"user_id":"U1","timestamp":1}', "f:1: no item_id"),
        ("user_id,timestamp\nU1,1\n", "f:1: no column item_id; the columns are user_id, timestamp"),
        ("user_id,item_id,timestamp\n", "there are no rows after the header"),
        ('{"user_id":"U1","item_id":"B1"}', "f:1: neither timestamp nor position"),
        ('{"user_id":"U1","item_id":"B1","timestamp":"soon"}', "timestamp is 'soon': it must be unix time or ISO 8601"),
        ('{"user_id":"U1","item_id":"B1","timestamp":-5}', "timestamp is -5"),
        ('{"user_id":"U1","item_id":"B1","timestamp":"2500-01-01"}', "in the year 2200 or later"),
        ('{"user_id":"U1","item_id":"B1","position":"first"}', "position is 'first'"),
        ('{"user_id":"U1","item_id":"B1","position":1.5}', "position is 1.5"),
        ('{"user_id":"U1","item_id":"B1","position":1,"rating":"good"}', "rating is 'good': it must be a number"),
        ('{"user_id":" ","item_id":"B1","position":1}', "user_id is ' ': it must not be empty"),
        ('{"user_id":["U1"],"item_id":"B1","position":1}', "user_id is"),
        ('[{"user_id":"U1"}]', "f:1: no item_id; the columns are user_id"),
        ("hello\n", "has no known column name"),
        ('{"user_id":"U1","item_id":"B1","position":1}\nnot json\n', "f:2: this is not JSON"),
    ],
)
def test_bad_interactions_are_clear_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        interactions(tmp_path / "f", text)


def test_an_unknown_format_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="amazon-2014"):
        items(tmp_path / "f", "{}", "excel")


OWN_FORMAT = """
from curate.datasets.formats import Format

def rows(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        yield number, dict(part.split("=") for part in line.split())

FORMAT = Format(rows, rows)
"""


def test_a_format_of_ones_own_says_what_stands_where(tmp_path: Path, write_module: Callable[[str, str], Path]) -> None:
    write_module("own_format", OWN_FORMAT)
    (row,) = interactions(tmp_path / "f", "user_id=U1 item_id=B1 timestamp=1400000000\n", "own_format:FORMAT")
    assert {name: row[name] for name in ("user_id", "item_id", "line")} == {"user_id": "U1", "item_id": "B1", "line": 1}
    assert row["timestamp"] == MOMENT


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("user_id=U1 timestamp=1", "f:2: item_id is None: it must be text"),
        ("user_id=U1 item_id=B1", "f:2: neither timestamp nor position"),
        ("user_id=U1 item_id=B1 timestamp=soon", "f:2: timestamp is 'soon'"),
        (
            "user_id=U1 item_id=B1 timestamp=1 colour=red",
            r"f:2: the format gives unknown columns \['colour'\]; known are user_id",
        ),
    ],
)
def test_what_a_format_of_ones_own_gives_is_checked(
    line: str, message: str, tmp_path: Path, write_module: Callable[[str, str], Path]
) -> None:
    write_module("own_format", OWN_FORMAT)
    with pytest.raises(InputError, match=message):
        interactions(tmp_path / "f", f"user_id=U1 item_id=B1 timestamp=1\n{line}\n", "own_format:FORMAT")


def test_a_damaged_parquet_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="damaged"):
        items(tmp_path / "f", b"PAR1 and nothing else PAR1")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    start=st.sampled_from(
        [
            "",
            '{"user_id":"U1","item_id":"B1","timestamp":',
            "user_id,item_id,timestamp\n",
            "{'asin': ",
            "a\tb\t1\t2\n",
            "PAR1",
        ]
    ),
    rest=st.one_of(st.text(max_size=60), st.text(alphabet="0123456789.eE+-\"{}[],:\n'", max_size=60)),
)
def test_no_file_brings_out_another_error(tmp_path: Path, start: str, rest: str) -> None:
    data = (start + rest).encode("utf-8", "surrogatepass") or b" "
    for read in (items, interactions):
        with contextlib.suppress(InputError):
            read(tmp_path / "f", data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "item_count", "interaction_count"),
    [("beauty", 12_101, 198_502), ("sports", 18_357, 296_337), ("ml-100k", 1_682, 100_000)],
)
def test_real_data_are_read_whole(real_data: Path, name: str, item_count: int, interaction_count: int) -> None:
    found = sum(chunk.num_rows for chunk in read_items(real_data / name / "items.jsonl"))
    chunks = list(read_interactions(real_data / name / "interactions.csv.gz"))
    assert (found, sum(chunk.num_rows for chunk in chunks)) == (item_count, interaction_count)
    assert all(chunk.schema == INTERACTION_SCHEMA for chunk in chunks)
