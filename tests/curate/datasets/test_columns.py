import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.datasets.columns import GivenColumns
from curate.datasets.formats import read_interactions, read_items
from store import InputError


def items(path: Path, text: str, *given: str) -> list[dict[str, Any]]:
    path.write_text(text)
    return [row for chunk in read_items(path, "auto", GivenColumns.parse(given)) for row in chunk.to_pylist()]


def interactions(path: Path, text: str, *given: str) -> list[dict[str, Any]]:
    path.write_text(text)
    return [row for chunk in read_interactions(path, "auto", GivenColumns.parse(given)) for row in chunk.to_pylist()]


@pytest.mark.parametrize(
    "text",
    [
        # RetailRocket, H&M, REES46, KuaiRec, KuaiRand, Yelp, Goodreads, Steam, Last.fm, Book-Crossing
        "timestamp,visitorid,event,itemid,transactionid\n1400000000000,u,view,7,\n",
        "t_dat,customer_id,article_id,price,sales_channel_id\n2014-05-13,u,7,0.05,2\n",
        "event_time,event_type,product_id,category_id,user_id,user_session\n2014-05-13 09:00:00 UTC,view,7,1,u,s\n",
        "user_id,video_id,time,date,timestamp,watch_ratio\nu,7,2014-05-13 17:53:20,20140513,1400000000.5,1\n",
        "user_id,video_id,date,hourmin,time_ms,is_click\nu,7,20140513,1653,1400000000000,1\n",
        '{"review_id":"r","user_id":"u","business_id":"7","stars":4.0,"date":"2014-05-13 16:53:20"}',
        '{"user_id":"u","book_id":"7","is_read":true,"rating":5,"date_added":"Tue May 13 16:53:20 -0700 2014"}',
        "{u'username': u'u', u'product_id': u'7', u'page_order': 0, u'date': u'2014-05-13', u'hours': 0.1}",
        "user_id\tartist_id\talbum_id\ttrack_id\ttimestamp\nu\t1\t2\t7\t1400000000\n",
        "user_id:token\titem_id:token\ttimestamp:float\nu\t7\t1400000000\n",
        # LC-Rec maps users to their items, in order; others nest a user's interactions
        '{"u": [7]}',
        '{\n  "u": [\n    7\n  ]\n}\n',
        '{"user_id":"u","items":[{"item_id":7,"timestamp":1400000000}]}',
    ],
)
def test_interactions_of_the_common_dumps_are_recognised(tmp_path: Path, text: str) -> None:
    (row,) = interactions(tmp_path / "f", text)
    assert (row["user_id"], row["item_id"]) == ("u", "7")
    assert row["position"] == 0 or f"{row['timestamp']:%Y-%m-%d}" in ("2014-05-13", "2014-05-14")


@pytest.mark.parametrize(
    ("text", "title", "categories"),
    [
        ("article_id,product_code,prod_name,product_type_name\n7,01,Strap top,Vest top\n", "Strap top", ["Vest top"]),
        (
            '{"business_id":"7","name":"Cafe","stars":4,"categories":"Coffee & Tea, Food"}',
            "Cafe",
            ["Coffee & Tea", "Food"],
        ),
        (
            "{u'id': u'7', u'title': u'Game', u'genres': [u'Action', u'Indie'], u'publisher': u'Pub'}",
            "Game",
            ["Action", "Indie"],
        ),
        ('{"book_id":"7","title":"Book","popular_shelves":[{"count":"3","name":"to-read"}]}', "Book", []),
        ("movieId,title,genres\n7,Toys (1995),(no genres listed)\n", "Toys (1995)", []),
        ('video_id,caption,feat\n7,A cat,"[27, 9]"\n', "A cat", ["27", "9"]),
        ('{"7": {"title": "Drum", "brand": "", "categories": "Instruments,Drums"}}', "Drum", ["Instruments", "Drums"]),
        ('{\n    "7": {"title": "Drum",\n    "categories": ["Drums"]}\n}', "Drum", ["Drums"]),
        (
            "item_id:token\tmovie_title:token_seq\tclass:token_seq\n7\tToy Story\tAnimation Comedy\n",
            "Toy Story",
            ["Animation", "Comedy"],
        ),
        ('{"parent_asin":"7","title":"Tea","main_category":"Grocery","categories":[]}', "Tea", ["Grocery"]),
    ],
)
def test_items_of_the_common_dumps_are_recognised(tmp_path: Path, text: str, title: str, categories: list[str]) -> None:
    (row,) = items(tmp_path / "f", text)
    assert (row["item_id"], row["title"], row["categories"]) == ("7", title, categories)


def test_a_finer_time_wins_over_a_coarser_wherever_it_stands(tmp_path: Path) -> None:
    for text in (
        "user_id,item_id,date,time_ms\nu,7,20140513,1400000000123\n",
        '{"user_id":"u","item_id":7,"time_ms":1400000000123,"date":20140513}',
    ):
        (row,) = interactions(tmp_path / "f", text)
        assert str(row["timestamp"]) == "2014-05-13 16:53:20.123000"


def test_names_that_a_user_gives_come_before_those_that_are_known(tmp_path: Path) -> None:
    text = "who,item_id,sku_code,when,timestamp\nu,1,7,2014-05-13,5\n"
    (row,) = interactions(tmp_path / "f", text, "user_id=who", "item_id=sku_code", "timestamp=when")
    assert (row["user_id"], row["item_id"], row["timestamp"].year) == ("u", "7", 2014)


def test_a_name_may_lead_into_nested_objects(tmp_path: Path) -> None:
    line = json.dumps({"user": {"id": "u"}, "product": {"ids": {"sku": 7}}, "ts": 1_400_000_000})
    (row,) = interactions(tmp_path / "f", line, "user_id=user.id", "item_id=product.ids.sku")
    assert (row["user_id"], row["item_id"]) == ("u", "7")
    pq.write_table(pa.table({"user": [{"id": "v"}], "item_id": [8], "ts": [1_400_000_000]}), tmp_path / "g")
    (chunk,) = read_interactions(tmp_path / "g", given=GivenColumns.parse(["user_id=user.id"]))
    assert chunk["user_id"].to_pylist() == ["v"]


def test_items_may_be_a_column_of_identifiers_alone(tmp_path: Path) -> None:
    assert [row["item_id"] for row in items(tmp_path / "f", "item_id\n7\n8\n")] == ["7", "8"]


def test_identifiers_are_those_of_the_first_row_even_if_better_ones_follow(tmp_path: Path) -> None:
    text = '{"username":"u","item_id":7,"date":1}\n{"username":"u","user_id":9,"item_id":8,"date":2}\n'
    assert [row["user_id"] for row in interactions(tmp_path / "f", text)] == ["u", "u"]


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        (
            "who,what,timestamp\nu,7,1\n",
            (),
            "the columns are who, what, timestamp; name it with `columns`: user_id=THEIRS",
        ),
        ("who,what,when\nu,7,1\n", (), r"has no known column name.*who,what,when"),
        (
            "user_id,item_id,moment\nu,7,1\n",
            (),
            "neither timestamp nor position; .*the columns are user_id, item_id, moment",
        ),
        (
            "user_id,item_id,time\nu,7,1\n",
            ("user_id=whom",),
            "no column user_id called 'whom', which `columns` gives; the columns are",
        ),
        (
            "user_id,item_id,time\nu,7,1\n",
            ("rating=grade",),
            "no column 'grade', which `columns` gives; the columns are user_id",
        ),
        ('{"user_id":1,"item_id":7,"time":1}', ("rating=grade",), "no column 'grade', which `columns` gives"),
        ("user_id,item_id,user_id,time\nu,7,v,1\n", (), "two columns for user_id, 'user_id' and 'user_id'; rename one"),
        (
            "user_id,item_id,userId,time\nu,7,v,1\n",
            (),
            "two columns for user_id, .* choose one with `columns`: user_id=userId",
        ),
        ("user_id,item_id,time\nu,7\n", (), "f:2: the line has 2 fields, but the first line has 3"),
        ("user_id,item_id,time\n", (), "there are no rows after the header"),
        ('{"u": 7}', (), "no user_id; the columns are u"),
        ('{"u": {"7": 1}}', (), "expected a list of items for user 'u'"),
        ("{\n oops\n}", (), "this is not JSON"),
    ],
)
def test_what_does_not_fit_is_one_line_that_tells_the_columns(
    tmp_path: Path, text: str, given: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        interactions(tmp_path / "f", text, *given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("pair", ["user_id", "user_id=", "=x", "colour=red"])
def test_a_pair_that_is_none_is_refused(pair: str) -> None:
    with pytest.raises(InputError, match=r"`columns` has .*; each pair must be OURS=THEIRS"):
        GivenColumns.parse([pair])


def test_parquet_reads_only_what_it_needs_and_refuses_a_name_twice(tmp_path: Path) -> None:
    odd = pa.array([[{"x": 10**18}]], pa.list_(pa.struct({"x": pa.timestamp("ns")})))
    table = pa.table({"visitorid": ["u"], "itemid": [7], "ts": [1_400_000_000], "odd": odd})
    pq.write_table(table, tmp_path / "f")
    (chunk,) = read_interactions(tmp_path / "f")
    assert chunk["item_id"].to_pylist() == ["7"]
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["item_id", "item_id"]), tmp_path / "g")
    with pytest.raises(InputError, match="there are 2 columns 'item_id'"):
        list(read_items(tmp_path / "g"))
    pq.write_table(table.slice(0, 0), tmp_path / "h")
    with pytest.raises(InputError, match="the file has no rows"):
        list(read_interactions(tmp_path / "h"))


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ('item_id\ttitle\nI0\t"The ""Best"" thing"\nI1\t"Two\tparts"\n', ['The "Best" thing', "Two\tparts"]),
        ('item_id\ttitle\nI0\t"two\nlines"\nI1\tone\n', ["two\nlines", "one"]),
        # Quotes that are letters
        (
            'item_id\ttitle\nI0\t"Weird Al" Live\nI1\t"Heroes\nI2\t12" disc\n',
            ['"Weird Al" Live', '"Heroes', '12" disc'],
        ),
        ('item_id|title\nI0|"A" & "B"\nI1|"open\nI2|"shut"x\n', ['"A" & "B"', '"open', '"shut"x']),
        ('item_id,title\r\nI0,"two\r\n\r\nlines"\r\n\r\nI1,one\r\n', ["two\n\nlines", "one"]),
    ],
)
def test_quotes_are_signs_where_a_row_is_sound_csv_and_letters_elsewhere(
    tmp_path: Path, text: str, titles: list[str]
) -> None:
    (tmp_path / "f").write_bytes(text.encode())
    assert [title for chunk in read_items(tmp_path / "f") for title in chunk["title"].to_pylist()] == titles


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_movielens_titles_are_utf_8_or_latin_1(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "movies.dat").write_bytes("1::Café (1995)::Comedy\n".encode(encoding))
    (chunk,) = read_items(tmp_path / "movies.dat")
    assert chunk["title"].to_pylist() == ["Café (1995)"]
