import json
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.datasets.ingest import IngestSettings, IngestSummary, ingest
from store import InputError, Store


def write(folder: Path, items: list[Any], interactions: list[Any]) -> tuple[Path, Path]:
    for name, rows in (("items.jsonl", items), ("interactions.jsonl", interactions)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "items.jsonl", folder / "interactions.jsonl"


def buy(user: str, item: str, time: int) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "timestamp": time}


def run(store: Store, folder: Path, interactions: list[Any], **options: Any) -> IngestSummary:
    names = sorted({row["item_id"] for row in interactions})
    files = write(folder, [{"item_id": name} for name in names], interactions)
    return ingest(store, "shop", *files, IngestSettings(**{"k_core": 0, **options}))


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_the_last_is_test_and_the_one_before_valid(store: Store, tmp_path: Path) -> None:
    rows = [buy("u", item, time) for time, item in enumerate("abcd")] + [buy("v", "a", 0), buy("v", "b", 1)]
    summary = run(store, tmp_path, rows)
    assert fetch(store, "select user_id, item_id, position, split from interactions order by user_id, position") == [
        ("u", "a", 0, "train"),
        ("u", "b", 1, "train"),
        ("u", "c", 2, "valid"),
        ("u", "d", 3, "test"),
        ("v", "a", 0, "train"),
        ("v", "b", 1, "train"),
    ]
    assert (summary.users, summary.items, summary.train, summary.valid, summary.test) == (2, 4, 4, 1, 1)


def test_a_split_by_time_cuts_all_users_at_the_same_moments(store: Store, tmp_path: Path) -> None:
    rows = [buy(f"u{n % 3}", f"i{n % 5}", n) for n in range(100)]
    run(store, tmp_path, rows, split="time", valid_share=0.2, test_share=0.1)
    limits = fetch(
        store, "select split, min(timestamp), max(timestamp), count(*) from interactions group by 1 order by 2"
    )
    assert [row[0] for row in limits] == ["train", "valid", "test"]
    assert all(earlier[2] < later[1] for earlier, later in pairwise(limits))
    assert [row[3] for row in limits] == pytest.approx([70, 20, 10], abs=2)


def test_equal_times_are_shuffled_by_the_seed_not_left_in_the_files_order(store: Store, tmp_path: Path) -> None:
    rows = [buy("u", item, 5) for item in "abcdefgh"]
    run(store, tmp_path, rows)
    order = fetch(store, "select item_id from interactions order by position")
    assert order != [(item,) for item in "abcdefgh"]
    backwards = Store.open(tmp_path / "again", create=True)
    run(backwards, tmp_path, rows[::-1])
    assert fetch(backwards, "select item_id from interactions order by position") == order
    other = Store.open(tmp_path / "other", create=True)
    run(other, tmp_path, rows, seed=1)
    assert fetch(other, "select item_id from interactions order by position") != order


def core_slowly(pairs: list[tuple[str, str]], k: int) -> list[tuple[str, str]]:
    while True:
        users = {user for user, _ in pairs if sum(u == user for u, _ in pairs) >= k}
        items = {item for _, item in pairs if sum(i == item for _, i in pairs) >= k}
        kept = [(user, item) for user, item in pairs if user in users and item in items]
        if len(kept) == len(pairs):
            return kept
        pairs = kept


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcde")), min_size=1, unique=True))
def test_the_k_core_agrees_with_its_definition(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("core")
    store = Store.open(folder / "store", create=True)
    rows = [buy(user, item, time) for time, (user, item) in enumerate(pairs)]
    expected = core_slowly(pairs, 2)
    if not expected:
        with pytest.raises(InputError, match="`k_core`"):
            run(store, folder, rows, k_core=2)
        return
    run(store, folder, rows, k_core=2)
    assert fetch(store, "select user_id, item_id from interactions order by all") == sorted(expected)
    assert fetch(store, "select item_id from items order by all") == sorted({(item,) for _, item in expected})


def test_the_same_files_again_change_nothing_and_others_are_refused(store: Store, tmp_path: Path) -> None:
    rows = [buy("u", item, time) for time, item in enumerate("abc")]
    assert not run(store, tmp_path, rows).already_there
    assert run(store, tmp_path, rows).already_there
    with pytest.raises(InputError, match="choose another name"):
        run(store, tmp_path, [*rows, buy("u", "d", 9)])
    assert fetch(store, "select count(*) from interactions") == [(3,)]


def test_an_interaction_told_twice_counts_once(store: Store, tmp_path: Path) -> None:
    summary = run(store, tmp_path, [buy("u", "a", 1), buy("u", "a", 1), buy("u", "a", 2), buy("u", "b", 3)])
    assert (summary.dropped_repeated, summary.interactions) == (1, 3)


def test_unknown_items_are_an_error_or_left_out(store: Store, tmp_path: Path) -> None:
    files = write(tmp_path, [{"item_id": "a"}], [buy("u", "a", 1), buy("u", "zz", 2), buy("u", "zz", 3)])
    with pytest.raises(InputError, match=r"interactions\.jsonl:2: item 'zz' is not in .*`drop_unknown_items`"):
        ingest(store, "shop", *files, IngestSettings(k_core=0))
    summary = ingest(store, "shop", *files, IngestSettings(k_core=0, drop_unknown_items=True))
    assert (summary.dropped_unknown, summary.interactions) == (2, 1)


def test_an_item_told_twice_counts_once(store: Store, tmp_path: Path) -> None:
    files = write(tmp_path, [{"item_id": "a", "price": 1}, {"item_id": "a", "price": 2}], [buy("u", "a", 1)])
    summary = ingest(store, "shop", *files, IngestSettings(k_core=0))
    assert (summary.items, summary.read_items, summary.dropped_repeated_items) == (1, 2, 1)


def test_a_duplicate_item_with_other_values_names_both_lines(store: Store, tmp_path: Path) -> None:
    items = [{"item_id": "a"}, {"item_id": "b"}, {"item_id": "a", "title": "A"}]
    files = write(tmp_path, items, [buy("u", "a", 1)])
    with pytest.raises(InputError, match=r"items\.jsonl:3: item 'a' is repeated with other values, first at line 1"):
        ingest(store, "shop", *files)


def test_after_any_bad_input_the_store_holds_nothing_of_it(store: Store, tmp_path: Path) -> None:
    good = [buy("u", item, time) for time, item in enumerate("abc")]
    for bad in ([*good, {"user_id": "u"}], [*good, buy("u", "zz", 9)], [*good, buy("u", "a", -1)]):
        files = write(tmp_path, [{"item_id": item} for item in "abc"], bad)
        with pytest.raises(InputError, match=r"interactions\.jsonl:4"):
            ingest(store, "shop", *files, IngestSettings(k_core=0))
    assert fetch(store, "select (select count(*) from datasets), (select count(*) from items)") == [(0, 0)]


def test_low_ratings_are_left_out_and_no_ratings_are_a_clear_error(store: Store, tmp_path: Path) -> None:
    rows = [
        {**buy("u", item, time), "rating": rating}
        for time, (item, rating) in enumerate(zip("abc", (5, 3, 2), strict=True))
    ]
    summary = run(store, tmp_path, [*rows, buy("u", "d", 9)], min_rating=3)
    assert (summary.interactions, summary.dropped_low_rating) == (2, 2)
    with pytest.raises(InputError, match="no interaction has a rating, so none is 3 or more; leave out `min_rating`"):
        run(store, tmp_path, [buy("u", "d", 9)], min_rating=3)


def test_not_a_number_is_no_rating_unless_ratings_count(store: Store, tmp_path: Path) -> None:
    rows = [{**buy("u", "a", 1), "rating": float("nan"), "price": float("nan")}]
    assert run(store, tmp_path, rows).interactions == 1
    with pytest.raises(InputError, match=r"interactions\.jsonl:1: rating is nan: it must be a number"):
        run(store, tmp_path, rows, min_rating=3)
    with pytest.raises(InputError, match=r"interactions\.jsonl:1: timestamp is nan: it must be unix time"):
        run(store, tmp_path, [{**buy("u", "a", 1), "timestamp": float("nan")}])


def test_the_summary_tells_of_dates_and_ties(store: Store, tmp_path: Path) -> None:
    day = 1_400_000_000
    rows = [buy("u", "a", day), buy("u", "b", day), buy("v", "a", day), buy("v", "b", 5), buy("v", "c", 4_000_000_000)]
    summary = run(store, tmp_path, rows)
    assert (summary.shuffled_ties, summary.before_1990, summary.after_today) == (2, 1, 1)
    assert [moment and moment.year for moment in (summary.first_time, summary.last_time)] == [1970, 2096]


def test_without_a_file_of_items_the_log_tells_of_them(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(
        "event_time,product_id,category_code,brand,user_id\n2019-10-01 00:00:00 UTC,7,,,u\n"
        "2019-10-02 00:00:00 UTC,8,a.b,acme,u\n2019-10-03 00:00:00 UTC,7,electronics.phone,,u\n"
    )
    summary = ingest(store, "log", None, log, IngestSettings(k_core=0))
    assert (summary.items, summary.interactions, summary.dropped_repeated_items) == (2, 3, 0)
    assert fetch(store, "select item_id, title, categories, brand from items order by item_id") == [
        ("7", None, ["electronics", "phone"], None),
        ("8", None, ["a", "b"], "acme"),
    ]


def test_the_title_of_a_review_is_no_title_of_an_item(store: Store, tmp_path: Path) -> None:
    rows = [{**buy("u", "a", 1), "title": "Great & good"}]
    _, log = write(tmp_path, [], rows)
    ingest(store, "log", None, log, IngestSettings(k_core=0))
    assert fetch(store, "select title from items") == [(None,)]


def test_lost_leading_zeros_are_named(store: Store, tmp_path: Path) -> None:
    files = write(tmp_path, [{"item_id": "0108"}], [buy("u", "108", 1)])
    with pytest.raises(InputError, match="it has '0108': did identifiers lose leading zeros"):
        ingest(store, "shop", *files, IngestSettings(k_core=0))


def test_a_column_that_no_file_has_is_misspelt(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`columns` has item_id=itmid, but there is no column 'itmid'"):
        run(store, tmp_path, [buy("u", "a", 1)], columns=("item_id=itmid",))


def test_a_split_by_time_wants_times(store: Store, tmp_path: Path) -> None:
    rows = [{"user_id": "u", "item_id": item, "position": at} for at, item in enumerate("abc")]
    with pytest.raises(InputError, match=r":1: no timestamp"):
        run(store, tmp_path, rows, split="time")
    run(store, tmp_path, rows)
    assert fetch(store, "select item_id from interactions order by position") == [("a",), ("b",), ("c",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_core": -1}, "`k_core` is -1; it must be 0 or more"),
        ({"test_share": 0.95}, "`test_share` is 0.95; each must be"),
        ({"valid_share": 0}, "`valid_share` is 0 and `test_share`"),
        ({"split": "x"}, "`split` is 'x'; it must be last or time"),
    ],
)
def test_settings_out_of_range_are_clear_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        IngestSettings(**options)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a/b", "x;y", "..", ".x", "x" * 101])
def test_names_that_cannot_be_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a dataset"):
        ingest(store, name, tmp_path / "x", tmp_path / "y")


@pytest.mark.slow
def test_beauty_has_the_papers_counts(store: Store, real_data: Path) -> None:
    summary = ingest(
        store, "beauty", real_data / "beauty" / "items.jsonl", real_data / "beauty" / "interactions.csv.gz"
    )
    assert (summary.users, summary.items, summary.interactions) == (22_363, 12_101, 198_502)
    assert (summary.valid, summary.test, summary.dropped_by_k_core) == (22_363, 22_363, 0)


def test_times_are_kept(store: Store, tmp_path: Path) -> None:
    run(store, tmp_path, [buy("u", item, 86_400 * day) for day, item in enumerate("abc")])
    times = [time for (time,) in fetch(store, "select timestamp from interactions order by position")]
    assert times == [datetime(1970, 1, 1) + timedelta(days=day) for day in range(3)]  # noqa: DTZ001
