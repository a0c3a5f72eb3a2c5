from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from app.browser.trace_page import read_position, write_position
from curate.review.trace_pages import Position, find_traces
from curate.review.trace_text import with_codes
from curate.traces.filter import TraceFilter
from store import Store

Open = Callable[..., AppTest]


def open_traces(open_page: Open, **query: str) -> AppTest:
    page = open_page("trace_page", "draw_traces", **query)
    assert not page.exception
    return page


def test_the_page_shows_traces_and_filters(open_page: Open) -> None:
    page = open_traces(open_page)
    assert page.dataframe[0].value.shape[0] == 50
    page.selectbox(key="passes").set_value("paper").run()
    assert set(page.dataframe[0].value["accepted"]) == {"✓"}
    page.selectbox(key="teacher").set_value("hostile").run()
    assert "No trace matches" in page.info[0].value
    page.button(key="clear-filter").click().run()
    assert page.dataframe[0].value.shape[0] == 50


def test_older_and_newer_turn_pages(open_page: Open) -> None:
    page = open_traces(open_page)
    first = page.dataframe[0].value
    page.button(key="older").click().run()
    second = page.dataframe[0].value
    assert second["created"].max() <= first["created"].min()
    page.button(key="newer").click().run()
    assert page.dataframe[0].value.equals(first)
    page.button(key="older").click().run()
    page.button(key="newest").click().run()
    assert page.dataframe[0].value.equals(first)


def test_a_link_opens_the_same_page_of_the_same_filter(open_page: Open, traced: Store) -> None:
    chosen = TraceFilter(fails="paper", template="rerank_evidence.v1")
    first = find_traces(traced, chosen)
    assert first.next is not None
    second = find_traces(traced, chosen, after=first.next)
    page = open_traces(open_page, before=write_position(first.next), **chosen.to_query())
    assert page.dataframe[0].value["reasoning"].to_list() == [with_codes(text) for text in second.rows["reasoning"]]


def test_a_position_in_a_link_comes_back(traced: Store) -> None:
    position = find_traces(traced, TraceFilter()).next
    assert position is not None
    assert read_position(write_position(position)) == position
    assert read_position(None) is None
    assert isinstance(position, Position)


def test_a_link_opens_one_trace_in_full(open_page: Open, traced: Store) -> None:
    trace_id = find_traces(traced, TraceFilter(passes="strict")).rows["trace_id"][0]
    page = open_traces(open_page, trace=trace_id)
    assert trace_id in page.code[0].value
    heading, order, history, reasoning, verdicts = (element.proto.body for element in page.get("html"))
    assert ">evidence/evidence.v1</dd>" in heading
    # First in the new order stands the target.
    assert '<li class="target"><span class="rank">1</span>' in order
    assert history.count("<tr>") > 2
    assert verdicts.count("✓") == verdicts.count("<tr>") - 1
    assert 'class="item"' in reasoning
    assert "<|sid_begin|>" not in reasoning
    assert "✓" in reasoning


def test_what_goes_wrong_is_a_line(open_page: Open) -> None:
    for query, message in (
        ({"trace": "nope"}, "there is no trace 'nope'"),
        ({"before": "yesterday"}, "the link says before='yesterday'"),
        ({"since": "yesterday"}, "the filter says since='yesterday'"),
        ({"first_failed_rule": "sea"}, "the filter says first_failed_rule='sea'; it must be one of answered"),
        ({"passes": "nice"}, "no ruleset is called 'nice'"),
        ({"pattern": "("}, "'(' is not a regular expression"),
    ):
        page = open_traces(open_page, **query)
        assert page.error
        assert message in page.code[-1].value
