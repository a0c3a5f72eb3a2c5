"""A file that is one JSON array, as many dumps and exports are."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.datasets import files
from curate.datasets.files import read_json_array
from curate.datasets.formats import read_interactions, read_items
from store import InputError

ROWS = [{"user_id": f"u{n % 7}", "item_id": f"i{n}", "timestamp": 1_400_000_000 + n} for n in range(500)]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "\ufeff\n" + json.dumps(ROWS).replace("}, {", "},\r\n{"),
        json.dumps(ROWS)[:-1] + ",\n]\n",
        gzip.compress(json.dumps(ROWS).encode()),
        json.dumps(ROWS).encode("utf-16"),
    ],
)
def test_an_array_is_read_as_its_objects_a_line_would_be(tmp_path: Path, text: str | bytes) -> None:
    lines = write(tmp_path / "lines", "\n".join(map(json.dumps, ROWS)))
    array = write(tmp_path / "array", text)
    found, expected = (
        [row for chunk in read_interactions(path) for row in chunk.to_pylist()] for path in (array, lines)
    )
    assert found == expected


def test_items_and_nested_interactions_come_from_arrays_too(tmp_path: Path) -> None:
    (item,) = [
        row
        for chunk in read_items(write(tmp_path / "i", '[{"asin": "B1", "title": "Soap"}]'))
        for row in chunk.to_pylist()
    ]
    assert (item["item_id"], item["title"]) == ("B1", "Soap")
    nested = [{"user_id": "u", "items": [{"item_id": "a"}, {"item_id": "b"}]}]
    (chunk,) = read_interactions(write(tmp_path / "n", json.dumps(nested)))
    assert chunk["item_id"].to_pylist() == ["a", "b"]


LEAVES = st.none() | st.integers() | st.text()
VALUES = st.recursive(LEAVES, lambda each: st.lists(each) | st.dictionaries(st.text(), each))
FIRST = '[{"user_id": "u", "item_id": "a", "timestamp": 1},\n'


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.dictionaries(st.text(), VALUES), max_size=6),
    indent=st.none() | st.integers(0, 3),
    piece=st.integers(1, 40),
)
def test_any_array_comes_out_as_it_is_whatever_the_size_of_the_pieces(
    tmp_path: Path, rows: list[dict[str, Any]], indent: int | None, piece: int
) -> None:
    path = write(tmp_path / "array", json.dumps(rows, indent=indent, ensure_ascii=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ARRAY_CHARACTERS", piece)
        assert list(read_json_array(path)) == list(enumerate(rows, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FIRST + '{"user_id": "u", "it', ":2: .*entry 2; is the file cut off"),
        (FIRST, ":2: .*entry 2; is the file cut off"),
        (FIRST + '{"user_id": u, "long": "' + "x" * 99, ":2: this is not JSON, at entry 2"),
        ('[\n["u", "a"]]', ":2: expected a JSON object for each entry"),
        ('[{"user_id": "u", "item_id": "a", "timestamp": 1}]\n[]', ":2: there is text after the end"),
        ("[" * 100_000, "nested too deep"),
        ("[]", "the file has no rows"),
        (b'[{"user_id": "\xff"}]', "not UTF-8"),
    ],
)
def test_a_broken_array_is_one_clear_error(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path / "array", text)
    with pytest.raises(InputError, match=message):
        list(read_interactions(path))


def test_an_array_longer_than_a_line_may_be_is_read_and_an_object_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 10_000)
    monkeypatch.setattr(files, "ARRAY_CHARACTERS", 1_000)
    path = write(tmp_path / "array", json.dumps(ROWS))
    assert path.stat().st_size > 20_000
    assert sum(chunk.num_rows for chunk in read_interactions(path)) == 500
    write(path, json.dumps([*ROWS, {"user_id": "x" * 20_000}]))
    with pytest.raises(InputError, match="entry 501 of the JSON array is longer than"):
        list(read_interactions(path))
