"""Charts: specifications of Vega-Lite (https://vega.github.io/vega-lite/docs) as plain data, each over one table.

They are plain data because building and checking charts with Altair took most of the time of a page
(docs/decisions/0014). The tests check each chart against Vega-Lite's schema instead.
"""

from typing import Any

import polars as pl
import streamlit as st

Spec = dict[str, Any]

CATEGORIES = {"scheme": "tableau10"}
# Streamlit's theme moves the first and last label of an axis away from their bars, and leaves wide gaps around legends
# and below charts.
_LOOK: Spec = {
    "config": {"axis": {"labelFlush": False}, "legend": {"offset": 6, "padding": 0}},
    "padding": {"bottom": 4},
}


def quantitative(field: str, **options: Any) -> Spec:
    """Return a channel that shows a column of numbers. The options are Vega-Lite's."""
    return {"field": field, "type": "quantitative", **options}


def temporal(field: str, **options: Any) -> Spec:
    """Return a channel that shows a column of times."""
    return {"field": field, "type": "temporal", **options}


def ordinal(field: str, **options: Any) -> Spec:
    """Return a channel that shows a column of a few ordered values."""
    return {"field": field, "type": "ordinal", **options}


def nominal(field: str, **options: Any) -> Spec:
    """Return a channel that shows a column of names."""
    return {"field": field, "type": "nominal", **options}


def either(value: Any, otherwise: Any, **condition: str) -> Spec:
    """Return a channel with one of two values. condition: `test`, an expression, or `param`, the name of a selection.

    >>> either("white", "black", test="datum.traces > 2")
    {'condition': {'test': 'datum.traces > 2', 'value': 'white'}, 'value': 'black'}
    """
    return {"condition": {**condition, "value": value}, "value": otherwise}


def calculate(**columns: str) -> list[Spec]:
    """Return a transform that adds columns, each computed by a Vega expression."""
    return [{"calculate": expression, "as": name} for name, expression in columns.items()]


def dashed_rule(channel: str, value: float) -> Spec:
    """Return a layer with a dashed line at `value` of channel x or y."""
    return {
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": "gray"},
        "encoding": {channel: {"datum": value, "type": "quantitative"}},
    }


def draw_chart(table: pl.DataFrame, spec: Spec, *, key: str | None = None, fit: bool = True) -> None:
    """Draw a chart of a table's columns. fit: use the full width of the page or column."""
    st.vega_lite_chart(table, _LOOK | spec, key=key, width="stretch" if fit else "content")


def draw_clickable(table: pl.DataFrame, spec: Spec, key: str) -> dict[str, Any] | None:
    """Draw a chart with a selection of points. Returns the fields of the clicked point, or None if there is none."""
    event: Any = st.vega_lite_chart(table, _LOOK | spec, key=key, on_select="rerun")
    return next((points[0] for points in event.selection.values() if points), None)
