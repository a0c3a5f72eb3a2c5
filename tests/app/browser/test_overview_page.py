from collections.abc import Callable
from datetime import datetime, timedelta

import polars as pl
import pytest
from playwright.sync_api import Page, expect
from streamlit.testing.v1 import AppTest

from app.browser.overview_page import PLACE_COLOURS, _time_format
from curate.review.overview import load_overview, make_funnel
from curate.review.trace_pages import count_traces
from curate.traces.filter import TraceFilter
from store import Store


def open_overview(open_page: Callable[..., AppTest], **query: str) -> AppTest:
    page = open_page("overview_page", "draw_overview", **query)
    assert not page.exception
    return page


def test_the_page_draws_figures_charts_and_costs(open_page: Callable[..., AppTest], traced: Store) -> None:
    page = open_overview(open_page)
    overview = load_overview(traced, TraceFilter())
    metrics = {metric.label: metric.value for metric in page.metric}
    assert list(metrics) == ["Traces", "Prompts", "Accepted", "Order copied", "Labelled"]
    assert metrics["Traces"] == f"{count_traces(traced, TraceFilter()):,}"
    assert metrics["Prompts"] == f"{overview.prompts:,}"
    assert metrics["Accepted"].endswith("%")
    assert metrics["Labelled"] == "0"
    assert len(page.get("vega_lite_chart")) == 6
    usage = page.dataframe[0].value
    assert usage["teacher"].to_list()[-1] == "all"
    assert usage["prompt_tokens"].isna().all()


@pytest.mark.slow
def test_the_filter_of_a_link_counts(open_page: Callable[..., AppTest], traced: Store) -> None:
    page = open_overview(open_page, passes="paper")
    assert page.metric[0].value == f"{count_traces(traced, TraceFilter(passes='paper')):,}"
    assert page.metric[2].value == "100.00%"


def test_teachers_without_any_order_have_no_share_of_copies(open_page: Callable[..., AppTest]) -> None:
    page = open_overview(open_page, first_failed_rule="parsed")
    assert page.metric[3].value == "–"


def test_nothing_to_see_says_what_to_do(open_page: Callable[..., AppTest], traced: Store) -> None:
    page = open_overview(open_page, prompt_id="nope")
    assert page.info[0].value == "No trace matches the filter. Widen or clear it."
    with traced.writing() as session:
        session.connection.execute("delete from traces")
    page.run()
    assert "Run `gr2 trace NAME --teacher evidence`" in page.info[0].value
    assert not page.metric


def test_each_place_has_a_colour_of_its_own() -> None:
    assert len(set(PLACE_COLOURS.values())) == len(PLACE_COLOURS)


@pytest.mark.parametrize(
    ("width", "span", "expected"),
    [
        (timedelta(seconds=5), timedelta(minutes=3), "%H:%M:%S"),
        (timedelta(minutes=10), timedelta(hours=8), "%H:%M"),
        (timedelta(hours=1), timedelta(hours=40), "%m-%d %H:%M"),
        (timedelta(days=3), timedelta(days=90), "%Y-%m-%d"),
    ],
)
def test_times_are_written_as_far_as_buckets_differ(width: timedelta, span: timedelta, expected: str) -> None:
    first = datetime.fromisoformat("2026-11-25 08:00")
    starts = [first, first + span]
    assert _time_format(pl.DataFrame({"start": starts, "end": [start + width for start in starts]})) == expected


@pytest.mark.slow
def test_a_click_on_a_stage_or_a_cell_links_to_its_traces(
    server: str, traced: Store, open_browser: Callable[..., Page]
) -> None:
    page = open_browser()
    page.goto(f"{server}/?split=train&teacher=evidence")
    chosen = TraceFilter(split="train", teacher="evidence")
    overview = load_overview(traced, chosen)
    lost = make_funnel(overview).filter(stage="target_first")["lost"].item()
    page.locator(".st-key-overview-funnel path[aria-label*='stage: target_first']").first.click(force=True)
    link = page.get_by_role("link", name=f"{lost} traces: first failed rule target_first")
    expect(link).to_be_visible()
    assert link.get_attribute("href") == "/traces?split=train&teacher=evidence&first_failed_rule=target_first"
    before, after, traces = overview.moves.filter(pl.col("predicted_rank") == 2).row(0)
    page.locator(
        f".st-key-overview-moves path[aria-label*='rank in the answer: 2; rank in the prompt: {before};']"
        f"[aria-label*='traces: {traces};']"
    ).click()
    expect(page.get_by_role("link", name=f"{traces} traces: target from rank {before} to {after}")).to_be_visible()
    page.goto(f"{server}{link.get_attribute('href')}")
    expect(page.get_by_text(f"{lost} traces", exact=True)).to_be_visible()
