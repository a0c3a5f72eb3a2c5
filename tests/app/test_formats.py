import io

import orjson
import polars as pl

from app.formats import render_rows

ROWS = pl.DataFrame(
    {"text": ['a "quoted", one', None], "list": [["x", "y"], None], "struct": [{"n": 1}, {"n": None}]},
)


def test_csv_holds_nested_values_as_json() -> None:
    back = pl.read_csv(io.BytesIO(render_rows(ROWS, "csv")))
    assert back["text"].to_list() == ['a "quoted", one', None]
    assert back["list"].to_list() == ['["x","y"]', None]
    assert orjson.loads(back["struct"][0]) == {"n": 1}


def test_json_is_one_array_of_objects() -> None:
    assert orjson.loads(render_rows(ROWS, "json")) == ROWS.to_dicts()


def test_parquet_keeps_everything() -> None:
    assert pl.read_parquet(io.BytesIO(render_rows(ROWS, "parquet"))).equals(ROWS)
