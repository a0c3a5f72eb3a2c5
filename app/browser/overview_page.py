"""The page Overview: how many traces there are, how many are good, and where and why the others are lost.

It draws; what it draws comes from `curate.review.overview`. A click on a stage or a cell offers a link to exactly its
traces. Names of teachers and models are drawn by charts and tables as text, never as HTML or Markdown.
"""

from datetime import timedelta
from typing import Any

import polars as pl
import streamlit as st

from app.browser.charts import calculate, draw_chart, draw_clickable, either, nominal, ordinal, quantitative, temporal
from app.browser.filter_bar import choose_filter
from app.browser.pages import to_traces
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
    share_accepted,
    share_copied,
)
from curate.review.trace_pages import count_traces
from curate.traces.filter import TraceFilter
from store import Store

HEIGHT = 380
KEPT, LOST, NEUTRAL, INK = "#4c78a8", "#e45756", "#888888", "#808495"
ACCEPTED = "accepted, strict"
STAGE_NAMES = {"paper": "accepted, paper", "strict": ACCEPTED}
# One colour for one place whatever the filter.
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
RATES = ("0", *(f"≤ .{tenths}" for tenths in range(1, 10)), "< 1", "1")
USAGE_NAMES = {"cost_usd": "cost", "prompt_tokens": "prompt tokens", "completion_tokens": "completion tokens"}
RANK_AXIS = {"labelExpr": "datum.value == 0 ? '–' : datum.label", "labelAngle": 0}


def draw_overview(store: Store) -> None:
    """Draw the page."""
    chosen = choose_filter(store)
    st.subheader("Overview")
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
    """Why there is nothing to see, and what to do."""
    if count_traces(store, TraceFilter()) == 0:
        st.info("No trace yet. Make some with gr2 trace NAME --teacher evidence.")
    else:
        st.info("No trace fits. Widen the filter.")


def draw_figures(overview: Overview) -> None:
    """The figures that people look at first."""
    columns = st.columns(5)
    columns[0].metric("traces", f"{overview.attempts['attempts'].sum():,}")
    columns[1].metric("prompts", f"{overview.prompts:,}")
    columns[2].metric(
        "accepted",
        _percent(share_accepted(overview.attempts)),
        help="Share of all attempts that ruleset paper accepts. On the page SQL, `from rulesets` says which rules a "
        "ruleset asks for.",
    )
    columns[3].metric(
        "copied",
        _percent(share_copied(overview.attempts)),
        help="Share of orders that leave the candidates as they came.",
    )
    columns[4].metric("labelled", f"{overview.labelled:,}")


def draw_funnel(overview: Overview, chosen: TraceFilter) -> None:
    """How many traces are left after each rule; a click on a stage offers its traces."""
    funnel = make_funnel(overview).with_columns(
        name=pl.col("stage").replace(STAGE_NAMES), end=pl.col("traces") + pl.col("lost").fill_null(0)
    )
    # Room for the figures on the right; the axis would say what they say.
    width = 1.6 * funnel.select(pl.col("end").max()).item()
    x = quantitative("start", title=None, axis=None, scale={"domain": [0, width], "nice": False})
    shared = {
        "y": nominal(
            "name", title=None, sort=funnel["name"].to_list(), axis={"labelLimit": 160, "labelOverlap": False}
        ),
        "tooltip": [
            nominal("name", title="stage"),
            quantitative("traces", title="left", format=","),
            quantitative("lost", title="lost here", format=","),
        ],
    }
    bar = shared | {"x": x, "opacity": either(1, 0.35, param="stage")}
    coloured = bar | {
        "color": nominal(
            "part",
            title=None,
            scale={"domain": ["left", "lost here"], "range": [KEPT, LOST]},
            legend={"orient": "top"},
        )
    }
    clickable_bar = {"type": "bar", "cursor": "pointer"}
    text = "format(datum.traces, ',') + (datum.lost ? '  (−' + format(datum.lost, ',') + ')' : '')"
    layers = [
        # The whole row can be clicked, also where its bar has no width.
        {
            "mark": clickable_bar,
            "transform": calculate(start="0", width=str(width)),
            "encoding": bar | {"x2": {"field": "width"}, "color": {"value": "transparent"}},
            "params": [{"name": "stage", "select": {"type": "point", "fields": ["stage"]}}],
        },
        {
            "mark": clickable_bar,
            "transform": calculate(start="0", part="'left'"),
            "encoding": coloured | {"x2": {"field": "traces"}},
        },
        {
            "mark": clickable_bar,
            "transform": calculate(start="datum.traces", part="'lost here'"),
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
            "An attempt is a trace. Each rule keeps what passes it, in the order of ruleset strict. Click a stage for "
            "its traces."
        )
        return
    clicked_stage: str = clicked["stage"]
    row = funnel.row(by_predicate=pl.col("stage") == clicked_stage, named=True)
    if clicked_stage in LOSSES:
        _link(filter_stage(chosen, clicked_stage), row["lost"], f"lost at {clicked_stage}")
    elif clicked_stage == PROMPTS:
        _link(chosen, funnel.filter(stage=ATTEMPTS)["traces"].item(), "of these prompts")
    else:
        _link(filter_stage(chosen, clicked_stage), row["traces"], row["name"])


def draw_losses(overview: Overview, _: TraceFilter) -> None:
    """Where traces were lost, over time."""
    places = pl.DataFrame({"place": list(PLACE_COLOURS), "order": range(len(PLACE_COLOURS))})
    # Stacked here: Vega-Lite does not stack bars that have two ends. What is accepted lies at the bottom.
    losses = (
        overview.losses.with_columns(place=pl.col("first_failed_rule").fill_null(ACCEPTED))
        .join(places, on="place")
        .sort("start", "order", descending=[False, True])
        .with_columns(top=pl.col("traces").cum_sum().over("start"))
        .with_columns(bottom=pl.col("top") - pl.col("traces"))
    )
    present = [place for place in PLACE_COLOURS if place in losses["place"]]
    width: timedelta = losses["end"][0] - losses["start"][0]
    encoding = {
        # Ticks closer than buckets would repeat labels.
        "x": temporal(
            "start",
            title="made, UTC",
            axis={"format": _time_format(losses), "tickMinStep": width / timedelta(milliseconds=1)},
        ),
        "x2": {"field": "end"},
        "y": quantitative("bottom", title=None),
        "y2": {"field": "top"},
        "color": nominal(
            "place",
            title=None,
            scale={"domain": present, "range": [PLACE_COLOURS[place] for place in present]},
            legend={"orient": "top", "columns": 3, "symbolType": "square"},
        ),
        "tooltip": [
            nominal("place", title="lost at"),
            quantitative("traces", format=","),
            temporal("start", format="%Y-%m-%d %H:%M:%S"),
            temporal("end", format="%Y-%m-%d %H:%M:%S"),
        ],
    }
    st.markdown("**Where traces are lost, over time**")
    draw_chart(losses, {"mark": "rect", "encoding": encoding, "height": HEIGHT}, key="overview-losses")
    st.caption("By the first rule of ruleset strict that a trace does not pass; answered: its request failed.")


def _time_format(losses: pl.DataFrame) -> str:
    """As much of a time as tells buckets apart."""
    first, end, last = losses["start"][0], losses["end"][0], losses["end"][-1]
    if end - first >= timedelta(days=1):
        return "%Y-%m-%d"
    clock = "%H:%M:%S" if end - first < timedelta(minutes=1) else "%H:%M"
    return clock if first.date() == last.date() else f"%m-%d {clock}"


def draw_acceptance(overview: Overview, _: TraceFilter) -> None:
    """How often ruleset paper accepts."""
    _draw_shares(measure_acceptance(overview.attempts), "Accepted", "overview-acceptance")
    st.caption(
        "Share of attempts that ruleset paper accepts, with its 95% interval (Wilson), as if attempts at one prompt "
        "were independent."
    )


def draw_copying(overview: Overview, _: TraceFilter) -> None:
    """How often an order is the input's."""
    _draw_shares(measure_copying(overview.attempts), "Order copied", "overview-copying")
    st.caption("Share of orders that leave the candidates as they came; intervals as for acceptance.")


def draw_pass_rates(overview: Overview, _: TraceFilter) -> None:
    """How many groups have which pass rate."""
    ends = pl.col("tenths").is_in([0, len(RATES) - 1])
    rates = overview.pass_rates.with_columns(
        rate=pl.Series(RATES), gradient=pl.when(ends).then(pl.lit("no gradient")).otherwise(pl.lit("gradient"))
    )
    encoding = {
        "x": nominal(
            "rate",
            title="pass rate, ruleset paper",
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
        "A group is all attempts of one teacher, model and temperature at one prompt. Where all pass or none does, "
        "advantages are zero: reinforcement learning from groups gets no gradient."
    )


def draw_moves(overview: Overview, chosen: TraceFilter) -> None:
    """Where the target was and where it went; a click on a cell offers its traces."""
    moves = overview.moves
    most: int = moves.select(pl.col("traces").max()).item()
    shared = {
        "x": ordinal(
            "predicted_rank", title="rank after", scale={"domain": _ranks(moves["predicted_rank"])}, axis=RANK_AXIS
        ),
        "y": ordinal(
            "target_rank", title="rank before", scale={"domain": _ranks(moves["target_rank"])}, axis=RANK_AXIS
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
                    ordinal("target_rank", title="rank before (0: absent)"),
                    ordinal("predicted_rank", title="rank after (0: left out)"),
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
    st.markdown("**How the target moves**")
    clicked = draw_clickable(moves, {"layer": layers, "height": HEIGHT}, "overview-moves")
    if clicked is None:
        st.caption(
            "The target's rank in the input and in the order. – before: it is not among the candidates; – after: it is "
            "left out, or there is no order. Click a cell for its traces."
        )
        return
    before, after = int(clicked["target_rank"]), int(clicked["predicted_rank"])
    traces = int(moves.filter(target_rank=before, predicted_rank=after)["traces"].sum())
    _link(narrow(chosen, target_rank=before, predicted_rank=after), traces, f"from {before or '–'} to {after or '–'}")


def _ranks(ranks: pl.Series) -> list[int]:
    """Every rank up to the last; absence comes last."""
    seen: list[int] = ranks.to_list()
    return [*range(1, max(seen) + 1), *([0] if 0 in seen else [])]


def draw_usage(overview: Overview) -> None:
    """Tokens and cost of each teacher."""
    st.markdown("**Tokens and cost**")
    number = st.column_config.NumberColumn
    config: dict[str, Any] = {name: number(format="localized") for name in ("attempts", "accepted")}
    for name, title in USAGE_NAMES.items():
        total, each = ("dollar", "$%.5f") if name == "cost_usd" else ("localized", "%.0f")
        config[name] = number(title, format=total)
        config[f"{name}_per_attempt"] = number("per attempt", format=each)
        config[f"{name}_per_accepted"] = number("per accepted", format=each)
    usage = measure_usage(overview.attempts).with_columns(
        pl.col("teacher").fill_null("all"), pl.col("model").fill_null("")
    )
    st.dataframe(usage, hide_index=True, column_config=config, key="overview-usage")
    st.caption("Over attempts whose teacher counts them; None where none does. Accepted: by ruleset paper.")


def _draw_shares(shares: pl.DataFrame, title: str, key: str) -> None:
    """Bars with their intervals, those of a dimension together."""
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
    draw_chart(shares, {"layer": layers, "height": HEIGHT}, key=key)


def _link(chosen: TraceFilter | None, count: int, what: str) -> None:
    """A link to the traces of a filter, of which there are `count`."""
    if chosen is None:
        st.caption("The filter leaves these traces out; widen it to see them.")
    elif count == 0:
        st.caption(f"No trace: {what}.")
    else:
        st.link_button(f"{count:,} traces: {what}", to_traces(chosen.to_query()), icon=":material/open_in_new:")


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
