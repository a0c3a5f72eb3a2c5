"""The page SQL: an editor with the schema beside it, saved queries, and a result as table, chart or file.

This module only draws; `curate.review.sql_console` and `curate.review.saved_queries` do the work. The link holds the
query. Opening a link shows its query but does not run it, because anybody may have written it. Results and names are
shown as text.
"""

from collections.abc import Callable
from functools import partial

import polars as pl
import streamlit as st

from app.browser.charts import CATEGORIES, Spec, draw_chart
from app.browser.pages import draw_error, draw_title
from app.formats import render_rows
from curate.review.saved_queries import MOST_CHARACTERS, MOST_NAME_CHARACTERS, list_queries, remove_query, save_query
from curate.review.sql_console import (
    CHILD,
    DOWNLOAD,
    MARKS,
    SCREEN,
    ChartChoice,
    QueryResult,
    load_schema,
    query_rows,
    suggest_chart,
)
from store import Gr2Error, InputError, Store
from store.child_processes import pool_of

LINK = "q"
TEXT = "sql-text"
# The query that runs, which is the text at the last press of Run. The query of the link waits until Run is pressed.
QUERY = "sql-query"
LINKED = "sql-linked"
RESULT = "sql-result"
FONT = "<style>.st-key-sql-text textarea {font-family: 'Source Code Pro', monospace; font-size: 0.875rem}</style>"


def draw_sql(store: Store) -> None:
    """Draw the page."""
    pool_of(CHILD).warm_up()
    draw_title("SQL", "Query the store read-only. The link in the address bar contains the query, so you can share it.")
    _follow_link()
    left, right = st.columns(2, gap="medium")
    with left:
        draw_saved(store)
        draw_editor()
    with right:
        draw_schema(store)
    if st.session_state[QUERY].strip():
        draw_outcome(store, st.session_state[QUERY])
    elif st.session_state[LINKED].strip():
        st.info("This query came with the link and has not run yet. Read it, then press Run.")
    else:
        st.info("Write a query and press Run, or open a saved query. For a first look, try `from acceptance_funnel`.")


def _follow_link() -> None:
    """Show the query of the link. Run it only if it ran here before, as when coming back from another page."""
    ran = st.session_state.setdefault(QUERY, "")
    linked = st.query_params.get(LINK, ran)
    if linked not in (ran, st.session_state.get(LINKED)) or TEXT not in st.session_state:
        st.session_state[TEXT] = linked
    st.session_state[LINKED] = linked
    if linked != ran:
        st.session_state[QUERY] = ""
        st.session_state.pop(RESULT, None)
    _put_in_link(linked)


def _put_in_link(query: str) -> None:
    if query:
        st.query_params[LINK] = query
    else:
        st.query_params.pop(LINK, None)


def _run() -> None:
    """Run the text, even if the same query ran before."""
    st.session_state.pop(RESULT, None)
    st.session_state[QUERY] = st.session_state[LINKED] = st.session_state[TEXT]
    _put_in_link(st.session_state[QUERY])


def draw_editor() -> None:
    """Draw the text of the query in a form, because without a form, leaving the field would run half a query."""
    st.html(FONT)
    with st.form("sql-form", border=False):
        st.text_area(
            "Query",
            height=220,
            max_chars=MOST_CHARACTERS,
            key=TEXT,
            persist_state="session",
            label_visibility="collapsed",
            placeholder="select template, count(*) as traces from traces group by template",
        )
        st.form_submit_button(
            "Run", type="primary", on_click=_run, help="Ctrl+Enter in the editor also runs the query."
        )


def draw_saved(store: Store) -> None:
    """Open, save or remove a saved query."""
    saved = {query.name: query for query in list_queries(store)}

    def open_saved() -> None:
        if chosen := st.session_state["sql-open"]:
            st.session_state[TEXT] = saved[chosen].query
            # The menu is reset, so that the same query can be opened again.
            st.session_state["sql-open"] = None
            _run()

    opening, keeping = st.columns([4, 1], vertical_alignment="bottom")
    opening.selectbox(
        "Open a saved query",
        list(saved),
        index=None,
        format_func=lambda name: (
            f"{name}  (example)" if saved[name].author is None else f"{name}  ({saved[name].author})"
        ),
        key="sql-open",
        on_change=open_saved,
        placeholder="Open a saved query",
        label_visibility="collapsed",
    )
    with keeping.popover("Save", width="stretch"):
        draw_keeping(store, [query.name for query in saved.values() if query.author is not None])


def draw_keeping(store: Store, names: list[str]) -> None:
    """Save the last query that ran under a name, or remove a saved query."""
    author = st.text_input(
        "Your name", max_chars=MOST_NAME_CHARACTERS, key="sql-author", persist_state="session", autocomplete="name"
    )
    name = st.text_input("Name of the query (the one that ran last)", max_chars=MOST_NAME_CHARACTERS, key="sql-name")
    if st.button("Save query", disabled=not st.session_state[QUERY].strip()):
        _keep(lambda: save_query(store, name, st.session_state[QUERY], author))
    if names:
        gone = st.selectbox("Remove a saved query", names, index=None, key="sql-remove")
        if st.button("Remove", disabled=gone is None) and gone is not None:
            _keep(lambda: remove_query(store, gone, author))


def _keep(act: Callable[[], None]) -> None:
    try:
        act()
    except InputError as error:
        draw_error("The saved queries were not changed.", error)
    else:
        st.rerun()


@st.fragment
def draw_schema(store: Store) -> None:
    """Draw tables, views and macros with their columns."""
    text = st.text_input(
        "Tables and columns", placeholder="Find tables and columns", key="sql-schema", label_visibility="collapsed"
    )
    columns = load_schema(store, text or "")
    st.dataframe(
        columns,
        hide_index=True,
        height=250,
        column_config={
            "table": st.column_config.TextColumn(width=125),
            "column": st.column_config.TextColumn(width=120),
            "type": st.column_config.TextColumn(width=75),
            "meaning": st.column_config.TextColumn(width=245, help="Double-click a cell to read all of it."),
        },
        placeholder="",
    )
    st.caption("Labels are in labels.label_events. docs/reference/data-model.md describes all tables.")


def draw_outcome(store: Store, query: str) -> None:
    """Draw the result of the query, or why there is none. It is kept, so looking at it does not run the query again."""
    ran_for = (store.folder, query)
    if RESULT not in st.session_state or st.session_state[RESULT][0] != ran_for:
        try:
            with st.spinner("Running"):
                outcome: QueryResult | str = query_rows(store, query, SCREEN)
        except Gr2Error as error:
            outcome = str(error)
        st.session_state[RESULT] = (ran_for, outcome)
    outcome = st.session_state[RESULT][1]
    if isinstance(outcome, str):
        st.caption("The query failed:")
        # DuckDB marks the position with ^ in the next line, which needs a monospaced font and no wrapping.
        st.code(outcome, language=None, wrap_lines="^" not in outcome)
    else:
        draw_result(store, query, outcome)


@st.fragment
def draw_result(store: Store, query: str, result: QueryResult) -> None:
    """Draw rows as a table, a chart or a file."""
    rows = result.rows
    shown, csv, parquet, size = st.columns([2, 1, 1, 8], vertical_alignment="center")
    view = shown.segmented_control(
        "Show as", ["Table", "Chart"], default="Table", required=True, key="sql-view", label_visibility="collapsed"
    )
    for place, kind, mime in ((csv, "csv", "text/csv"), (parquet, "parquet", "application/vnd.apache.parquet")):
        place.download_button(
            "CSV" if kind == "csv" else "Parquet",
            # The file is rendered on demand, by running the query again.
            partial(render_download, store, query, kind),
            file_name=f"query.{kind}",
            mime=mime,
            on_click="ignore",
            width="stretch",
        )
    size.caption(describe_size(result))
    if view == "Chart":
        draw_columns(rows)
    elif rows.columns == ["explain_key", "explain_value"]:
        st.code("\n".join(rows["explain_value"]), language=None)
    else:
        st.dataframe(rows, hide_index=True, height="auto" if rows.height < 15 else 560, placeholder="NULL")


def describe_size(result: QueryResult) -> str:
    """Describe how much is shown, and how much a download contains."""
    number = f"{result.rows.height:,} row{'' if result.rows.height == 1 else 's'}"
    shown = number if result.complete else f"The first {number}"
    return (
        f"{shown} in {result.seconds:.2f} s. Texts are cut at {SCREEN.characters:,} characters. A download runs the "
        f"query again and has full texts, up to {DOWNLOAD.rows:,} rows or {(DOWNLOAD.bytes or 0) // 1_000_000} MB. "
        "In CSV, a text that a spreadsheet would run as a formula gets a ' in front."
    )


def render_download(store: Store, query: str, kind: str) -> bytes:
    """Return all rows, up to the limits of downloads, as csv or parquet. Raises InputError if the query fails."""
    return render_rows(query_rows(store, query, DOWNLOAD).rows, kind)


def draw_columns(rows: pl.DataFrame) -> None:
    """Draw a chart of chosen columns."""
    suggested = suggest_chart(rows)
    if suggested is None:
        st.info("A chart needs at least one row, a column of numbers and another column.")
        return
    names = rows.columns
    boxes = st.columns(4)
    x = boxes[0].selectbox("X", names, index=names.index(suggested.x))
    y = boxes[1].selectbox("Y", names, index=names.index(suggested.y))
    colours = [None, *names]
    colour = boxes[2].selectbox(
        "Colour",
        colours,
        index=colours.index(suggested.colour),
        format_func=lambda name: "(none)" if name is None else name,
    )
    mark = boxes[3].selectbox("Chart type", MARKS, index=MARKS.index(suggested.mark))
    draw_chart(*build_chart(rows, ChartChoice(x, y, colour, mark)))


def build_chart(rows: pl.DataFrame, choice: ChartChoice) -> tuple[pl.DataFrame, Spec]:
    """Return the table and the chart.

    Columns are renamed, so that no character of their names has a meaning to Vega.
    """
    used = {"x": choice.x, "y": choice.y} | ({"color": choice.colour} if choice.colour is not None else {})
    drawn = pl.DataFrame([_drawable(rows[name]).alias(channel) for channel, name in used.items()])
    cells = choice.mark == "heatmap"
    kinds = {
        "x": _kind(drawn["x"], discrete=cells or choice.mark == "bar"),
        "y": _kind(drawn["y"], discrete=cells),
    }
    encoding: Spec = {
        # Names keep the query's order, while numbers and times are sorted.
        channel: {
            "field": channel,
            "type": kind,
            "title": used[channel],
            "sort": None if kind == "nominal" else "ascending",
        }
        for channel, kind in kinds.items()
    }
    # A few labels fit horizontally; many must be rotated.
    encoding["x"]["axis"] = {"labelLimit": 160} | ({"labelAngle": 0} if drawn["x"].n_unique() <= 8 else {})
    if choice.colour is not None:
        kind = _kind(drawn["color"])
        colours = {} if kind == "quantitative" else {"scale": CATEGORIES}
        encoding["color"] = {"field": "color", "type": kind, "title": choice.colour, **colours}
    # The colon keeps Vega from loading a field called "image" as the address of a picture.
    encoding["tooltip"] = [
        {"field": channel, "type": _kind(drawn[channel]), "title": f"{name}:"} for channel, name in used.items()
    ]
    return drawn, {"mark": "rect" if cells else choice.mark, "encoding": encoding, "height": 420}


def _drawable(column: pl.Series) -> pl.Series:
    """Return the column with decimals as floats, because Vega has no decimals."""
    return column.cast(pl.Float64) if column.dtype.is_decimal() else column


def _kind(column: pl.Series, *, discrete: bool = False) -> str:
    """Vega-Lite's type of a column."""
    number, moment = column.dtype.is_numeric(), column.dtype.is_temporal()
    if discrete and (moment or (number and column.n_unique() <= 50)):
        return "ordinal"
    return "quantitative" if number else "temporal" if moment else "nominal"
