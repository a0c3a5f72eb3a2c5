"""The page Traces: a table of traces, newest first, and one of them in full.

This module only draws; `curate.review.trace_pages` reads. The link holds the filter, the page and the open trace.
"""

import polars as pl
import streamlit as st

from app.browser.filter_bar import choose_filter
from app.browser.pages import draw_title
from app.browser.trace_card import draw_heading, draw_trace
from curate.review.trace_pages import Position, TracePage, count_traces, find_traces, load_trace
from curate.review.trace_text import with_codes
from curate.traces.filter import TraceFilter, read_time
from store import InputError, Store

PAGE = "before"
TRACE = "trace"
# The columns that fit on a small screen. The table's menu can show the others.
SHOWN = ("created", "accepted", "first failed rule", "target", "template", "teacher", "reasoning")
# The columns that only rollouts have.
ROLLOUT = ("step", "reward")


def draw_traces(store: Store) -> None:
    """Draw the page."""
    chosen = choose_filter(store)
    draw_table(store, chosen)
    if opened := st.session_state.pop("opened-trace", None):
        st.query_params[TRACE] = opened
    if trace_id := st.query_params.get(TRACE):
        view = load_trace(store, trace_id)
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown("#### Trace", width="content")
            st.code(trace_id, language=None, width="content")
        draw_heading(view)
        draw_trace(store, view)


def draw_table(store: Store, chosen: TraceFilter) -> None:
    """Draw one page of traces. A click on a row opens its trace below."""
    if st.session_state.get("shown-filter", chosen) != chosen:
        st.query_params.pop(PAGE, None)
        st.session_state["newer-pages"] = []
    st.session_state["shown-filter"] = chosen
    after = read_position(st.query_params.get(PAGE))
    page = find_traces(store, chosen, after=after)
    draw_title(
        "Traces found" if chosen.reads_texts else f"{count_traces(store, chosen):,} traces",
        "Newest first. Tick a row to open its trace below. The filter on the left narrows the table.",
    )
    if page.rows.height:
        draw_rows(page.rows)
    elif not page.unfinished:
        st.info("No trace matches. Widen or clear the filter, or make traces: `gr2 trace NAME --teacher evidence`.")
    if page.unfinished and page.next is not None:
        st.info(
            f"Found {page.rows.height} so far, back to {page.next.created_at:%Y-%m-%d %H:%M:%S} UTC. Press Older to "
            "search on from there."
        )
    draw_turning(page, after)


def draw_rows(rows: pl.DataFrame) -> None:
    """Draw the table. Its selection is the open trace."""
    before, after = (pl.col(name).cast(pl.String).fill_null("–") for name in ("target_rank", "predicted_rank"))
    shown = rows.select(
        pl.col("created_at").alias("created"),
        pl.when("accepted").then(pl.lit("✓")).otherwise(pl.lit("")).alias("accepted"),
        pl.coalesce(
            "first_failed_rule", pl.when(pl.col("error").is_not_null()).then(pl.lit("answered")), pl.lit("")
        ).alias("first failed rule"),
        pl.concat_str(before, pl.lit(" → "), after).alias("target"),
        "template",
        pl.concat_str(pl.col("teacher"), pl.col("model"), separator="/").alias("teacher"),
        pl.coalesce("reasoning", "error", pl.lit("")).map_elements(with_codes, pl.String).alias("reasoning"),
        pl.when("copied").then(pl.lit("✓")).otherwise(pl.lit("")).alias("order copied"),
        pl.col("temperature"),
        pl.concat_str(pl.col("dataset"), pl.col("split"), separator=" ").alias("dataset"),
        pl.col("sample_index").alias("sample"),
        "step",
        "reward",
    )
    key = f"traces-{st.query_params.get(PAGE, '')}"

    def open_selected() -> None:
        # The selection refers to the rows that were on the screen, because newer traces may have arrived since.
        selected = st.session_state[key].selection.rows
        if selected:
            st.session_state["opened-trace"] = rows["trace_id"][selected[0]]

    st.dataframe(
        shown,
        hide_index=True,
        on_select=open_selected,
        selection_mode="single-row",
        key=key,
        height=320,
        column_order=(*SHOWN, *ROLLOUT) if rows["step"].count() else SHOWN,
        column_config={
            "created": st.column_config.DatetimeColumn(format="MM-DD HH:mm:ss", width=110, help="UTC"),
            "accepted": st.column_config.TextColumn(width=70, help="Accepted by ruleset paper."),
            "first failed rule": st.column_config.TextColumn(
                width=115, help='First failed rule (ruleset: strict). "answered" means that the request failed.'
            ),
            "target": st.column_config.TextColumn(
                width=60, help="The target's rank in the prompt → its rank in the answer. A dash: it is not there."
            ),
            "template": st.column_config.TextColumn(width=125),
            "teacher": st.column_config.TextColumn(width=145, help="Teacher/model."),
            "reasoning": st.column_config.TextColumn(width=260),
            "temperature": st.column_config.NumberColumn(format="%g"),
            "step": st.column_config.NumberColumn(width=50, help="Of the training that sampled the rollout."),
            "reward": st.column_config.NumberColumn(format="%.3f", width=60),
        },
    )


def draw_turning(page: TracePage, after: Position | None) -> None:
    """Draw the buttons to newer and older pages."""
    if after is None:
        st.session_state["newer-pages"] = []
    newer_pages: list[str] = st.session_state.setdefault("newer-pages", [])
    here = st.query_params.get(PAGE, "")
    row = st.container(horizontal=True)
    if row.button("Newest", disabled=after is None, key="newest"):
        turn("", [])
    if row.button("Newer", disabled=not newer_pages, key="newer"):
        turn(newer_pages[-1], newer_pages[:-1])
    if row.button("Older", disabled=page.next is None, key="older") and page.next is not None:
        turn(write_position(page.next), [*newer_pages, here])


def turn(position: str, newer_pages: list[str]) -> None:
    """Turn to another page of the table."""
    st.session_state["newer-pages"] = newer_pages
    if position:
        st.query_params[PAGE] = position
    else:
        st.query_params.pop(PAGE, None)
    st.rerun()


def write_position(position: Position) -> str:
    """Write a position for a link."""
    return f"{position.created_at.isoformat()}~{position.trace_id}"


def read_position(text: str | None) -> Position | None:
    """Read the position that `write_position` wrote. None for an empty text. Raises InputError on any other text."""
    if not text:
        return None
    moment, _, trace_id = text.partition("~")
    try:
        return Position(read_time(moment), trace_id)
    except ValueError:
        raise InputError(f"the link says {PAGE}={text!r}, which is not a position in the table; remove it") from None
