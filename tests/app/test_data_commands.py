import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from store import Store

Gr2 = Callable[..., subprocess.CompletedProcess[str]]
Ok = Callable[..., str]
HEADER = "visitorid,itemid,timestamp,grade\n"


def ingest(folder: Path, rows: str, *words: object) -> list[object]:
    (folder / "log.csv").write_text(HEADER + rows)
    return ["ingest", "log", "--interactions", folder / "log.csv", "--k-core", 0, "--store", folder / "store", *words]


def test_ingest_tells_of_dates_ties_and_what_it_left_out(tmp_path: Path, ok: Ok) -> None:
    rows = "u,7,20140513,5\nu,8,20140513,4\nu,9,20140514,1\nu,7,20140513,5\n"
    out = ok(*ingest(tmp_path, rows, "--columns", "rating=grade", "--min-rating", 4))
    assert "1 users, 3 items, 2 interactions" in out
    assert "from 2014-05-13 to 2014-05-13; 2 interactions at the same time as another of their user, shuffled" in out
    assert "left out: 1 rated too low, 1 repeated" in out


def test_ingest_warns_of_doubtful_years(tmp_path: Path, gr2: Gr2) -> None:
    done = gr2(*ingest(tmp_path, "u,7,1400000,5\nu,8,1400000000,5\nu,9,4000000000,5\n"))
    assert done.returncode == 0
    assert "1 interactions are from before 1990 and 1 interactions are from after today" in done.stderr


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        ("u,7,soon,5\n", [], "log.csv:2: timestamp is 'soon': it must be unix time or ISO 8601"),
        ("u,7,1\n", [], "log.csv:2: the line has 3 fields, but the first line has 4"),
        ("", [], "log.csv:1: there are no rows after the header"),
        (
            "u,7,1,5\n",
            ["--columns", "user_id=who"],
            "no column user_id called 'who', which --columns gives; the columns are",
        ),
        ("u,7,1,5\n", ["--columns", "who"], "--columns has 'who'; each pair must be OURS=THEIRS"),
        ("u,7,1,5\n", ["--min-rating", "3"], "leave out --min-rating, or name the column with --columns"),
        ("u,7,1,5\n", ["--items", "nowhere.csv"], "nowhere.csv: there is no such file"),
        ("u,7,1,5\n", ["--items", "/"], "this is a folder; name the file in it"),
    ],
)
def test_mistakes_are_one_clear_line_and_nothing_is_stored(
    tmp_path: Path, gr2: Gr2, rows: str, words: list[str], message: str
) -> None:
    done = gr2(*ingest(tmp_path, rows, *words))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert message in done.stderr
    if (tmp_path / "store").exists():
        with Store.open(tmp_path / "store").reading() as session:
            assert session.rows("dataset_names") == []


def test_candidates_tell_of_pairs_that_are_scored_twice(shop: Store, tmp_path: Path, ok: Ok) -> None:
    with shop.reading() as session:
        user, item = session.connection.execute(
            "select user_id, item_ids[1] from candidate_lists where split = 'test' limit 1"
        ).fetchall()[0]
    scores = tmp_path / "mine.parquet"
    pl.DataFrame({"user_id": [user, user], "item_id": [item, item], "score": [0.1, 0.2]}).write_parquet(scores)
    out = ok("candidates", "shop", "--scores", scores, "--store", shop.folder)
    assert "1 repeated scores of the same user and item were left out; the best one counts" in out
