import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from app.browser.compare_page import ONE_LIST, TWO_CONFIGURATIONS
from curate.review.attempts import load_attempts
from curate.review.configurations import list_configurations
from curate.review.trace_pages import find_traces
from curate.traces.filter import TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import Store

Open = Callable[..., AppTest]


def open_comparison(open_page: Open, **query: str) -> AppTest:
    page = open_page("compare_page", "draw_comparison", **query)
    assert not page.exception
    return page


def find(store: Store, **conditions: str) -> dict[str, str]:
    return find_traces(store, TraceFilter(**conditions)).rows.row(0, named=True)


def test_a_link_from_a_trace_shows_all_attempts_on_its_list(open_page: Open, traced: Store) -> None:
    trace_id = find(traced, teacher="evidence", fails="paper")["trace_id"]
    tried = load_attempts(traced, trace_id)
    page = open_comparison(open_page, trace=trace_id)
    headings = [heading.value for heading in page.markdown]
    assert headings[:2] == [f"##### {tried.accepted} accepted", f"##### {tried.rejected} rejected"]
    assert tried.listed.list_id in page.text[0].value
    tables = [frame.value for frame in page.dataframe]
    links = [link for table in tables if "open" in table for link in table["open"]]
    assert f"/traces?trace={trace_id}" in links
    assert len(links) == len(tried.attempts)
    assert tables[-1]["target"].to_list().count("★") == 1
    # Each order names every candidate by its number and marks the target.
    orders = [order for table in tables if "order" in table for order in table["order"]]
    for order, attempt in zip(orders, tried.attempts, strict=True):
        numbers = [int(number.removeprefix("★")) for number in order.split(", ")]
        assert sorted(numbers) == list(range(1, len(tried.listed.task.candidates) + 1))
        assert attempt.target_rank is not None
        assert f"★{attempt.target_rank}" in order.split(", ")
    assert trace_id in {attempt.trace_id for attempt in tried.attempts}
    chosen = {box.label: box.value for box in page.selectbox}
    assert trace_id in {attempt.trace_id for attempt in tried.attempts if attempt.name in chosen.values()}


def test_links_by_list_and_by_prompt_show_the_same(open_page: Open, traced: Store) -> None:
    with traced.reading() as session:
        ((list_id, prompt_id),) = session.connection.execute("select list_id, prompt_id from traces limit 1").fetchall()
    by_list, by_prompt = (open_comparison(open_page, **query) for query in ({"list": list_id}, {"prompt": prompt_id}))
    assert by_list.dataframe[0].value.equals(by_prompt.dataframe[0].value)
    assert by_list.text[0].value == by_prompt.text[0].value


def test_any_two_attempts_can_be_chosen(open_page: Open, traced: Store) -> None:
    with traced.reading() as session:
        ((list_id,),) = session.connection.execute(
            "select list_id from traces where teacher = 'evidence' group by list_id having count(*) > 2 limit 1"
        ).fetchall()
    page = open_comparison(open_page, list=list_id)
    assert {line[:1] for line in page.code[-1].value.split("\n")} & {"-", "+"}
    page.selectbox[1].set_value(page.selectbox[0].value).run()
    assert {line[:2] for line in page.code[-1].value.split("\n")} == {"  "}
    assert "Both reasonings are the same." in [caption.value for caption in page.caption]
    assert set(page.dataframe[-1].value["moved"]) == {""}


@pytest.mark.parametrize("teacher", ["hostile", "broken", "megabyte"])
def test_hostile_attempts_are_shown_as_text_and_soon(open_page: Open, traced: Store, teacher: str) -> None:
    trace_id = find(traced, teacher=teacher)["trace_id"]
    page = open_comparison(open_page, trace=trace_id)
    diff = page.code[-1].value
    assert ("A long story about soap." if teacher == "megabyte" else "<script>document.title=") in diff
    assert "\u202e" not in diff
    warnings = " ".join(warning.value for warning in page.warning)
    assert ("no reasoning" in warnings) == (teacher == "broken")
    assert ("too long" in warnings) == (teacher == "megabyte")
    started = time.perf_counter()
    page.run()
    assert time.perf_counter() - started < 10


def test_a_list_with_one_attempt_has_no_pair(open_page: Open, traced: Store) -> None:
    with traced.reading() as session:
        ((list_id,),) = session.connection.execute(
            "select list_id from traces group by list_id having count(*) = 1 limit 1"
        ).fetchall()
    page = open_comparison(open_page, list=list_id)
    assert "fewer than two attempts" in page.info[0].value


def test_an_unknown_id_is_a_message_and_another_can_be_entered(open_page: Open, traced: Store) -> None:
    page = open_comparison(open_page, list="nope")
    assert "no candidate list, prompt or trace 'nope'" in page.code[-1].value
    trace_id = find(traced, teacher="evidence")["trace_id"]
    page.text_input[0].set_value(trace_id).run()
    assert not page.error
    assert page.dataframe[0].value.shape[0] > 0
    assert page.query_params["list"] == trace_id


def test_without_a_link_two_configurations_are_compared(open_page: Open, traced: Store) -> None:
    sample(traced, EvidenceTeacher(), SamplingSettings("shop", limit=40, template="rerank.v1", temperature=0.5))
    page = open_comparison(open_page)
    first, second = list(list_configurations(traced))[:2]
    assert [box.value for box in page.selectbox] == [first, second]
    assert page.markdown[0].value == "##### 40 lists that both tried"
    measures, passed, better, *_ = (frame.value for frame in page.dataframe)
    assert measures[""].to_list()[0] == "accepted at the first attempt"
    cells = [int(cell.split(" ")[0]) for column in ("accepted by B", "not by B") for cell in passed[column]]
    assert sum(cells) == 40
    assert better["list"].str.startswith("/compare?list=").all()
    page.selectbox[1].set_value(first).run()
    assert [info.value for info in page.info] == ["There are none.", "There are none."]
    page.segmented_control[0].set_value(ONE_LIST).run()
    assert "Enter an ID" in page.info[0].value


def test_one_configuration_cannot_be_compared(open_page: Open, traced: Store) -> None:
    with traced.writing() as session:
        session.connection.execute("delete from traces where teacher <> 'evidence'")
    assert "gr2 trace NAME" in open_comparison(open_page).info[0].value


def test_configurations_without_a_list_in_common(open_page: Open, traced: Store) -> None:
    with traced.writing() as session:
        session.connection.execute("update traces set list_id = teacher")
    page = open_comparison(open_page)
    assert page.info[0].value == "There is no list that both A and B tried. Choose another pair."
    assert page.segmented_control[0].value == TWO_CONFIGURATIONS


@pytest.mark.slow
def test_in_a_real_browser_hostile_attempts_do_no_harm(
    server: str, traced: Store, open_browser: Callable[[], Page]
) -> None:
    page = open_browser()
    page.goto(f"{server}/compare?trace={find(traced, teacher='hostile')['trace_id']}")
    expect(page.get_by_text("<script>document.title='owned'</script> **bold**").first).to_be_visible()
    assert page.title() == "gr2"
    assert page.locator("img[src=x]").count() == 0
