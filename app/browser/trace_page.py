"""The page of traces: a filterable table of them, and one in full.

It draws; what it draws comes from `curate.browsing`. Text from models and catalogues is shown as text, never as HTML
or Markdown.
"""

import polars as pl
import streamlit as st

from curate.browsing import Position, TraceView, find_traces, load_choices, load_trace
from curate.tasks import ListedTask
from curate.trace_filter import TraceFilter
from prompts.semantic_ids import parse_sid
from prompts.tasks import ShownItem
from store import Store

ANY = "any"


def draw_traces(store: Store) -> None:
    """Draw the page."""
    draw_table(store, choose_filter(store))
    if trace_id := st.query_params.get("trace"):
        draw_trace(load_trace(store, trace_id))


def choose_filter(store: Store) -> TraceFilter:
    """The filters in the sidebar."""
    choices = load_choices(store)
    with st.sidebar:
        st.subheader("Filter")
        picked = {
            name: st.selectbox(name, [ANY, *(choices[name] or [])], key=name)
            for name in ("dataset", "split", "template", "teacher", "rule")
        }
        accepted = st.selectbox("accepted (policy paper)", [ANY, "yes", "no"], key="accepted")
        text = st.text_input("text in the reasoning", key="text")
    return TraceFilter(
        **{name: None if value == ANY else value for name, value in picked.items()},
        passes="paper" if accepted == "yes" else None,
        fails="paper" if accepted == "no" else None,
        text=text or None,
    )


def draw_table(store: Store, chosen: TraceFilter) -> None:
    """One page of traces; a click on a row opens it below."""
    if st.session_state.get("filter") != chosen:
        st.session_state["filter"] = chosen
        st.session_state["pages"] = [None]
    pages: list[Position | None] = st.session_state["pages"]
    found = find_traces(store, chosen, after=pages[-1])
    rows = found.rows
    st.subheader("Traces")
    if rows.height == 0:
        st.info("No trace fits. Widen the filter, or make traces with gr2 trace.")
        return
    shown = rows.select(
        "created_at",
        "dataset",
        "split",
        "template",
        "teacher",
        pl.col("sample_index").alias("sample"),
        "accepted",
        pl.col("target_rank").alias("target before"),
        pl.col("new_rank").alias("after"),
        pl.col("failed_rules").list.join(", ").fill_null("").alias("failed rules"),
        pl.coalesce("reasoning", "error", pl.lit("")).alias("reasoning"),
    )
    event = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"table-{len(pages)}",
        height=320,
    )
    if event.selection.rows:
        st.query_params["trace"] = rows["trace_id"][event.selection.rows[0]]
    newer, older, _ = st.columns([1, 1, 6])
    if newer.button("Newer", disabled=len(pages) == 1):
        pages.pop()
        st.rerun()
    if older.button("Older", disabled=found.next is None):
        pages.append(found.next)
        st.rerun()


def draw_trace(view: TraceView) -> None:
    """One trace: history, orders before and after, reasoning, verdicts, prompt and completion."""
    trace = view.trace
    st.divider()
    st.subheader("Trace")
    st.text(
        f"{trace['trace_id']}   {trace['dataset']} {trace['split']}   {trace['template']}   {trace['strategy']}   "
        f"{trace['teacher']}/{trace['model']} at temperature {trace['temperature']:g}, sample {trace['sample_index']}"
    )
    left, right = st.columns([3, 2])
    with left:
        st.caption("Candidates before and after; the target is marked")
        st.dataframe(order_table(view.listed, trace["ranking"]), hide_index=True, height=388)
        st.caption("History, oldest first")
        st.dataframe(
            pl.DataFrame(
                [{"item": name_of(item), "semantic ID": short_sid(item.sid)} for item in view.listed.task.history]
            ),
            hide_index=True,
        )
    with right:
        st.caption("Reasoning, with a title in each semantic ID")
        st.text(with_titles(trace["reasoning"] or trace["error"] or "(no reasoning)", view.listed))
        st.caption("Verdicts")
        st.dataframe(
            view.verdicts.select("rule", "passed", pl.coalesce("detail", "reason", pl.lit("")).alias("why not")),
            hide_index=True,
            height=350,
        )
        if view.labels.height:
            st.caption("Labels")
            st.dataframe(view.labels, hide_index=True)
        st.caption("Cost")
        st.text(
            f"{trace['prompt_tokens'] or '?'} prompt tokens, {trace['completion_tokens'] or '?'} completion tokens, "
            f"{trace['latency_ms'] or 0:,.0f} ms, finish reason {trace['finish_reason']}"
        )
    with st.expander("Prompt as sent"):
        for message in view.messages:
            st.caption(message["role"])
            st.code(message["content"], language=None, wrap_lines=True)
    with st.expander("Completion as received"):
        st.code(trace["completion"] or "", language=None, wrap_lines=True)


def order_table(listed: ListedTask, ranking: list[str] | None) -> pl.DataFrame:
    """Candidates in the new order where there is one, with both ranks and an arrow."""
    before = {candidate.item.item_id: rank for rank, candidate in enumerate(listed.task.candidates, 1)}
    after = {item: rank for rank, item in reversed(list(enumerate(ranking or [], 1)))}
    rows = []
    for candidate in listed.task.candidates:
        item = candidate.item.item_id
        moved = before[item] - after[item] if item in after else None
        rows.append(
            {
                "after": after.get(item),
                "before": before[item],
                "moved": "" if not moved else f"▲ {moved}" if moved > 0 else f"▼ {-moved}",
                "target": "★" if item == listed.target_item_id else "",
                "item": name_of(candidate.item),
                "semantic ID": short_sid(candidate.item.sid),
            }
        )
    rows.sort(key=lambda row: (row["after"] is None, row["after"] or 0, row["before"]))
    return pl.DataFrame(rows, schema_overrides={"after": pl.Int64})


def with_titles(text: str, listed: ListedTask) -> str:
    """The text with each semantic ID that the prompt showed as ‹codes title›; others stay as they are."""
    items = [*listed.task.history, *(candidate.item for candidate in listed.task.candidates)]
    for item in {item.sid: item for item in items}.values():
        text = text.replace(item.sid, f"‹{short_sid(item.sid)} {name_of(item)}›")
    return text


def short_sid(sid: str) -> str:
    """The codes alone, for eyes: 57·7·23·4."""
    return "·".join(map(str, parse_sid(sid) or ())) or sid


def name_of(item: ShownItem) -> str:
    """What people call an item."""
    return item.title or " > ".join(part for part in (item.brand, *item.categories[-1:]) if part) or item.item_id
