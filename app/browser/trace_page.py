"""The page of traces: a filterable table of them, newest first, and one in full.

It draws; what it draws comes from `curate.review.trace_pages`. The filter, the page and the open trace are in the link.
"""

import polars as pl
import streamlit as st

from app.browser.filter_bar import choose_filter
from app.browser.trace_card import draw_heading, draw_trace
from curate.review.trace_pages import Position, TracePage, count_traces, find_traces, load_trace
from curate.review.trace_text import with_codes
from curate.traces.filter import TraceFilter, read_time
from store import InputError, Store

PAGE = "before"
TRACE = "trace"


def draw_traces(store: Store) -> None:
    """Draw the page."""
    chosen = choose_filter(store)
    draw_table(store, chosen)
    if opened := st.session_state.pop("opened-trace", None):
        st.query_params[TRACE] = opened
    if trace_id := st.query_params.get(TRACE):
        st.divider()
        view = load_trace(store, trace_id)
        st.subheader("Trace")
        st.code(trace_id, language=None)
        draw_heading(view)
        draw_trace(store, view)


def draw_table(store: Store, chosen: TraceFilter) -> None:
    """One page of traces; a click on a row opens it below."""
    if st.session_state.get("shown-filter", chosen) != chosen:
        st.query_params.pop(PAGE, None)
        st.session_state["newer-pages"] = []
    st.session_state["shown-filter"] = chosen
    after = read_position(st.query_params.get(PAGE))
    page = find_traces(store, chosen, after=after)
    if not chosen.reads_texts:
        st.subheader(f"{count_traces(store, chosen):,} traces")
    else:
        st.subheader("Traces found")
    if page.rows.height:
        draw_rows(page.rows)
    elif not page.unfinished:
        st.info("No trace fits. Widen the filter, or make traces with gr2 trace.")
    if page.unfinished and page.next is not None:
        st.info(
            f"Searched back to {page.next.created_at:%Y-%m-%d %H:%M:%S} UTC so far: {page.rows.height} found. "
            "Older goes on from there."
        )
    draw_turning(page, after)


def draw_rows(rows: pl.DataFrame) -> None:
    """The table; its selection is the open trace."""
    shown = rows.select(
        pl.col("created_at").alias("made"),
        pl.when("accepted").then(pl.lit("✓")).otherwise(pl.lit("")).alias("paper"),
        pl.coalesce(
            "first_failed_rule", pl.when(pl.col("error").is_not_null()).then(pl.lit("answered")), pl.lit("")
        ).alias("lost at"),
        pl.col("target_rank").alias("before"),
        pl.col("predicted_rank").alias("after"),
        pl.when("copied").then(pl.lit("copied")).otherwise(pl.lit("")).alias("order"),
        "template",
        pl.concat_str(pl.col("teacher"), pl.col("model"), separator="/").alias("teacher"),
        pl.col("temperature"),
        pl.concat_str(pl.col("dataset"), pl.col("split"), separator=" ").alias("dataset"),
        pl.col("sample_index").alias("sample"),
        pl.coalesce("reasoning", "error", pl.lit("")).map_elements(with_codes, pl.String).alias("reasoning"),
    )
    key = f"traces-{st.query_params.get(PAGE, '')}"

    def open_selected() -> None:
        # Of the rows that were on the screen: traces may have come in since.
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
        column_config={
            "made": st.column_config.DatetimeColumn(format="MM-DD HH:mm:ss", width=110),
            "paper": st.column_config.TextColumn(width=50, help="accepted under ruleset paper"),
            "lost at": st.column_config.TextColumn(help="the first rule of ruleset strict that it fails"),
            "before": st.column_config.NumberColumn(width=55, help="the target's rank among the candidates"),
            "after": st.column_config.NumberColumn(width=55, help="the target's rank in the answer"),
            "temperature": st.column_config.NumberColumn(format="%g", width=95),
            "sample": st.column_config.NumberColumn(width=60),
            "reasoning": st.column_config.TextColumn(width=600),
        },
    )


def draw_turning(page: TracePage, after: Position | None) -> None:
    """Buttons to newer and older pages."""
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
    """Open another page of the table."""
    st.session_state["newer-pages"] = newer_pages
    if position:
        st.query_params[PAGE] = position
    else:
        st.query_params.pop(PAGE, None)
    st.rerun()


def write_position(position: Position) -> str:
    """A position as a link has it."""
    return f"{position.created_at.isoformat()}~{position.trace_id}"


def read_position(text: str | None) -> Position | None:
    """What `write_position` wrote. Raises InputError on anything else."""
    if not text:
        return None
    moment, _, trace_id = text.partition("~")
    try:
        return Position(read_time(moment), trace_id)
    except ValueError:
        raise InputError(f"the link says {PAGE}={text!r}, which is no place among traces; leave it out") from None
