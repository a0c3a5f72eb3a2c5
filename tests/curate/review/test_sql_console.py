import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from curate.review import sql_console as queries
from curate.review.sql_console import (
    DOWNLOAD,
    SCREEN,
    UNLIMITED,
    ChartChoice,
    QueryLimits,
    load_schema,
    query_frames,
    query_rows,
    read_meanings,
    run_sql,
    suggest_chart,
)
from store import InputError, Store, StoreError
from store.labels import Label, put_label

ENDLESS = "select sum(a.range * b.range) from range(1000000000) a, range(1000000) b"


def test_rows_come_back(tiny: Store) -> None:
    assert run_sql(tiny, "select count(*) as items from items").to_dicts() == [{"items": 12}]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select nope\nfrom items", r"(?s)nope.*LINE 1: select nope\n +\^\^\^\^"),
        ("select *\nfrom itemss", r"(?s)Did you mean \"items\".*LINE 2: from itemss\n +\^"),
        ("select title::int from items", r"(?s)Could not convert.*LINE 1: select title::int"),
        ("selec 1", r"(?s)syntax error.*LINE 1: selec 1\n +\^"),
        ("select $a", "Values were not provided"),
        ("select 1 /*", "unterminated"),
        ("", "no statement"),
        (" ;; -- nothing", "no statement"),
    ],
)
def test_what_fails_says_why_and_where_in_duckdbs_words(tiny: Store, query: str, message: str) -> None:
    for limits in (SCREEN, UNLIMITED):
        with pytest.raises(InputError, match=message):
            query_rows(tiny, query, limits)


def test_a_message_that_quotes_a_megabyte_is_shortened(tiny: Store) -> None:
    with pytest.raises(InputError, match="Could not convert") as caught:
        run_sql(tiny, "select repeat('x', 1000000 + range)::int from range(3)")
    assert len(str(caught.value)) < 5_000
    assert str(caught.value).rstrip().endswith("^")


# --- nothing but queries ---

QUERIES = (
    "select 1",
    "(select 1)",
    "from items",
    "table items",
    "with a as (select 1) from a",
    "values (1)",
    "pivot items on brand using count(*)",
    "from (pivot items on brand using count(*))",
    "unpivot (select 1 as a, 2 as b) on a, b",
    "describe items",
    "show tables",
    "summarize items",
    "explain select 1",
    "explain analyze select 1",
    "explain (analyze, format json) from items",
    "-- a comment\nselect 1; -- another",
)


@pytest.mark.parametrize("query", QUERIES)
def test_every_statement_that_asks_runs(tiny: Store, query: str) -> None:
    assert query_rows(tiny, query, SCREEN).rows.width > 0


REFUSED = (
    # What writes.
    "insert into items from items",
    "update items set title = 'x'",
    "delete from items",
    "truncate items",
    "merge into items using items as other on true when matched then delete",
    "create table t (a int)",
    "create temp table t as select 1",
    "create view v as select 1",
    "create or replace macro accepted_traces(ruleset_name) as table select 1",
    "create temp macro f() as 1",
    "create secret (type http)",
    "create persistent secret s (type http)",
    "create sequence s",
    "create type t as enum ('a')",
    "drop table items",
    "drop view trace_browser",
    "alter table items add column z int",
    "comment on table items is 'x'",
    # What reads and writes files.
    "copy items to 'x.csv'",
    "copy items from 'x.csv'",
    "copy (select 1) to '/tmp/x.csv'",
    "copy (select 1) to '/dev/stdout'",
    "export database 'x'",
    "import database 'x'",
    "attach 'x.duckdb'",
    "attach ':memory:' as m",
    "detach labels",
    "install httpfs",
    "force install httpfs from 'http://127.0.0.1:1'",
    "load httpfs",
    "load json",
    "load '/tmp/x.so'",
    "update extensions",
    # What changes settings, the connection or its transaction.
    "set enable_external_access = true",
    "set lock_configuration = false",
    "set memory_limit = '1TB'",
    "set temp_directory = '/tmp'",
    "set threads = 64",
    "set file_search_path = '/tmp'",
    "set session timezone = 'UTC'",
    "set global threads = 64",
    "set schema = 'labels'",
    "set variable a = 1",
    "reset threads",
    "reset memory_limit",
    "pragma threads = 64",
    "pragma memory_limit = '1TB'",
    "pragma enable_profiling",
    "pragma profiling_output = '/tmp/x'",
    "pragma database_list",
    "use labels",
    "use memory",
    "begin",
    "commit",
    "rollback",
    "vacuum",
    "analyze",
    "checkpoint",
    "force checkpoint",
    "call pragma_database_size()",
    "call enable_logging()",
    "call force_checkpoint()",
    "prepare p as select 1",
    "execute p",
    "deallocate p",
    # The same behind EXPLAIN, which with ANALYZE runs what it explains.
    "explain drop table items",
    "explain analyze insert into items from items",
    "explain analyze create temp table t as select 1",
    "explain analyze copy (select 1) to 'x.csv'",
    "explain analyze set schema = 'labels'",
    "explain analyze load json",
    "explain analyze rollback",
    "explain analyze checkpoint",
    "explain analyze prepare p as select 1",
    "explain (analyze) load json",
    "explain (analyze, format json) rollback",
    "explain /* a */ analyze load json",
    "explain explain analyze load json",
)


@dataclass(frozen=True)
class Before:
    """A store, and what is in it before anything is refused."""

    store: Store
    items: pl.DataFrame
    settings: pl.DataFrame
    files: list[Path]


# Each query has a folder of its own, whose name is left out.
SETTINGS = (
    "select name, regexp_replace(value, '\\.temporary-[^,\\]]*', 'own', 'g') as value "
    "from duckdb_settings() order by all"
)


@pytest.fixture(scope="module")
def before(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Before:
    folder = tmp_path_factory.mktemp("refusing")
    store = Store(shutil.copytree(tiny_folder, folder / "store"))
    items, settings = (run_sql(store, query) for query in ("from items", SETTINGS))
    return Before(store, items, settings, sorted(folder.rglob("*")))


@pytest.mark.slow
@pytest.mark.parametrize("query", REFUSED)
def test_everything_else_is_refused_and_changes_nothing(before: Before, query: str) -> None:
    with pytest.raises(InputError) as caught:
        query_rows(before.store, query, SCREEN)
    assert "is not run" in str(caught.value) or "Parser Error" in str(caught.value) or "Error: " in str(caught.value)
    assert run_sql(before.store, "from items").equals(before.items)
    assert run_sql(before.store, SETTINGS).equals(before.settings)
    assert run_sql(before.store, "select count(*) from labels.label_events").height == 1
    assert sorted(before.store.folder.parent.rglob("*")) == before.files


@pytest.mark.parametrize(
    "query",
    [
        "select 1; select 2",
        "select 1; drop table items",
        "pivot items on brand; select 1",
        "from items; commit; select 1",
    ],
)
def test_one_statement_at_a_time(tiny: Store, query: str) -> None:
    with pytest.raises(InputError, match="statements; run one query at a time"):
        query_rows(tiny, query, SCREEN)
    assert run_sql(tiny, "from items").height == 12


READ_FILES = (
    "from 'FILE'",
    "from read_csv('FILE')",
    "from read_csv_auto('FILE')",
    "from read_parquet('FILE')",
    "from read_json('FILE')",
    "from read_ndjson_objects('FILE')",
    "from read_text('FILE')",
    "from read_blob('FILE')",
    "from read_duckdb('FILE')",
    "from sniff_csv('FILE')",
    "from parquet_metadata('FILE')",
    "from parquet_schema('FILE')",
    "from glob('FILE')",
    "select content from (select unnest(['FILE']) as name), lateral (from read_text(name))",
    "from query('from read_text(''FILE'')')",
    "from query_table('FILE')",
    "with a as (from read_text('FILE')) from a",
    "explain analyze from read_text('FILE')",
)


@pytest.mark.slow
@pytest.mark.parametrize("query", READ_FILES)
def test_no_query_reads_files_or_the_network(tiny: Store, query: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nsesame\n")
    relative = Path("../" * 20) / secret.relative_to("/")
    for name in (
        str(secret),
        str(relative),
        f"file://{secret}",
        f"{tmp_path}/*",
        "http://127.0.0.1:1/x.csv",
        "s3://a/b",
    ):
        with pytest.raises(InputError) as caught:
            query_rows(tiny, query.replace("FILE", name), SCREEN)
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "query",
    [
        "with a as (insert into items from items returning *) from a",
        "with a as (delete from items returning *) from a",
        "from query('drop table items')",
        "from json_execute_serialized_sql('{}')",
        "from enable_logging()",
        "from enable_profiling()",
        "from force_checkpoint()",
        "from which_secret('s3://a', 's3')",
        "from arrow_scan(1, 2, 3)",
        "from pandas_scan(1)",
        "from python_map_function((select 1))",
        "select nextval('s')",
    ],
)
def test_functions_that_do_something_do_nothing(tiny: Store, query: str) -> None:
    with pytest.raises(InputError):
        query_rows(tiny, query, SCREEN)
    assert run_sql(tiny, "from items").height == 12


@pytest.mark.slow
@pytest.mark.parametrize("function", ["read_blob", "read_text", "read_csv", "glob", "read_duckdb", "parquet_schema"])
def test_no_query_reads_the_files_of_the_store_or_its_own(tiny: Store, function: str) -> None:
    for path in (
        tiny.main_file,
        tiny.labels_file,
        f"{tiny.main_file}.wal",
        f"{tiny.folder}/*",
        f"{tiny.folder}/.temporary-*/*/*",
        "/proc/self/fd/*",
        "/proc/self/environ",
    ):
        # The second one names labels, so that their file is open too.
        for query in (f"from {function}('{path}')", f"from {function}('{path}') -- labels"):
            with pytest.raises(InputError, match="disabled by configuration"):
                query_rows(tiny, query, SCREEN)


def test_a_query_does_not_know_the_paths_of_what_it_reads(tiny: Store) -> None:
    paths = run_sql(tiny, "select path from duckdb_databases() where path is not null -- labels")["path"].to_list()
    assert len(paths) == 2
    for path in paths:
        assert not Path(path).exists()
        with pytest.raises(InputError, match="disabled by configuration"):
            run_sql(tiny, f"from read_blob('{path}')")


def test_python_variables_are_no_tables(tiny: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "a_frame", pl.DataFrame({"word": ["sesame"]}), raising=False)
    for name in ("a_frame", "store", "connection", "limits", "statement", "names"):
        with pytest.raises(InputError, match="does not exist"):
            query_rows(tiny, f"from {name}", SCREEN)


# --- limits ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        ENDLESS,
        f"select range, ({ENDLESS}) from range(3)",
        "select range from range(1000000000000) where sleep_ms(1) > 1",
        "with recursive r as (select 1 as a union all select a + 1 from r) select count(*) from r",
        "select sleep_ms(60000)",
    ],
)
def test_a_query_past_its_time_is_stopped_and_says_so(tiny: Store, query: str) -> None:
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"was stopped after 0.3 s, its time limit.*gr2 sql"):
        query_rows(tiny, query, QueryLimits(rows=10, seconds=0.3))
    assert time.perf_counter() - started < 20
    assert threading.active_count() < 20
    # The store reads and writes as before.
    assert run_sql(tiny, "select count(*) as n from items")["n"].to_list() == [12]
    put_label(tiny, "trace", "ann", Label.GOOD)
    assert run_sql(tiny, "from labels_current").height == 1


# Takes hours, and DuckDB cannot interrupt it.
UNSTOPPABLE = "select levenshtein(repeat('a', 1000000), repeat('b', 1000000))"


@pytest.mark.slow
def test_others_write_while_a_query_runs_that_nothing_can_interrupt(tiny: Store) -> None:
    errors: list[str] = []

    def query() -> None:
        # It names labels, so that their file is read too.
        with pytest.raises(InputError) as caught:
            query_rows(tiny, f"{UNSTOPPABLE}, (select count(*) from labels_current)", QueryLimits(seconds=8))
        errors.append(str(caught.value))

    thread = threading.Thread(target=query)
    started = time.monotonic()
    thread.start()
    writes = 0
    while thread.is_alive():
        put_label(tiny, f"trace {writes}", "ann", Label.GOOD)
        with tiny.writing() as session:
            session.connection.execute("update items set title = title")
        writes += 1
    thread.join()
    assert 8 <= time.monotonic() - started < 60
    assert "was stopped after 8 s" in errors[0]
    # Nobody could write before it if the query kept the files.
    assert writes > 3
    assert run_sql(tiny, "select count(*) as n from labels_current")["n"].to_list() == [writes]
    assert not list(tiny.folder.glob(".temporary-*"))


def test_a_query_that_takes_longer_than_it_may_hold_the_store_goes_on_with_a_copy(tiny: Store) -> None:
    # Two seconds: HOLD_S is less.
    rows = run_sql(
        tiny, "select count(*) as n, (select count(*) from items) as items from range(200) where sleep_ms(10) is null"
    )
    assert rows.row(0) == (200, 12)


def test_labels_are_read_only_for_queries_that_name_them(tiny: Store) -> None:
    put_label(tiny, "trace", "ann", Label.GOOD)
    kept = tiny.labels_file.rename(tiny.folder / "kept")
    assert run_sql(tiny, "select count(*) as n from items")["n"].to_list() == [12]
    with pytest.raises(StoreError, match="labels"):
        run_sql(tiny, "from labels_current")
    kept.rename(tiny.labels_file)
    for query in ("from labels_current", "from labels.label_events", 'from "labels".main.label_events'):
        assert run_sql(tiny, query).height == 1
    # A view that has no word of labels in its name.
    assert run_sql(tiny, "select sum(labelled) as n from acceptance_funnel").height == 1
    assert "labels" in run_sql(tiny, "show all tables")["database"].to_list()


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        "select sum(length(repeat('x', 1000000000) || range)) from range(4)",
        "select list(range) from range(1000000000)",
        "select string_agg(repeat('x', 10000000), '') from range(1000)",
        "with recursive r(a) as (select 'x' union all select a || a from r) select max(length(a)) from r",
    ],
)
def test_a_query_has_no_more_memory_than_it_may(tiny: Store, query: str) -> None:
    with pytest.raises(InputError, match="more than the 1 GB of memory"):
        query_rows(tiny, query, SCREEN)
    assert run_sql(tiny, "select count(*) as n from items")["n"].to_list() == [12]


def test_a_query_leaves_nothing_behind(tiny: Store) -> None:
    before = sorted(tiny.folder.rglob("*"))
    run_sql(tiny, "from items")
    with pytest.raises(InputError):
        run_sql(tiny, "from nowhere")
    assert sorted(tiny.folder.rglob("*")) == before


def test_rows_come_in_frames_whose_types_fit_all_of_them(tiny: Store) -> None:
    query = (
        "select repeat('x', 100000) as text, if(range < 599, range::hugeint, 170::hugeint << 100) as n from range(600)"
    )
    with query_frames(tiny, query, UNLIMITED) as frames:
        heights = [(frame.height, frame.schema["n"]) for frame in frames]
    assert len(heights) > 2
    assert sum(height for height, _ in heights) == 600
    assert {kind for _, kind in heights} == {pl.String}


def test_a_query_that_gives_rows_slowly_is_stopped_too(tiny: Store) -> None:
    with pytest.raises(InputError, match="was stopped"):
        query_rows(tiny, "from range(1000000000000)", QueryLimits(seconds=0.3))


@pytest.mark.slow
def test_stopping_one_query_leaves_the_others_of_the_process_alone(tiny: Store) -> None:
    answers: list[int] = []

    def read() -> None:
        # Longer than the other's limit.
        query = "select count(*) as n from range(200) where sleep_ms(10) is null"
        answers.append(run_sql(tiny, query)["n"].item())

    thread = threading.Thread(target=read)
    thread.start()
    with pytest.raises(InputError, match="was stopped"):
        query_rows(tiny, ENDLESS, QueryLimits(seconds=0.3))
    assert answers == []
    thread.join()
    assert answers == [200]


def test_a_quick_query_is_not_touched_by_its_limit(tiny: Store) -> None:
    result = query_rows(tiny, "select 1 as one", QueryLimits(seconds=20))
    assert result.rows["one"].to_list() == [1]
    assert result.complete
    assert 0 < result.seconds < 20


@pytest.mark.parametrize(("there", "shown", "complete"), [(0, 0, True), (9, 9, True), (10, 10, True), (11, 10, False)])
def test_rows_past_the_limit_are_left_out_and_it_is_said(tiny: Store, there: int, shown: int, complete: bool) -> None:
    result = query_rows(tiny, f"select range as n from range({there})", QueryLimits(rows=10))
    assert result.rows["n"].to_list() == list(range(shown))
    assert result.complete is complete


def test_many_rows_come_in_their_order(tiny: Store) -> None:
    rows = query_rows(tiny, "select range as n from range(100000) order by n desc", QueryLimits(rows=70_000)).rows
    assert rows["n"].to_list() == list(range(99_999, 29_999, -1))


def test_bytes_past_the_limit_are_left_out_but_for_one_row(tiny: Store) -> None:
    limits = QueryLimits(bytes=1_000_000)
    result = query_rows(tiny, "select repeat('x', 100000) as text from range(1000)", limits)
    assert not result.complete
    assert 5 <= result.rows.height <= 10
    result = query_rows(tiny, "select repeat('x', 3000000) as text from range(100)", limits)
    assert (result.rows.height, result.complete) == (1, False)


def test_long_texts_are_cut_for_a_screen_alone(tiny: Store) -> None:
    query = "select repeat('ä', 1000000) as text, [repeat('x', 1000000)] as list"
    shown = query_rows(tiny, query, SCREEN).rows.row(0, named=True)
    assert shown["text"] == "ä" * 5_000 + " …"
    assert shown["list"].startswith('["xxx')
    assert len(shown["list"]) == 5_002
    assert query_rows(tiny, query, DOWNLOAD).rows["text"].str.len_chars().to_list() == [1_000_000]


# --- values ---


def test_every_type_of_duckdb_comes_through(tiny: Store) -> None:
    result = query_rows(tiny, "from test_all_types()", SCREEN)
    assert result.rows.height == 3
    assert result.rows["hugeint"][0] == str(-(2**127))
    assert result.rows["ubigint"][1] == str(2**64 - 1)
    assert result.rows["interval"][1] == "83 years 3 months 999 days 00:16:39.999999"
    assert result.rows["map"][1] == "{key1=🦆🦆🦆🦆🦆🦆, key2=goose}"
    assert result.rows["struct"][1] == '{"a":42,"b":"🦆🦆🦆🦆🦆🦆"}'
    whole = query_rows(tiny, "from test_all_types()", DOWNLOAD).rows
    assert whole["int_array"].to_list()[1] == [42, 999, None, None, -42]
    assert whole["ubigint"].dtype == pl.UInt64


def test_values_keep_their_types_where_all_can_hold_them(tiny: Store) -> None:
    rows = run_sql(
        tiny,
        "select sum(position) as whole, 1.5::decimal(4, 1) as part, timestamp '2026-01-02' as moment, ['a'] as list,"
        " null as nothing from interactions",
    )
    assert rows.schema["whole"] == pl.Int64
    assert rows.schema["part"] == pl.Decimal(4, 1)
    assert rows.schema["moment"] == pl.Datetime("us")
    assert rows.schema["list"] == pl.List(pl.String)
    assert rows["nothing"].to_list() == [None]


def test_times_that_python_cannot_hold_are_counts_since_1970(tiny: Store) -> None:
    rows = run_sql(tiny, "select unnest([timestamp '1970-01-02', timestamp 'infinity']) as t, date '9999-12-31' as d")
    assert rows["t"][0] == 86_400_000_000
    assert rows.schema["d"] == pl.Date


def test_a_screen_shows_whole_numbers_that_browsers_would_round_as_text(tiny: Store) -> None:
    query = "select 9007199254740993 as large, -9007199254740992 as exact"
    shown = query_rows(tiny, query, SCREEN).rows
    assert shown["large"].to_list() == ["9007199254740993"]
    assert shown["exact"].to_list() == [-(2**53)]
    assert run_sql(tiny, query)["large"].to_list() == [2**53 + 1]


def test_names_that_repeat_are_told_apart(tiny: Store) -> None:
    rows = run_sql(tiny, 'select 1 as a, interval 1 day as a, 3 as a_1, 4 as a, 5 as A, 6 as "<b>""c"')
    assert rows.columns == ["a", "a_2", "a_1", "a_3", "A", '<b>"c']
    assert rows.row(0) == (1, "1 day", 3, 4, 5, 6)


# --- charts ---


@pytest.mark.parametrize(
    ("columns", "chart"),
    [
        ({"teacher": ["a", "b"], "traces": [1, 2]}, ChartChoice("teacher", "traces", None, "bar")),
        ({"n": [1], "teacher": ["a"], "split": ["b"]}, ChartChoice("teacher", "n", "split", "bar")),
        ({"before": [1], "after": [2]}, ChartChoice("before", "after", None, "point")),
        ({"before": [1], "after": [2], "n": [3]}, ChartChoice("before", "after", "n", "heatmap")),
        ({"a": [1.5], "b": [2], "n": [3]}, ChartChoice("a", "b", None, "point")),
        ({"good": [True], "share": [0.5]}, ChartChoice("good", "share", None, "bar")),
        ({"n": [1]}, None),
        ({"a": ["x"], "b": ["y"]}, None),
        ({"a": [], "b": []}, None),
        ({}, None),
    ],
)
def test_a_chart_is_suggested_where_there_is_something_to_draw(columns: dict, chart: ChartChoice | None) -> None:
    assert suggest_chart(pl.DataFrame(columns)) == chart


def test_numbers_over_a_time_are_a_line(tiny: Store) -> None:
    rows = run_sql(tiny, "select split, timestamp as day, count(*) as n from interactions group by all")
    assert suggest_chart(rows) == ChartChoice("day", "n", "split", "line")


# --- the schema ---


def test_the_schema_has_all_tables_views_and_macros_with_meanings(store: Store) -> None:
    schema = load_schema(store)
    assert {"traces", "trace_browser", "labels.label_events", "accepted_traces(ruleset_name)"} <= set(schema["table"])
    row = schema.row(by_predicate=(pl.col("table") == "traces") & (pl.col("column") == "trace_id"), named=True)
    assert row == {
        "table": "traces",
        "column": "trace_id",
        "type": "VARCHAR",
        "meaning": "a hash of the request and the index of the sample",
    }
    # "as in traces" says what it says there.
    there = schema.row(by_predicate=(pl.col("table") == "trace_browser") & (pl.col("column") == "trace_id"), named=True)
    assert there["meaning"] == row["meaning"]
    assert schema.filter(pl.col("meaning") == "").height == 0


def test_the_schema_can_be_searched(store: Store) -> None:
    found = load_schema(store, "SEMANTIC ID")
    assert 0 < found.height < load_schema(store).height
    assert load_schema(store, "stands nowhere").columns == ["table", "column", "type", "meaning"]


def test_meanings_are_there_to_be_read() -> None:
    meanings = read_meanings()
    assert meanings["labels.saved_queries", "query"] == "the SQL"
    assert meanings["traces", ""].startswith("Every attempt of a teacher, good or bad, is a row,")
