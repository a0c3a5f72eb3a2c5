import io
import json
from collections.abc import Callable

import polars as pl
import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from app.browser.sql_page import build_chart, describe_size, render_download
from curate.review.saved_queries import list_queries, save_query
from curate.review.sql_console import MARKS, SCREEN, ChartChoice, QueryResult, query_rows
from store import InputError, Store

Open = Callable[..., AppTest]


@pytest.fixture
def open_sql(open_page: Open) -> Callable[..., AppTest]:
    """Opens the page with a query in the link, and presses Run if there is one."""

    def open_and_run(**query: str) -> AppTest:
        page = open_page("sql_page", "draw_sql", **query)
        return buttons(page)["Run"].click().run() if query else page

    return open_and_run


def run(page: AppTest, query: str) -> AppTest:
    page.text_area(key="sql-text").set_value(query)
    return buttons(page)["Run"].click().run()


def buttons(page: AppTest) -> dict[str, Button]:
    return {button.label: button for button in page.button}


def test_a_query_runs_and_stands_in_the_link(open_sql: Open) -> None:
    page = open_sql()
    assert not page.exception
    assert "Write a query" in page.info[0].value
    run(page, "select count(*) as traces from traces")
    assert not page.exception
    assert page.dataframe[-1].value["traces"][0] > 60
    assert page.query_params["q"] == "select count(*) as traces from traces"
    run(page, "")
    assert "q" not in page.query_params


def test_a_link_shows_its_query_and_waits_for_a_click(open_page: Open) -> None:
    page = open_page("sql_page", "draw_sql", q="select 'seven' as number")
    assert page.text_area(key="sql-text").value == "select 'seven' as number"
    assert "has not run yet" in page.info[0].value
    # The schema alone.
    assert len(page.dataframe) == 1
    buttons(page)["Run"].click().run()
    assert page.dataframe[-1].value["number"].to_list() == ["seven"]
    run(page, "select 8 as number")
    # Back in the browser.
    page.query_params["q"] = "select 'seven' as number"
    page.run()
    assert page.text_area(key="sql-text").value == "select 'seven' as number"
    assert len(page.dataframe) == 1
    buttons(page)["Run"].click().run()
    assert page.dataframe[-1].value["number"].to_list() == ["seven"]


def test_looking_at_a_result_does_not_run_the_query_again_but_run_does(open_sql: Open) -> None:
    page = open_sql(q="select uuid() as id")
    first = page.dataframe[-1].value["id"][0]
    page.text_input(key="sql-schema").set_value("traces").run()
    assert page.dataframe[-1].value["id"][0] == first
    buttons(page)["Run"].click().run()
    assert page.dataframe[-1].value["id"][0] != first


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select nope\nfrom traces", "LINE 1: select nope\n               ^^^^"),
        ("select 1; drop table traces", "2 statements"),
        ("drop table traces", "DROP is not a query"),
        ("from read_csv('/etc/passwd')", "disabled by configuration"),
        ("update extensions", "not a query"),
        ("-- nothing", "no statement"),
        ("from accepted_traces('**nice** <b>')", "**nice** <b>"),
    ],
)
def test_what_fails_is_a_message_as_it_is(open_sql: Open, query: str, message: str) -> None:
    page = open_sql(q=query)
    assert not page.exception
    assert not page.error
    assert message in page.code[0].value
    run(page, "select 1 as fine")
    assert page.dataframe[-1].value["fine"].to_list() == [1]


@pytest.mark.parametrize(
    "query",
    [
        "from test_all_types()",
        "from test_vector_types(null::int)",
        "select '<script>document.title=1</script> **b** :smile:' as \"<b>name</b> **x**\"",
        "select repeat('x', 1000000) as text from range(50)",
        "select chr(0) || chr(8238) || 'x' || chr(65533) as odd",
        "select 170141183460469231731687303715884105727 as b, 18446744073709551615::ubigint as c",
        "select [[1, null], null] as list, {'a': {'b': [1]}} as struct, map {'k': 1} as map",
        "select interval 3 months as i, timestamp 'infinity' as t, date '5877642-06-25 (BC)' as d",
        "select now() as z, time '24:00' as t",
        "select null as a, null as a, null as a_1",
        "select 1 as a where false",
        "select 'nan'::double as a, 'inf'::float as b, -0.0 as c",
        "from traces",
        "from trace_browser limit 100",
        "explain select 1",
        "explain analyze from traces",
        "explain (format json) select 1",
        "describe traces",
        "pivot traces on teacher using count(*) group by split",
    ],
)
def test_every_result_is_shown_as_table_and_as_chart(open_sql: Open, query: str) -> None:
    page = open_sql(q=query)
    assert not page.exception
    assert not page.error
    assert "row" in page.caption[-1].value
    page.segmented_control(key="sql-view").set_value("Chart").run()
    assert not page.exception


def test_a_chart_is_drawn_of_the_columns_that_are_chosen(open_sql: Open) -> None:
    page = open_sql(q="select split, teacher, count(*) as traces from traces group by all")
    page.segmented_control(key="sql-view").set_value("Chart").run()
    boxes = {box.label: box for box in page.selectbox}
    labels = ("X", "Y", "Colour", "Chart type")
    assert [boxes[label].value for label in labels] == ["split", "traces", "teacher", "bar"]
    boxes["Colour"].set_value(None).run()
    assert not page.exception
    spec = json.loads(page.get("vega_lite_chart")[0].proto.spec)
    assert spec["encoding"]["y"]["title"] == "traces"


@pytest.mark.parametrize("mark", MARKS)
def test_charts_of_every_mark_know_columns_by_names_of_ours(mark: str) -> None:
    name = "a.b[0]:Q'\"\\<b>"
    rows = pl.DataFrame({name: [1, 2], "d": pl.Series(["1.5", "2"]).cast(pl.Decimal(4, 1)), "text": ["x", None]})
    drawn, spec = build_chart(rows, ChartChoice(name, "d", "text", mark))
    assert drawn.columns == ["x", "y", "color"]
    assert spec["encoding"]["x"]["field"] == "x"
    assert spec["encoding"]["x"]["title"] == name
    assert spec["encoding"]["x"]["type"] == ("ordinal" if mark in ("bar", "heatmap") else "quantitative")
    assert spec["encoding"]["color"]["type"] == "nominal"


def test_a_column_called_image_is_no_address_to_load() -> None:
    rows = pl.DataFrame({"image": ["https://example.org/?secret"], "title": [1]})
    _, spec = build_chart(rows, ChartChoice("image", "title", None, "bar"))
    assert [tooltip["title"] for tooltip in spec["encoding"]["tooltip"]] == ["image:", "title:"]


def test_the_schema_stands_beside_and_can_be_searched(open_sql: Open) -> None:
    page = open_sql()
    assert "traces" in page.dataframe[0].value["table"].to_list()
    page.text_input(key="sql-schema").set_value("pass_rate").run()
    assert set(page.dataframe[0].value["table"]) >= {"pass_rates"}
    assert page.dataframe[0].value.shape[0] < 20


def test_saved_queries_are_opened_saved_and_removed(open_sql: Open, traced: Store) -> None:
    page = open_sql()
    page.selectbox(key="sql-open").set_value("Why traces fail").run()
    assert not page.exception
    assert "unnest(reasons)" in page.text_area(key="sql-text").value
    assert page.dataframe[-1].value.columns.to_list() == ["reason", "teacher", "rule", "traces"]
    run(page, "select 1 as mine")
    page.text_input(key="sql-author").set_value("ann")
    page.text_input(key="sql-name").set_value("<b>mine</b> **x**")
    buttons(page)["Save query"].click().run()
    assert not page.exception
    assert [query.name for query in list_queries(traced) if query.author == "ann"] == ["<b>mine</b> **x**"]
    page.selectbox(key="sql-open").set_value("<b>mine</b> **x**").run()
    assert page.dataframe[-1].value["mine"].to_list() == [1]
    page.selectbox(key="sql-remove").set_value("<b>mine</b> **x**").run()
    buttons(page)["Remove"].click().run()
    assert not page.exception
    assert [query for query in list_queries(traced) if query.author is not None] == []


def test_what_cannot_be_saved_says_why(open_sql: Open) -> None:
    page = open_sql(q="select 1")
    page.text_input(key="sql-name").set_value("mine")
    buttons(page)["Save query"].click().run()
    assert "the author is empty" in page.code[0].value


def test_a_colleagues_query_is_text_in_the_menu(open_sql: Open, traced: Store) -> None:
    save_query(traced, "**b** <i>", "select 5 as five", "ben <b>")
    page = open_sql()
    assert "**b** <i>  (ben <b>)" in page.selectbox(key="sql-open").options


def test_downloads_hold_all_rows_uncut(traced: Store) -> None:
    query = "select range as n, repeat('x', 6000) as text, [1, 2] as list from range(10001)"
    assert not query_rows(traced, query, SCREEN).complete
    rows = pl.read_parquet(io.BytesIO(render_download(traced, query, "parquet")))
    assert rows.height == 10_001
    assert rows["text"].str.len_chars().min() == 6_000
    assert rows.schema["list"] == pl.List(pl.Int32)
    back = pl.read_csv(io.BytesIO(render_download(traced, "select 1 as a, 'x,\"y' as b", "csv")))
    assert back.row(0) == (1, 'x,"y')
    with pytest.raises(InputError, match="not a query"):
        render_download(traced, "drop table traces", "csv")
    for kind in ("csv", "parquet"):
        assert render_download(traced, "from test_all_types()", kind)


def test_the_line_over_a_result_says_what_is_shown() -> None:
    rows = pl.DataFrame({"a": [1]})
    assert describe_size(QueryResult(rows, complete=True, seconds=0.5)).startswith("1 row in 0.50 s.")
    assert describe_size(QueryResult(rows.clear(), complete=False, seconds=0.5)).startswith("The first 0 rows")
