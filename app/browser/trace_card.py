"""One trace in full, for the pages Traces and Label.

Text from models and catalogues is shown as plain text: `trace_html` escapes all of it, and the other elements used here
do not interpret markup.
"""

import orjson
import polars as pl
import streamlit as st
from streamlit.elements.lib.mutable_expander_container import ExpanderContainer

from app.browser.pages import to_page, to_traces
from app.browser.trace_html import fields_html, find_moves, order_html, reasoning_html, table_html
from curate.review.trace_pages import Judgement, TraceView, load_messages
from curate.review.trace_text import annotate, name_of, short_sid
from curate.traces.tasks import ListedTask
from store import Store

# Longer texts are folded, and then shown in parts.
FOLDED_CHARACTERS = 6_000
PART_CHARACTERS = 100_000


def draw_trace(store: Store, view: TraceView) -> None:
    """Draw a trace. Without a judgement, claims in the reasoning are not marked as true or false either."""
    left, right = st.columns([6, 5], gap="medium")
    with left:
        st.markdown("##### Candidates before and after")
        draw_order(view)
        st.markdown("##### History, oldest first")
        st.html(table_html(history_table(view.listed)))
    with right:
        st.markdown("##### Reasoning")
        draw_reasoning(view)
        if view.judgement is not None:
            draw_judgement(view.judgement)
    draw_texts(store, view)


def draw_heading(view: TraceView) -> None:
    """Draw where a trace comes from, and links to related traces."""
    trace = view.trace
    fields = {
        "created (UTC)": f"{trace['created_at']:%Y-%m-%d %H:%M:%S}",
        "dataset": f"{trace['dataset']} {trace['split']}",
        "template": trace["template"],
        "strategy": trace["strategy"],
        "teacher": f"{trace['teacher']}/{trace['model']}",
        "temperature": f"{trace['temperature']:g}",
        "sample": trace["sample_index"],
        "tokens in / out": f"{_count(trace['prompt_tokens'])} / {_count(trace['completion_tokens'])}",
        "cost": "–" if trace["cost_usd"] is None else f"${trace['cost_usd']:.5f}",
        "latency": "–" if trace["latency_ms"] is None else f"{trace['latency_ms']:,.0f} ms",
        "finish reason": trace["finish_reason"] or "–",
    }
    if trace["step"] is not None:
        rewards = (f"{name} {_figure(value)}" for name, value in orjson.loads(trace["rewards"]).items())
        fields |= {
            "step": f"{trace['step']:,}",
            "reward": f"{_figure(trace['reward'])} ({', '.join(rewards)})",
            "advantage": f"{trace['advantage']:.4g}",
            "learned from": "yes" if trace["kept"] else "no",
        }
    st.html(fields_html(fields))
    links = st.container(horizontal=True)
    links.link_button("All attempts on this prompt", to_page("compare", {"trace": trace["trace_id"]}))
    links.link_button("All traces of this user", to_traces({"user_id": trace["user_id"]}))
    links.link_button("All traces of this run", to_traces({"run_id": trace["run_id"]}))


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _count(tokens: int | None) -> str:
    return "–" if tokens is None else f"{tokens:,}"


def draw_order(view: TraceView) -> None:
    """Draw the candidates before and after re-ranking. If no order could be parsed, draw only those before."""
    moves = find_moves(view.listed, view.trace["ranking"])
    if not view.trace["ranking"]:
        st.info(
            "The completion contains no order that could be parsed. Below are the candidates as the prompt lists them."
        )
    st.html(order_html(moves))


def history_table(listed: ListedTask) -> pl.DataFrame:
    """Return a table of the user's history, oldest first."""
    return pl.DataFrame(
        [
            {
                "item": name_of(item),
                "category": " > ".join(item.categories[-2:]),
                "brand": item.brand or "",
                "semantic ID": short_sid(item.sid),
            }
            for item in listed.task.history
        ],
        schema=dict.fromkeys(("item", "category", "brand", "semantic ID"), pl.String),
    )


def draw_reasoning(view: TraceView) -> None:
    """Draw the reasoning with titles in place of IDs. With a judgement, unknown IDs and claims are marked."""
    trace = view.trace
    reasoning = trace["reasoning"]
    if reasoning is None:
        st.info(
            "The completion could not be parsed. You can read it below, as received."
            if trace["completion"]
            else "The teacher gave no answer."
        )
        if trace["error"]:
            st.code(trace["error"], language=None, wrap_lines=True)
        return
    st.html(reasoning_html(annotate(reasoning[:FOLDED_CHARACTERS], view.listed), checked=view.judgement is not None))
    if len(reasoning) > FOLDED_CHARACTERS:
        draw_folded("Full reasoning", reasoning, "reasoning", view)


def draw_judgement(judgement: Judgement) -> None:
    """Draw verdicts with their reasons, and people's labels."""
    st.markdown("##### Verdicts")
    passed = pl.when("passed").then(pl.lit("✓")).otherwise(pl.lit("✗"))
    why_not = pl.coalesce("detail", "reason").alias("reason")
    verdicts = judgement.verdicts.select(passed.alias(""), "rule", why_not, pl.col("rule_version").alias("version"))
    st.html(table_html(verdicts))
    if judgement.labels.height:
        st.markdown("##### Labels")
        tags, times = pl.col("tags").list.join(", "), pl.col("created_at").dt.strftime("%Y-%m-%d %H:%M")
        st.html(table_html(judgement.labels.with_columns(tags, times)))


def draw_texts(store: Store, view: TraceView) -> None:
    """Draw prompt and completion, byte for byte as sent and received."""
    prompt = fold("Prompt as sent", "prompt")
    if prompt.open:
        with prompt:
            for message in load_messages(store, view.trace["prompt_id"]):
                st.caption(message["role"])
                st.code(message["content"], language=None, wrap_lines=True)
    draw_folded("Completion as received", view.trace["completion"] or "", "completion", view)


def draw_folded(title: str, text: str, key: str, view: TraceView) -> None:
    """Draw a folded text of a trace.

    A long text is shown in parts, because a browser cannot render a megabyte at once.
    """
    is_long = len(text) > FOLDED_CHARACTERS
    place = fold(f"{title} ({len(text):,} characters)" if is_long else title, key)
    if place.open:
        parts = -(-len(text) // PART_CHARACTERS)
        with place:
            part = (
                st.number_input(f"Part (of {parts})", 1, parts, key=f"{key}-{view.trace['trace_id']}")
                if parts > 1
                else 1
            )
            shown = text[(part - 1) * PART_CHARACTERS : part * PART_CHARACTERS]
            st.code(shown, language=None, wrap_lines=True, height=400 if is_long else "content")


def fold(title: str, key: str) -> ExpanderContainer:
    """An expander whose content is loaded when it is opened. It stays open from trace to trace."""
    return st.expander(title, key=f"unfolded-{key}", on_change="rerun")
