"""Charts: specifications of Vega-Lite (https://vega.github.io/vega-lite/docs) as plain data, each over one table.

Plain, for building and checking them with Altair at every run of a page took longer than all else that it drew
(docs/decisions/0014). The tests check each against Vega-Lite's schema instead.
"""

from typing import Any

import polars as pl
import streamlit as st

Spec = dict[str, Any]

CATEGORIES = {"scheme": "tableau10"}


def quantitative(field: str, **options: Any) -> Spec:
    """A channel that shows a column of numbers; options are Vega-Lite's."""
    return {"field": field, "type": "quantitative", **options}


def temporal(field: str, **options: Any) -> Spec:
    """A channel that shows a column of times."""
    return {"field": field, "type": "temporal", **options}


def ordinal(field: str, **options: Any) -> Spec:
    """A channel that shows a column of few values in their order."""
    return {"field": field, "type": "ordinal", **options}


def nominal(field: str, **options: Any) -> Spec:
    """A channel that shows a column of names."""
    return {"field": field, "type": "nominal", **options}


def either(value: Any, otherwise: Any, **condition: str) -> Spec:
    """A channel with one of two values; condition: `test`, an expression, or `param`, what is clicked.

    >>> either("white", "black", test="datum.traces > 2")
    {'condition': {'test': 'datum.traces > 2', 'value': 'white'}, 'value': 'black'}
    """
    return {"condition": {**condition, "value": value}, "value": otherwise}


def calculate(**columns: str) -> list[Spec]:
    """A transform that adds columns, each by an expression of Vega's."""
    return [{"calculate": expression, "as": name} for name, expression in columns.items()]


def dashed_rule(channel: str, value: float) -> Spec:
    """A layer: a dashed line across, at `value` on channel x or y."""
    return {
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": "gray"},
        "encoding": {channel: {"datum": value, "type": "quantitative"}},
    }


def draw_chart(table: pl.DataFrame, spec: Spec, *, key: str | None = None, fit: bool = True) -> None:
    """Draw a chart of a table's columns; fit: as wide as there is room."""
    st.vega_lite_chart(table, spec, key=key, width="stretch" if fit else "content")


def draw_clickable(table: pl.DataFrame, spec: Spec, key: str) -> dict[str, Any] | None:
    """Draw a chart with a selection of points; returns the fields of the one that is clicked, None where none is."""
    event: Any = st.vega_lite_chart(table, spec, key=key, on_select="rerun")
    return next((points[0] for points in event.selection.values() if points), None)
