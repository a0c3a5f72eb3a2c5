"""The page Overview: how many traces there are, how many are accepted, and which rules reject the others.

This module only draws; `curate.review.overview` computes. A click on a stage or a cell offers a link to its traces.
Charts and tables show names of teachers and models as text, never as HTML or Markdown.
"""

from datetime import timedelta
from typing import Any

import polars as pl
import streamlit as st

from app.browser.charts import calculate, draw_chart, draw_clickable, either, nominal, ordinal, quantitative, temporal
from app.browser.filter_bar import choose_filter
from app.browser.pages import draw_title, to_traces
from curate.review.overview import (
    ATTEMPTS,
    LOSSES,
    PROMPTS,
    Overview,
    filter_stage,
    load_overview,
    make_funnel,
    measure_acceptance,
    measure_copying,
    measure_usage,
    narrow,
    other_losses,
    share_accepted,
    share_copied,
)
from curate.review.trace_pages import count_traces
from curate.traces.filter import TraceFilter
from store import Store

HEIGHT = 340
KEPT, LOST, NEUTRAL, INK = "#4c78a8", "#e45756", "#888888", "#808495"
ACCEPTED = "accepted, strict"
STAGE_NAMES = {"paper": "accepted, paper", "strict": ACCEPTED}
# Each place keeps its colour for every filter.
PLACE_COLOURS = dict(
    zip(
        (*LOSSES, ACCEPTED),
        (
            *(NEUTRAL, "#b279a2", "#9d755d", "#ff9da6", "#d67195", "#e45756"),
            *("#f58518", "#eeca3b", "#72b7b2", "#4c78a8", "#54a24b"),
        ),
        strict=True,
    )
)
DIMENSION_COLOURS = {"template": "#4c78a8", "teacher": "#72b7b2", "temperature": "#b279a2"}
RATES = ("0", *(f"≤ 0.{tenths}" for tenths in range(1, 10)), "< 1", "1")
# The table's menu can show the other columns of usage. All columns together are wider than a small screen.
USAGE_SHOWN = (
    *("teacher", "model", "attempts", "accepted", "cost_usd", "cost_usd_per_accepted"),
    *("prompt_tokens_per_accepted", "completion_tokens_per_accepted"),
)
USAGE_NAMES = {"cost_usd": "cost", "prompt_tokens": "prompt tokens", "completion_tokens": "completion tokens"}
RANK_AXIS = {"labelExpr": "datum.value == 0 ? '–' : datum.label", "labelAngle": 0}


def draw_overview(store: Store) -> None:
    """Draw the page."""
    chosen = choose_filter(store)
    draw_title(
        "Overview",
        "How many traces there are, how many of them are accepted, and which rules reject the others. The filter on "
        "the left applies to all figures.",
    )
    overview = load_overview(store, chosen)
    if overview.attempts.height == 0:
        draw_nothing(store)
        return
    draw_figures(overview)
    for draw_left, draw_right in (
        (draw_funnel, draw_losses),
        (draw_acceptance, draw_copying),
        (draw_pass_rates, draw_moves),
    ):
        left, right = st.columns(2, gap="medium")
        with left:
            draw_left(overview, chosen)
        with right:
            draw_right(overview, chosen)
    draw_usage(overview)


def draw_nothing(store: Store) -> None:
    """Explain why the page is empty, and what to do."""
    if count_traces(store, TraceFilter()) == 0:
        st.info("This store has no traces yet. Run `gr2 trace NAME --teacher evidence`, or `gr2 demo` for sample data.")
    else:
        st.info("No trace matches the filter. Widen or clear it.")


def draw_figures(overview: Overview) -> None:
    """Draw the five main figures."""
    columns = st.columns(5)
    columns[0].metric("Traces", f"{overview.attempts['attempts'].sum():,}")
    columns[1].metric("Prompts", f"{overview.prompts:,}")
    columns[2].metric(
        "Accepted",
        _percent(share_accepted(overview.attempts)),
        help="Share of all traces that ruleset paper accepts. To see the rules of each ruleset, run `from rulesets` on "
        "the page SQL.",
    )
    columns[3].metric(
        "Order copied",
        _percent(share_copied(overview.attempts)),
        help="Share of the answers that repeat the order of the prompt.",
    )
    columns[4].metric("Labelled", f"{overview.labelled:,}", help="Traces with at least one label.")


def draw_funnel(overview: Overview, chosen: TraceFilter) -> None:
    """Draw how many traces remain after each rule. A click on a stage offers a link to its traces."""
    funnel = make_funnel(overview).with_columns(
        name=pl.col("stage").replace(STAGE_NAMES), end=pl.col("traces") + pl.col("lost").fill_null(0)
    )
    # This leaves room for the figures on the right, which replace an axis.
    width = 1.6 * funnel.select(pl.col("end").max()).item()
    x = quantitative("start", title=None, axis=None, scale={"domain": [0, width], "nice": False})
    shared = {
        "y": nominal(
            "name", title=None, sort=funnel["name"].to_list(), axis={"labelLimit": 160, "labelOverlap": False}
        ),
        "tooltip": [
            nominal("name", title="stage"),
            quantitative("traces", title="remaining", format=","),
            quantitative("lost", title="rejected here", format=","),
        ],
    }
    bar = shared | {"x": x, "opacity": either(1, 0.35, param="stage")}
    coloured = bar | {
        "color": nominal(
            "part",
            title=None,
            scale={"domain": ["remaining", "rejected here"], "range": [KEPT, LOST]},
            legend={"orient": "top"},
        )
    }
    clickable_bar = {"type": "bar", "cursor": "pointer"}
    text = "format(datum.traces, ',') + (datum.lost ? '  (−' + format(datum.lost, ',') + ')' : '')"
    layers = [
        # The whole row can be clicked, even if its bar has no width.
        {
            "mark": clickable_bar,
            "transform": calculate(start="0", width=str(width)),
            "encoding": bar | {"x2": {"field": "width"}, "color": {"value": "transparent"}},
            "params": [{"name": "stage", "select": {"type": "point", "fields": ["stage"]}}],
        },
        {
            "mark": clickable_bar,
            "transform": calculate(start="0", part="'remaining'"),
            "encoding": coloured | {"x2": {"field": "traces"}},
        },
        {
            "mark": clickable_bar,
            "transform": calculate(start="datum.traces", part="'rejected here'"),
            "encoding": coloured | {"x2": {"field": "end"}},
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 5, "color": INK, "cursor": "pointer"},
            "transform": calculate(text=text),
            "encoding": shared | {"x": quantitative("end"), "text": nominal("text")},
        },
    ]
    st.markdown("**Funnel**")
    clicked = draw_clickable(funnel, {"layer": layers, "height": HEIGHT}, "overview-funnel")
    if clicked is None:
        st.caption(
            "Traces that remain after each rule, in the order of ruleset strict. An attempt is a trace. Click a row to "
            "list its traces."
        )
        return
    clicked_stage: str = clicked["stage"]
    row = funnel.row(by_predicate=pl.col("stage") == clicked_stage, named=True)
    if row["lost"] is not None:
        _link(filter_stage(chosen, clicked_stage), row["lost"], f"first failed rule {clicked_stage}")
    elif clicked_stage == PROMPTS:
        _link(chosen, funnel.filter(stage=ATTEMPTS)["traces"].item(), "all attempts on these prompts")
    else:
        _link(filter_stage(chosen, clicked_stage), row["traces"], row["name"])


def draw_losses(overview: Overview, _: TraceFilter) -> None:
    """Draw the first failed rule of traces, over time."""
    others = other_losses(overview.losses)
    colours = PLACE_COLOURS | dict.fromkeys(others, INK)
    order = [*LOSSES, *others, ACCEPTED]
    places = pl.DataFrame({"place": order, "order": range(len(order))})
    # Vega-Lite does not stack bars with two ends, so they are stacked here, accepted traces at the bottom.
    losses = (
        overview.losses.with_columns(place=pl.col("first_failed_rule").fill_null(ACCEPTED))
        .join(places, on="place")
        .sort("start", "order", descending=[False, True])
        .with_columns(top=pl.col("traces").cum_sum().over("start"))
        .with_columns(bottom=pl.col("top") - pl.col("traces"))
    )
    present = [place for place in order if place in losses["place"]]
    width: timedelta = losses["end"][0] - losses["start"][0]
    encoding = {
        # Ticks that are closer than the buckets would repeat labels.
        "x": temporal(
            "start",
            title="created (UTC)",
            axis={"format": _time_format(losses), "tickMinStep": width / timedelta(milliseconds=1)},
        ),
        "x2": {"field": "end"},
        "y": quantitative("bottom", title=None),
        "y2": {"field": "top"},
        "color": nominal(
            "place",
            title=None,
            scale={"domain": present, "range": [colours[place] for place in present]},
            legend={"orient": "top", "columns": 3, "symbolType": "square"},
        ),
        "tooltip": [
            nominal("place", title="first failed rule"),
            quantitative("traces", format=","),
            temporal("start", format="%Y-%m-%d %H:%M:%S"),
            temporal("end", format="%Y-%m-%d %H:%M:%S"),
        ],
    }
    st.markdown("**First failed rule over time**")
    draw_chart(losses, {"mark": "rect", "encoding": encoding, "height": HEIGHT}, key="overview-losses")
    st.caption('First failed rule (ruleset: strict). "answered" means that the request failed.')


def _time_format(losses: pl.DataFrame) -> str:
    """The shortest time format that tells the buckets apart."""
    first, end, last = losses["start"][0], losses["end"][0], losses["end"][-1]
    if end - first >= timedelta(days=1):
        return "%Y-%m-%d"
    clock = "%H:%M:%S" if end - first < timedelta(minutes=1) else "%H:%M"
    return clock if first.date() == last.date() else f"%m-%d {clock}"


def draw_acceptance(overview: Overview, _: TraceFilter) -> None:
    """Draw how often ruleset paper accepts."""
    _draw_shares(measure_acceptance(overview.attempts), "Acceptance rate", "overview-acceptance")
    st.caption(
        "Share of traces that ruleset paper accepts, with the 95% Wilson interval. The interval treats attempts on the "
        "same prompt as independent."
    )


def draw_copying(overview: Overview, _: TraceFilter) -> None:
    """Draw how often an answer repeats the order of the prompt."""
    _draw_shares(measure_copying(overview.attempts), "Copy rate", "overview-copying")
    st.caption("Share of answers that repeat the order of the prompt, with the same interval.")


def draw_pass_rates(overview: Overview, _: TraceFilter) -> None:
    """Draw how many groups have each pass rate."""
    ends = pl.col("tenths").is_in([0, len(RATES) - 1])
    rates = overview.pass_rates.with_columns(
        rate=pl.Series(RATES), gradient=pl.when(ends).then(pl.lit("no gradient")).otherwise(pl.lit("gradient"))
    )
    encoding = {
        "x": nominal(
            "rate",
            title="pass rate (ruleset: paper)",
            sort=list(RATES),
            axis={"labelAngle": 0, "labelOverlap": False},
        ),
        "y": quantitative("groups", title="groups"),
        "color": nominal(
            "gradient",
            title=None,
            scale={"domain": ["gradient", "no gradient"], "range": [KEPT, NEUTRAL]},
            legend={"orient": "top"},
        ),
        "tooltip": [nominal("rate"), quantitative("groups", format=",")],
    }
    st.markdown("**Pass rates**")
    draw_chart(rates, {"mark": "bar", "encoding": encoding, "height": HEIGHT}, key="overview-pass-rates")
    st.caption(
        "A group is all attempts of one teacher, model and temperature on one prompt. If all of them pass, or none, "
        "all advantages are zero and the group gives reinforcement learning no gradient."
    )


def draw_moves(overview: Overview, chosen: TraceFilter) -> None:
    """Draw the target's rank before and after re-ranking. A click on a cell offers a link to its traces."""
    moves = overview.moves
    most: int = moves.select(pl.col("traces").max()).item()
    shared = {
        "x": ordinal(
            "predicted_rank",
            title="rank in the answer",
            scale={"domain": _ranks(moves["predicted_rank"])},
            axis=RANK_AXIS,
        ),
        "y": ordinal(
            "target_rank", title="rank in the prompt", scale={"domain": _ranks(moves["target_rank"])}, axis=RANK_AXIS
        ),
    }
    layers = [
        {
            "mark": {"type": "rect", "cursor": "pointer"},
            "encoding": shared
            | {
                "color": quantitative(
                    "traces", legend=None, scale={"type": "sqrt", "domain": [0, most], "scheme": "blues"}
                ),
                "opacity": either(1, 0.35, param="move"),
                "tooltip": [
                    ordinal("target_rank", title="rank in the prompt (0: absent)"),
                    ordinal("predicted_rank", title="rank in the answer (0: absent)"),
                    quantitative("traces", format=","),
                ],
            },
            "params": [{"name": "move", "select": {"type": "point", "fields": ["target_rank", "predicted_rank"]}}],
        },
        {
            "mark": {"type": "text", "fontSize": 11, "cursor": "pointer"},
            "transform": calculate(short="datum.traces < 1000 ? datum.traces : format(datum.traces, '.2s')"),
            "encoding": shared
            | {"text": nominal("short"), "color": either("white", "#222222", test=f"datum.traces > {most / 3}")},
        },
    ]
    st.markdown("**Rank of the target**")
    clicked = draw_clickable(moves, {"layer": layers, "height": HEIGHT}, "overview-moves")
    if clicked is None:
        st.caption(
            "How many traces moved the target from which rank to which. A dash means that the target is not in the "
            "prompt, or not in an answer that could be parsed. Click a cell to list its traces."
        )
        return
    before, after = int(clicked["target_rank"]), int(clicked["predicted_rank"])
    traces = int(moves.filter(target_rank=before, predicted_rank=after)["traces"].sum())
    _link(
        narrow(chosen, target_rank=before, predicted_rank=after),
        traces,
        f"target from rank {before or '–'} to {after or '–'}",
    )


def _ranks(ranks: pl.Series) -> list[int]:
    """Return every rank up to the highest, then 0 (absent) if it occurs."""
    seen: list[int] = ranks.to_list()
    return [*range(1, max(seen) + 1), *([0] if 0 in seen else [])]


def draw_usage(overview: Overview) -> None:
    """Draw tokens and cost by teacher."""
    st.markdown("**Tokens and cost**")
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {name: number(format="localized") for name in ("attempts", "accepted")}
    for name, title in USAGE_NAMES.items():
        total, each = ("dollar", "$%.5f") if name == "cost_usd" else ("localized", "%.0f")
        config[name] = number(title, format=total)
        config[f"{name}_per_attempt"] = number(f"{title} per attempt", format=each)
        config[f"{name}_per_accepted"] = number(f"{title} per accepted", format=each)
    usage = measure_usage(overview.attempts).with_columns(
        pl.col("teacher").fill_null("all"), pl.col("model").fill_null("")
    )
    st.dataframe(
        usage,
        hide_index=True,
        column_order=USAGE_SHOWN,
        column_config=config,
        key="overview-usage",
        placeholder="–",
    )
    st.caption(
        "Accepted by ruleset paper. A dash means that the teacher does not report tokens. The menu of the table shows "
        "totals and values per attempt."
    )


def _draw_shares(shares: pl.DataFrame, title: str, key: str) -> None:
    """Draw bars with their intervals, grouped by dimension."""
    shared = {
        "y": nominal(
            "value", title=None, sort=shares["value"].to_list(), axis={"labelLimit": 220, "labelOverlap": False}
        ),
        "tooltip": [
            nominal("value", title="of"),
            *(quantitative(column, format=".2%") for column in ("share", "low", "high")),
            quantitative("hits", format=","),
            quantitative("n", title="out of", format=","),
        ],
    }
    colours = {"domain": list(DIMENSION_COLOURS), "range": list(DIMENSION_COLOURS.values())}
    layers = [
        {
            "mark": "bar",
            "encoding": shared
            | {
                "x": quantitative("share", title=None, axis={"format": ".3~p", "tickCount": 5}),
                "color": nominal("by", legend=None, scale=colours),
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": shared | {"x": quantitative("low"), "x2": {"field": "high"}, "color": {"value": LOST}},
        },
    ]
    st.markdown(f"**{title}**")
    draw_chart(shares, {"layer": layers, "height": 50 + 32 * shares.height}, key=key)


def _link(chosen: TraceFilter | None, count: int, what: str) -> None:
    """Draw a link to the `count` traces of a filter. chosen: None means that the filter excludes them."""
    if chosen is None:
        st.caption("The filter excludes these traces. Widen it to see them.")
    elif count == 0:
        st.caption(f"No traces ({what}).")
    else:
        st.link_button(f"{count:,} traces: {what}", to_traces(chosen.to_query()), icon=":material/open_in_new:")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
