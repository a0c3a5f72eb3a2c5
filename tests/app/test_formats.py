import csv
import io

import orjson
import polars as pl
import pytest

from app.formats import render_rows, write_rows

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


def test_a_csv_starts_no_cell_with_a_formula_and_keeps_numbers() -> None:
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n", "＝1"]
    harmless = ["a=1", "1-1", "", "'=1", "a@b"]
    rows = pl.DataFrame({"=name": formulas + harmless, "n": range(-9, 5), "list": [["=1"]] * 14})
    header, *back = csv.reader(io.StringIO(render_rows(rows, "csv").decode(), newline=""))
    assert header == ["'=name", "n", "list"]
    assert [row[0] for row in back] == [f"'{text}" for text in formulas] + harmless
    assert [int(row[1]) for row in back] == rows["n"].to_list()
    # Programs get what is there.
    assert orjson.loads(render_rows(rows, "json")) == rows.to_dicts()
    assert pl.read_parquet(io.BytesIO(render_rows(rows, "parquet"))).equals(rows)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_frames_are_written_as_one(kind: str) -> None:
    parts = io.BytesIO()
    write_rows([ROWS, ROWS.clear(), ROWS], kind, parts)
    whole = pl.concat([ROWS, ROWS])
    if kind == "parquet":
        assert pl.read_parquet(parts.getvalue()).equals(whole)
    else:
        assert parts.getvalue() == render_rows(whole, kind)
    for frames in ([ROWS.clear()], [ROWS.clear(), ROWS.clear()]):
        none = io.BytesIO()
        write_rows(frames, kind, none)
        if kind == "parquet":
            assert pl.read_parquet(none.getvalue()).height == 0
        else:
            assert none.getvalue() == render_rows(ROWS.clear(), kind)
