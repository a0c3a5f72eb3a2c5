"""The page Overview: how many traces there are, how many are good, and where and why the others are lost.

It draws; what it draws comes from `curate.overview`. A click on a stage or a cell offers a link to exactly its traces.
Names of teachers and models are drawn by charts and tables as text, never as HTML or Markdown.
"""

from datetime import timedelta
from typing import Any

import altair as alt
import polars as pl
import streamlit as st

from app.browser.filter_bar import choose_filter
from app.browser.pages import to_traces
from curate.browsing import count_traces
from curate.overview import (
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
from curate.trace_filter import TraceFilter
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

Chart = alt.Chart | alt.LayerChart | alt.FacetChart


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
        help="Share of all attempts that policy paper accepts. On the page SQL, `from policies` says which rules a "
        "policy asks for.",
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
    x = alt.X("start:Q", title=None, axis=None, scale=alt.Scale(domain=[0, width], nice=False))
    parts = alt.Color(
        "part:N",
        title=None,
        scale=alt.Scale(domain=["left", "lost here"], range=[KEPT, LOST]),
        legend=alt.Legend(orient="top"),
    )
    stage = alt.selection_point(name="stage", fields=["stage"])
    base = alt.Chart(funnel).encode(
        y=alt.Y("name:N", title=None, sort=funnel["name"].to_list(), axis=alt.Axis(labelLimit=160, labelOverlap=False)),
        tooltip=[
            alt.Tooltip("name:N", title="stage"),
            alt.Tooltip("traces:Q", title="left", format=","),
            alt.Tooltip("lost:Q", title="lost here", format=","),
        ],
    )
    bar = base.mark_bar(cursor="pointer").encode(opacity=alt.condition(stage, alt.value(1), alt.value(0.35)))
    text = "format(datum.traces, ',') + (datum.lost ? '  (−' + format(datum.lost, ',') + ')' : '')"
    chart = alt.layer(
        # The whole row can be clicked, also where its bar has no width.
        bar.transform_calculate(start="0", width=str(width))
        .encode(x=x, x2=alt.X2("width:Q"), color=alt.ColorValue("transparent"))
        .add_params(stage),
        bar.transform_calculate(start="0", part="'left'").encode(x=x, x2=alt.X2("traces:Q"), color=parts),
        bar.transform_calculate(start="datum.traces", part="'lost here'").encode(x=x, x2=alt.X2("end:Q"), color=parts),
        base.mark_text(align="left", dx=5, color=INK, cursor="pointer")
        .transform_calculate(text=text)
        .encode(x=alt.X("end:Q"), text=alt.Text("text:N")),
    )
    clicked = _draw(chart, "Funnel", "overview-funnel", "stage")
    if clicked is None:
        st.caption(
            "An attempt is a trace. Each rule keeps what passes it, in the order of policy strict. Click a stage for "
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
        overview.losses.with_columns(place=pl.col("lost_at").fill_null(ACCEPTED))
        .join(places, on="place")
        .sort("start", "order", descending=[False, True])
        .with_columns(top=pl.col("traces").cum_sum().over("start"))
        .with_columns(bottom=pl.col("top") - pl.col("traces"))
    )
    present = [place for place in PLACE_COLOURS if place in losses["place"]]
    chart = (
        alt.Chart(losses)
        .mark_rect()
        .encode(
            x=alt.X("start:T", title="made, UTC", axis=alt.Axis(format=_time_format(losses))),
            x2=alt.X2("end:T"),
            y=alt.Y("bottom:Q", title=None),
            y2=alt.Y2("top:Q"),
            color=alt.Color(
                "place:N",
                title=None,
                scale=alt.Scale(domain=present, range=[PLACE_COLOURS[place] for place in present]),
                legend=alt.Legend(orient="top", columns=3, symbolType="square"),
            ),
            tooltip=[
                alt.Tooltip("place:N", title="lost at"),
                alt.Tooltip("traces:Q", format=","),
                alt.Tooltip("start:T", format="%Y-%m-%d %H:%M:%S"),
                alt.Tooltip("end:T", format="%Y-%m-%d %H:%M:%S"),
            ],
        )
    )
    _draw(chart, "Where traces are lost, over time", "overview-losses")
    st.caption("By the first rule of policy strict that a trace does not pass; answered: its request failed.")


def _time_format(losses: pl.DataFrame) -> str:
    """As much of a time as tells buckets apart."""
    first, end, last = losses["start"][0], losses["end"][0], losses["end"][-1]
    if end - first >= timedelta(days=1):
        return "%Y-%m-%d"
    clock = "%H:%M:%S" if end - first < timedelta(minutes=1) else "%H:%M"
    return clock if first.date() == last.date() else f"%m-%d {clock}"


def draw_acceptance(overview: Overview, _: TraceFilter) -> None:
    """How often policy paper accepts."""
    _draw_shares(measure_acceptance(overview.attempts), "Accepted", "overview-acceptance")
    st.caption(
        "Share of attempts that policy paper accepts, with its 95% interval (Wilson), as if attempts at one prompt "
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
    chart = (
        alt.Chart(rates)
        .mark_bar()
        .encode(
            x=alt.X(
                "rate:N",
                title="pass rate, policy paper",
                sort=list(RATES),
                axis=alt.Axis(labelAngle=0, labelOverlap=False),
            ),
            y=alt.Y("groups:Q", title="groups"),
            color=alt.Color(
                "gradient:N",
                title=None,
                scale=alt.Scale(domain=["gradient", "no gradient"], range=[KEPT, NEUTRAL]),
                legend=alt.Legend(orient="top"),
            ),
            tooltip=[alt.Tooltip("rate:N"), alt.Tooltip("groups:Q", format=",")],
        )
    )
    _draw(chart, "Pass rates", "overview-pass-rates")
    st.caption(
        "A group is all attempts of one teacher, model and temperature at one prompt. Where all pass or none does, "
        "advantages are zero: reinforcement learning from groups gets no gradient."
    )


def draw_moves(overview: Overview, chosen: TraceFilter) -> None:
    """Where the target was and where it went; a click on a cell offers its traces."""
    moves = overview.moves
    most: int = moves.select(pl.col("traces").max()).item()
    move = alt.selection_point(name="move", fields=["target_rank", "new_rank"])
    before_scale, after_scale = (alt.Scale(domain=_ranks(moves[name])) for name in ("target_rank", "new_rank"))
    base = alt.Chart(moves).encode(
        x=alt.X("new_rank:O", title="rank after", scale=after_scale, axis=_rank_axis()),
        y=alt.Y("target_rank:O", title="rank before", scale=before_scale, axis=_rank_axis()),
    )
    chart = alt.layer(
        base.mark_rect(cursor="pointer")
        .encode(
            color=alt.Color("traces:Q", legend=None, scale=alt.Scale(type="sqrt", domain=[0, most], scheme="blues")),
            opacity=alt.condition(move, alt.value(1), alt.value(0.35)),
            tooltip=[
                alt.Tooltip("target_rank:O", title="rank before (0: absent)"),
                alt.Tooltip("new_rank:O", title="rank after (0: left out)"),
                alt.Tooltip("traces:Q", format=","),
            ],
        )
        .add_params(move),
        base.mark_text(fontSize=11, cursor="pointer")
        .transform_calculate(short="datum.traces < 1000 ? datum.traces : format(datum.traces, '.2s')")
        .encode(
            text=alt.Text("short:N"),
            color=alt.condition(alt.datum.traces > most / 3, alt.value("white"), alt.value("#222222")),
        ),
    )
    clicked = _draw(chart, "How the target moves", "overview-moves", "move")
    if clicked is None:
        st.caption(
            "The target's rank in the input and in the order. – before: it is not among the candidates; – after: it is "
            "left out, or there is no order. Click a cell for its traces."
        )
        return
    before, after = int(clicked["target_rank"]), int(clicked["new_rank"])
    traces = int(moves.filter(target_rank=before, new_rank=after)["traces"].sum())
    _link(narrow(chosen, target_rank=before, new_rank=after), traces, f"from {before or '–'} to {after or '–'}")


def _ranks(ranks: pl.Series) -> list[int]:
    """Every rank up to the last; absence comes last."""
    seen: list[int] = ranks.to_list()
    return [*range(1, max(seen) + 1), *([0] if 0 in seen else [])]


def _rank_axis() -> alt.Axis:
    return alt.Axis(labelExpr="datum.value == 0 ? '–' : datum.label", labelAngle=0)


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
    st.caption("Over attempts whose teacher counts them; None where none does. Accepted: by policy paper.")


def _draw_shares(shares: pl.DataFrame, title: str, key: str) -> None:
    """Bars with their intervals, those of a dimension together."""
    base = alt.Chart(shares).encode(
        y=alt.Y(
            "value:N", title=None, sort=shares["value"].to_list(), axis=alt.Axis(labelLimit=220, labelOverlap=False)
        ),
        tooltip=[
            alt.Tooltip("value:N", title="of"),
            alt.Tooltip("share:Q", format=".2%"),
            alt.Tooltip("low:Q", format=".2%"),
            alt.Tooltip("high:Q", format=".2%"),
            alt.Tooltip("hits:Q", format=","),
            alt.Tooltip("n:Q", title="out of", format=","),
        ],
    )
    colours = alt.Scale(domain=list(DIMENSION_COLOURS), range=list(DIMENSION_COLOURS.values()))
    axis = alt.Axis(format=".3~p", tickCount=5)
    chart = alt.layer(
        base.mark_bar().encode(
            x=alt.X("share:Q", title=None, axis=axis), color=alt.Color("by:N", legend=None, scale=colours)
        ),
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2=alt.X2("high:Q"), color=alt.ColorValue(LOST)),
    )
    _draw(chart, title, key)


def _draw(chart: Chart, title: str, key: str, selection: str | None = None) -> dict[str, Any] | None:
    """Draw a chart; returns the fields of what was clicked, None where nothing is."""
    st.markdown(f"**{title}**")
    chart = chart.properties(height=HEIGHT)
    if selection is None:
        st.altair_chart(chart, key=key)
        return None
    event: Any = st.altair_chart(chart, key=key, on_select="rerun", selection_mode=selection)
    return next(iter(event.selection.get(selection) or []), None)


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
