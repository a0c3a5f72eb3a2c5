from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.browser import charts

SCRIPT = """
import polars as pl
from app.browser.charts import draw_chart

draw_chart(pl.DataFrame({{"name": ["a", "b"], "traces": [1, 2]}}), {spec!r})
"""


def drawn(spec: dict[str, Any]) -> AppTest:
    """A page with one chart."""
    return AppTest.from_string(SCRIPT.format(spec=spec), default_timeout=60).run()


@pytest.mark.parametrize(
    "encoding",
    [
        {"x": charts.quantitative("traces"), "y": charts.nominal("name", title=None, axis={"labelLimit": 160})},
        {"x": charts.ordinal("traces"), "color": charts.either("white", "black", test="datum.traces > 1")},
        {
            "x": charts.temporal("traces", axis={"format": "%H:%M"}),
            "color": charts.nominal("name", scale=charts.CATEGORIES),
        },
    ],
)
def test_channels_meet_the_schema(encoding: dict[str, Any]) -> None:
    page = drawn({"mark": "bar", "encoding": encoding})
    assert not page.exception
    assert len(page.get("vega_lite_chart")) == 1


def test_a_rule_is_a_layer() -> None:
    assert not drawn({"layer": [charts.dashed_rule("x", 0.5), charts.dashed_rule("y", 0)]}).exception


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"mark": "bars", "encoding": {}}, "bars"),
        ({"mark": "bar", "encoding": {"x": charts.quantitative("traces", tittle="x")}}, "tittle"),
        ({"mark": "bar", "encoding": {"x": charts.quantitative("attempts")}}, "attempts"),
    ],
)
def test_the_check_of_charts_finds_what_is_wrong(spec: dict[str, Any], said: str) -> None:
    (error,) = drawn(spec).exception
    assert said in error.message


def test_calculated_columns_count_as_columns() -> None:
    spec = {
        "mark": "bar",
        "transform": charts.calculate(half="datum.traces / 2"),
        "encoding": {"x": charts.quantitative("half")},
    }
    assert not drawn(spec).exception
