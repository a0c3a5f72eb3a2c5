"""One trace in full, drawn for the pages of traces and of labels.

Text from models and catalogues is shown as text: `reasoning_html` escapes every character of it, the rest goes through
elements that know no markup.
"""

import html
from urllib.parse import urlencode

import altair as alt
import polars as pl
import streamlit as st

from app.browser.pages import to_traces
from curate.browsing import TraceView
from curate.tasks import ListedTask
from curate.trace_text import Part, Stretch, annotate, name_of, short_sid

# Texts longer than this are folded; what is folded is shown in parts of so many characters.
FOLDED_CHARACTERS = 6_000
PART_CHARACTERS = 100_000
TITLE_CHARACTERS = 24
STYLE = """<style>
.gr2-reasoning {white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; line-height: 1.6}
.gr2-reasoning .item {background: rgba(70, 130, 240, .18); border-radius: 4px; padding: 0 4px; unicode-bidi: isolate}
.gr2-reasoning .foreign {background: rgba(230, 60, 60, .2); border-radius: 4px; padding: 0 4px; unicode-bidi: isolate;
  text-decoration: line-through}
.gr2-reasoning .true {border-bottom: 2px solid rgba(40, 160, 90, .9)}
.gr2-reasoning .false {border-bottom: 2px solid rgba(230, 60, 60, .9)}
.gr2-reasoning .says {font-size: .8em; font-weight: 600}
</style>"""


def draw_trace(view: TraceView, *, blind: bool = False) -> None:
    """Draw all of it; blind: without verdicts and labels, and without what rules found in the reasoning."""
    left, right = st.columns([6, 5], gap="large")
    with left:
        st.markdown("##### Order before and after")
        draw_order(view.listed, view.trace["ranking"])
        st.markdown("##### History, oldest first")
        st.dataframe(history_table(view.listed), hide_index=True)
    with right:
        st.markdown("##### Reasoning")
        draw_reasoning(view, checked=not blind)
        if not blind:
            draw_judgement(view)
    draw_texts(view)


def draw_heading(view: TraceView) -> None:
    """Where a trace comes from, in one line of fields."""
    trace = view.trace
    st.dataframe(
        pl.DataFrame(
            {
                "made": [trace["created_at"]],
                "data set": [f"{trace['dataset']} {trace['split']}"],
                "template": [trace["template"]],
                "strategy": [trace["strategy"]],
                "teacher": [f"{trace['teacher']}/{trace['model']}"],
                "temperature": [f"{trace['temperature']:g}"],
                "sample": [trace["sample_index"]],
                "tokens in + out": [f"{_count(trace['prompt_tokens'])} + {_count(trace['completion_tokens'])}"],
                "cost": ["?" if trace["cost_usd"] is None else f"${trace['cost_usd']:.5f}"],
                "latency": ["?" if trace["latency_ms"] is None else f"{trace['latency_ms']:,.0f} ms"],
                "finish reason": [trace["finish_reason"] or "?"],
            }
        ),
        hide_index=True,
    )
    links = st.container(horizontal=True)
    links.link_button("All attempts on this prompt", "/compare?" + urlencode({"trace": trace["trace_id"]}))
    links.link_button("All traces of this user", to_traces({"user_id": trace["user_id"]}))
    links.link_button("Its run", to_traces({"run_id": trace["run_id"]}))


def _count(tokens: int | None) -> str:
    return "?" if tokens is None else f"{tokens:,}"


def draw_order(listed: ListedTask, ranking: list[str] | None) -> None:
    """Lines from the places before to those after, and the same as a table."""
    table = order_table(listed, ranking)
    if ranking:
        st.altair_chart(order_chart(table))
    else:
        st.info("No order could be read from the completion; these are the candidates as the prompt showed them.")
    with st.expander("As a table", expanded=not ranking):
        st.dataframe(table.drop("way"), hide_index=True, height=388)


def order_table(listed: ListedTask, ranking: list[str] | None) -> pl.DataFrame:
    """Candidates in the new order where there is one, with both ranks, an arrow, and the target marked."""
    after = {item: rank for rank, item in reversed(list(enumerate(ranking or [], 1)))}
    rows = []
    for before, candidate in enumerate(listed.task.candidates, 1):
        item = candidate.item.item_id
        moved = before - after[item] if item in after else None
        target = item == listed.target_item_id
        rows.append(
            {
                "after": after.get(item),
                "before": before,
                "moved": "" if not moved else f"▲ {moved}" if moved > 0 else f"▼ {-moved}",
                "target": "★" if target else "",
                "item": name_of(candidate.item),
                "semantic ID": short_sid(candidate.item.sid),
                "way": "target" if target else "up" if moved and moved > 0 else "down" if moved else "same",
            }
        )
    rows.sort(key=lambda row: (row["after"] is None, row["after"] or 0, row["before"]))
    return pl.DataFrame(rows, schema_overrides={"after": pl.Int64})


def order_chart(table: pl.DataFrame) -> alt.LayerChart:
    """Candidates before on the left, after on the right; lines join them, the target's is bold."""
    short = (
        pl.when(pl.col("item").str.len_chars() > TITLE_CHARACTERS)
        .then(pl.col("item").str.slice(0, TITLE_CHARACTERS - 1) + "…")
        .otherwise(pl.col("item"))
    )
    star = pl.when(pl.col("target") == "★").then(pl.lit("★ ")).otherwise(pl.lit(""))
    named = table.with_columns(place=pl.lit(0), rank=pl.col("before"), name=star + short + pl.format("  {}", "before"))
    moved = table.filter(pl.col("after").is_not_null()).with_columns(
        place=pl.lit(1), rank=pl.col("after"), name=pl.format("{}  ", "after") + star + short
    )
    ends = pl.concat([named, moved])
    colour = alt.Color(
        "way:N",
        scale=alt.Scale(domain=["target", "up", "down", "same"], range=["#e8820c", "#2f9e5b", "#c94f4f", "#9a9a9a"]),
        legend=alt.Legend(title=None, orient="top"),
    )
    base = alt.Chart(ends).encode(
        # Names stand inside of the plot, or it would be squeezed by the longest.
        x=alt.X(
            "place:Q",
            scale=alt.Scale(domain=[-1.35, 2.35], nice=False),
            axis=alt.Axis(
                title=None, orient="top", values=[0, 1], labelExpr="datum.value == 0 ? 'before' : 'after'", grid=False
            ),
        ),
        y=alt.Y("rank:Q", scale=alt.Scale(reverse=True, zero=False, nice=False, padding=12), axis=None),
        tooltip=["item:N", "before:Q", "after:Q", alt.Tooltip("semantic ID:N")],
    )
    lines = base.mark_line(point=True).encode(
        detail="before:N",
        color=colour,
        strokeWidth=alt.condition("datum.way == 'target'", alt.value(4), alt.value(1.5)),
    )
    before = base.transform_filter(alt.datum.place == 0).mark_text(align="right", dx=-9)
    after = base.transform_filter(alt.datum.place == 1).mark_text(align="left", dx=9)
    return alt.LayerChart(
        layer=[lines, *(names.encode(text="name:N", color=colour) for names in (before, after))], height=330
    )


def history_table(listed: ListedTask) -> pl.DataFrame:
    """What the user took, oldest first."""
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


def draw_reasoning(view: TraceView, *, checked: bool) -> None:
    """The reasoning with items by title, and checked, with foreign IDs and claims marked; a long one is folded."""
    trace = view.trace
    reasoning = trace["reasoning"]
    if reasoning is None:
        st.info(
            "The completion could not be read; it stands below as it came." if trace["completion"] else "No answer."
        )
        if trace["error"]:
            st.code(trace["error"], language=None, wrap_lines=True)
        return
    st.html(reasoning_html(annotate(reasoning[:FOLDED_CHARACTERS], view.listed), checked=checked))
    if len(reasoning) > FOLDED_CHARACTERS:
        draw_long("The whole reasoning", reasoning, f"reasoning-{trace['trace_id']}")


def reasoning_html(stretches: list[Stretch], *, checked: bool) -> str:
    """The stretches as HTML of ours around text that is escaped; checked: with what the store says of them."""
    parts = [STYLE, '<div class="gr2-reasoning" dir="auto">']
    for stretch in stretches:
        text, kinds, title = stretch.text, [], ""
        if stretch.part is Part.ITEM:
            text, title = stretch.title, short_sid(stretch.text)
            kinds.append("item")
        elif stretch.part is Part.FOREIGN:
            text, title = short_sid(stretch.text), "not in this prompt" if checked else ""
            kinds.append("foreign" if checked else "item")
        if checked and stretch.claim is not None:
            kinds.append("true" if stretch.claim else "false")
        parts.append(f'<span class="{" ".join(kinds)}" title="{html.escape(title)}">{html.escape(text)}</span>')
        if checked and stretch.counted is not None:
            said = "✓" if stretch.claim else f" ✗ the store counts {stretch.counted}"
            parts.append(f'<span class="says">{said}</span>')
    return "".join([*parts, "</div>"])


def draw_judgement(view: TraceView) -> None:
    """Verdicts with their reasons, and what people say."""
    st.markdown("##### Verdicts")
    st.dataframe(
        view.verdicts.select(
            pl.when("passed").then(pl.lit("✓")).otherwise(pl.lit("✗")).alias(""),
            "rule",
            pl.coalesce("detail", "reason", pl.lit("")).alias("why not"),
            pl.col("rule_version").alias("version"),
        ),
        hide_index=True,
        height=38 + 35 * max(view.verdicts.height, 1),
    )
    if view.labels.height:
        st.markdown("##### Labels")
        st.dataframe(view.labels, hide_index=True)


def draw_texts(view: TraceView) -> None:
    """Prompt and completion, exactly as they went over the wire."""
    with st.expander("Prompt as sent"):
        for message in view.messages:
            st.caption(message["role"])
            st.code(message["content"], language=None, wrap_lines=True)
    completion = view.trace["completion"] or ""
    if len(completion) > FOLDED_CHARACTERS:
        draw_long("Completion as received", completion, f"completion-{view.trace['trace_id']}")
    else:
        with st.expander("Completion as received"):
            st.code(completion, language=None, wrap_lines=True)


def draw_long(title: str, text: str, key: str) -> None:
    """A folded text in parts, so that a browser can bear a megabyte."""
    parts = -(-len(text) // PART_CHARACTERS)
    with st.expander(f"{title} ({len(text):,} characters)"):
        place = st.number_input(f"part of {parts}", 1, parts, key=key) if parts > 1 else 1
        st.code(
            text[(place - 1) * PART_CHARACTERS : place * PART_CHARACTERS], language=None, wrap_lines=True, height=400
        )
