"""The page Compare: all attempts on one candidate list, two of them word by word, and two configurations compared.

This module only draws; `curate.review.attempts`, `curate.review.text_diff` and `curate.review.configurations` compute.
A link opens a list by the id of the list, of a prompt or of a trace. Text from models and catalogues is shown by
elements that do not interpret markup.
"""

import numpy as np
import polars as pl
import streamlit as st
from numpy.typing import NDArray

from app.browser.charts import draw_chart, either, nominal, quantitative
from app.browser.pages import draw_title, to_page, to_traces
from curate.review.attempts import (
    Attempt,
    ListAttempts,
    kendall_taus,
    load_attempts,
    load_pair,
    order_moves,
    order_text,
    pick_pair,
    rank_orders,
)
from curate.review.configurations import (
    ANY,
    FIRST_ACCEPTED,
    SHARE,
    ConfigurationComparison,
    compare_configurations,
    list_configurations,
)
from curate.review.text_diff import ReadText, diff_lines, diff_texts, read_text
from curate.review.trace_text import name_of
from curate.traces.tasks import ListedTask
from store import Store

ONE_LIST = "Attempts on one list"
TWO_CONFIGURATIONS = "Two teachers or templates"
SHARES = (FIRST_ACCEPTED, SHARE, ANY)
TAU = "Kendall's tau is 1 for the same order, 0 for unrelated orders and -1 for the reversed order."
INPUT = "prompt"
TITLE_CHARACTERS = 46
# These columns do not fit on a small screen. The table's menu shows them.
HIDDEN = ("tokens", "labels")
CELL = 34
TITLE = 180
LABELS = 300


def draw_comparison(store: Store) -> None:
    """Draw the page."""
    linked_id = next((st.query_params[name] for name in ("list", "prompt", "trace") if st.query_params.get(name)), None)
    draw_title(
        "Compare",
        "All attempts on one candidate list side by side, or two ways to make traces on the lists that both tried.",
    )
    view = st.segmented_control(
        "Compare",
        [ONE_LIST, TWO_CONFIGURATIONS],
        default=ONE_LIST if linked_id else TWO_CONFIGURATIONS,
        required=True,
        key="compare-view",
        label_visibility="collapsed",
    )
    if view == TWO_CONFIGURATIONS:
        draw_configurations(store)
        return
    typed = st.text_input("ID of a list, prompt or trace", value=linked_id, key=f"compare-id-{linked_id}")
    if not typed:
        st.info(
            "Enter an ID, or follow a link: from a trace on the page Traces, or from a list under "
            f'"{TWO_CONFIGURATIONS}".'
        )
        return
    if typed != linked_id:
        st.query_params.from_dict({"list": typed})
    draw_list(store, typed)


# One list


def draw_list(store: Store, id_: str) -> None:
    """Draw the attempts on a list, their orders, and two of them in full."""
    tried = load_attempts(store, id_)
    st.text(f"List {tried.listed.list_id} ({tried.dataset}, {tried.split}), user {tried.user_id}")
    shown = len(tried.attempts)
    if shown < tried.accepted + tried.rejected:
        st.caption(f"Only the first {shown} of {tried.accepted + tried.rejected:,} attempts are shown.")
    for accepted, count, title in ((True, tried.accepted, "accepted"), (False, tried.rejected, "rejected")):
        st.markdown(f"##### {count:,} {title}")
        group = [attempt for attempt in tried.attempts if attempt.accepted == accepted]
        if group:
            draw_attempts(group, tried.listed)
    if tried.attempts:
        st.caption(
            "An order lists the candidates, best first, by their position in the prompt. ★ marks the target. The chart "
            "below has all titles."
        )
    draw_orders(tried)
    draw_pair(store, tried, id_)


def draw_attempts(attempts: list[Attempt], listed: ListedTask) -> None:
    """Draw a table of attempts."""
    items = {candidate.item.item_id: candidate.item for candidate in listed.task.candidates}
    rows = [
        {
            "attempt": attempt.name,
            "open": to_traces({"trace": attempt.trace_id}),
            "target": f"{attempt.target_rank or '–'} → {attempt.predicted_rank or '–'}",
            "order": order_text(list(items), attempt.ranking, listed.target_item_id),
            "ranked first": name_of(items[attempt.ranking[0]])
            if attempt.ranking and attempt.ranking[0] in items
            else "",
            "failed rules": ", ".join(attempt.failures),
            "template": attempt.configuration.template,
            "teacher": f"{attempt.configuration.teacher}/{attempt.configuration.model}",
            "temperature": f"{attempt.configuration.temperature:g}",
            "sample": attempt.sample_index,
            "tokens": attempt.completion_tokens,
            "labels": ", ".join(attempt.labels),
        }
        for attempt in attempts
    ]
    text = st.column_config.TextColumn
    st.dataframe(
        pl.DataFrame(rows, schema_overrides={"tokens": pl.Int64}),
        hide_index=True,
        height="content",
        placeholder="–",
        column_order=[name for name in rows[0] if name not in HIDDEN],
        column_config={
            "attempt": text(width=65),
            "open": st.column_config.LinkColumn("", display_text="open", width=50),
            "target": text(
                width=60, help="The target's rank in the prompt → its rank in the answer. A dash: it is not there."
            ),
            "order": text(
                width=190, help="The candidates, best first, by their position in the prompt. ★ is the target."
            ),
            "ranked first": text(width=200),
            "failed rules": text(width=115, help="The first failed rule of ruleset strict comes first."),
            "template": text(width=125),
            "teacher": text(width=205, help="Teacher/model."),
            "temperature": text("temp.", width=55),
            "sample": st.column_config.NumberColumn(width=60),
        },
    )


def draw_orders(tried: ListAttempts) -> None:
    """Draw the rank that each attempt gives each candidate, and how well the attempts agree."""
    read = [attempt for attempt in tried.attempts if attempt.ranking]
    st.markdown("##### Orders")
    if not read:
        st.info("No attempt contains an order that could be parsed.")
        return
    candidates = [candidate.item for candidate in tried.listed.task.candidates]
    ids = [item.item_id for item in candidates]
    ranks_N_K = rank_orders(ids, [ids, *(attempt.ranking for attempt in read)])
    taus_N_N = kendall_taus(ranks_N_K)
    others = taus_N_N[1:, 1:][np.triu_indices(len(read), k=1)]
    figures = st.columns(4)
    figures[0].metric("Parsed orders", f"{len(read)} of {len(tried.attempts)}")
    figures[1].metric("Distinct orders", len({attempt.ranking for attempt in read}))
    figures[2].metric("Mean tau between attempts", _mean(others), help=TAU)
    figures[3].metric(
        "Mean tau with the prompt", _mean(taus_N_N[0, 1:]), help=f"{TAU} Here with the order in the prompt."
    )
    names = [attempt.name for attempt in read]
    rows = [
        f"{'★ ' if item.item_id == tried.listed.target_item_id else ''}{number} {_short(name_of(item))}"
        for number, item in enumerate(candidates, 1)
    ]
    with st.container(horizontal=True, gap="large"):
        draw_heat_map("Rank of each candidate (★: target)", rows, names, ranks_N_K[1:].T, "rank")
        draw_heat_map("Tau between orders", [INPUT, *names], names, taus_N_N[:, 1:], "tau")


def _mean(values: NDArray[np.float64]) -> str:
    numbers = values[~np.isnan(values)]
    return f"{numbers.mean():.2f}" if len(numbers) else "–"


def _short(text: str) -> str:
    return text if len(text) <= TITLE_CHARACTERS else text[: TITLE_CHARACTERS - 1] + "…"


def draw_heat_map(title: str, rows: list[str], columns: list[str], values_R_C: NDArray[np.float64], name: str) -> None:
    """Draw numbers in coloured cells. Small ranks and large taus are darker. NaN leaves a cell out."""
    cells = pl.DataFrame(
        [
            {"row": row, "attempt": column, name: float(value)}
            for row, values in zip(rows, values_R_C, strict=True)
            for column, value in zip(columns, values, strict=True)
            if not np.isnan(value)
        ],
        schema={"row": pl.String, "attempt": pl.String, name: pl.Float64},
    )
    ranks = name == "rank"
    domain = [1, len(rows)] if ranks else [-1, 1]
    shared = {
        "x": nominal("attempt", sort=columns, title=None, axis={"orient": "top", "labelAngle": 0}),
        "y": nominal("row", sort=rows, title=None, axis={"labelLimit": LABELS}),
        "tooltip": [nominal("row"), nominal("attempt"), quantitative(name, format=".0f" if ranks else ".2f")],
    }
    colours = {"scheme": "blues" if ranks else "purples", "domain": domain, "reverse": ranks}
    dark = f"datum.{name} {'<=' if ranks else '>='} {sum(domain) / 2}"
    layers = [
        {
            "mark": {"type": "rect", "stroke": "white", "strokeWidth": 1},
            "encoding": shared | {"color": quantitative(name, scale=colours, legend=None)},
        },
        {
            "mark": {"type": "text", "fontSize": 12},
            "encoding": shared
            | {
                "text": quantitative(name, format=".0f" if ranks else ".1f"),
                "color": either("white", "#222", test=dark),
            },
        },
    ]
    spec = {
        "layer": layers,
        "title": {"text": title, "anchor": "start"},
        # Streamlit fits labels and title into this size too.
        "width": max(TITLE, (LABELS if ranks else 60) + CELL * len(columns)),
        "height": 70 + 26 * len(rows),
        "config": {"axis": {"labelOverlap": False, "labelFlush": False, "labelBound": False}},
    }
    draw_chart(cells, spec, fit=False)


def draw_pair(store: Store, tried: ListAttempts, trace_id: str | None) -> None:
    """Draw two attempts word by word and rank by rank."""
    st.markdown("##### Two attempts")
    pair = pick_pair(tried.attempts, trace_id)
    if pair is None:
        st.info("This list has fewer than two attempts, so there is no pair to compare.")
        return
    names = {attempt.name: attempt for attempt in tried.attempts}
    chosen = [
        names[
            column.selectbox(
                label,
                list(names),
                index=list(names).index(attempt.name),
                format_func=lambda name: (
                    f"{name} · {names[name].configuration.name} · sample {names[name].sample_index}"
                ),
                key=f"compare-{label}-{tried.listed.list_id}-{trace_id}",
            )
        ]
        for column, label, attempt in zip(st.columns(2), ("First", "Second"), pair, strict=True)
    ]
    views = load_pair(store, *(attempt.trace_id for attempt in chosen))
    texts = [read_text(view) for view in views]
    left, right = st.columns(2, gap="medium")
    with left:
        draw_diff(*texts)
    with right:
        st.caption("The candidates' ranks in both attempts. An arrow shows how far the second moves a candidate.")
        moves = order_moves(tried.listed, chosen[0].ranking, chosen[1].ranking)
        st.dataframe(
            moves,
            hide_index=True,
            height="content",
            placeholder="–",
            column_order=[name for name in moves.columns if name != "semantic ID"],
            column_config={
                **dict.fromkeys(("first", "second"), st.column_config.NumberColumn(width=60)),
                **dict.fromkeys(("moved", "target"), st.column_config.TextColumn(width=60)),
                "item": st.column_config.TextColumn(width=270),
            },
        )


def draw_diff(first: ReadText, second: ReadText) -> None:
    """Draw the difference of two reasonings, as text."""
    st.caption("The reasonings. Lines with - are only in the first, with + only in the second. Items: ‹codes title›.")
    for name, text in (("first", first), ("second", second)):
        if text.source != "reasoning":
            st.warning(f"The {name} has no reasoning that could be parsed. Its {text.source} is shown instead.")
        if text.cut:
            st.warning(f"The {name} is too long to compare. Only its beginning is shown.")
    changes = diff_texts(first.text, second.text)
    st.code(diff_lines(changes) or "(no text)", language="diff", wrap_lines=True)
    if len(changes) == 1 and first.text == second.text:
        st.caption("Both reasonings are the same.")


# Two configurations


def draw_configurations(store: Store) -> None:
    """Draw two configurations on the lists for which both have traces."""
    configurations = list_configurations(store)
    if len(configurations) < 2:
        st.info(
            "To compare two ways to make traces, make some with another teacher, template or temperature. For example: "
            "`gr2 trace NAME --teacher evidence --temperature 1.0`."
        )
        return
    first, second = (
        column.selectbox(
            label,
            list(configurations),
            index=place,
            format_func=lambda configuration: f"{configuration.name} · {configurations[configuration]:,} traces",
            key=f"configuration-{label}",
        )
        for place, (column, label) in enumerate(zip(st.columns(2), ("A", "B"), strict=True))
    )
    compared = compare_configurations(store, first, second)
    if compared.lists == 0:
        st.info("There is no list that both A and B tried. Choose another pair.")
        return
    draw_measures(compared)
    left, right = st.columns(2)
    for column, name, lists in ((left, "A", compared.first_better), (right, "B", compared.second_better)):
        with column:
            st.markdown(f"##### Lists where {name} is accepted more often")
            draw_lists(lists)


def draw_measures(compared: ConfigurationComparison) -> None:
    """Draw the measures of both on the same lists, and on which lists they have an accepted trace."""
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.markdown(f"##### {compared.lists:,} lists that both tried")
        rows = []
        for measure in compared.measures:
            form = "{:.1%}" if measure.name in SHARES else "{:.2f}"
            signed = form.replace(":", ":+")
            gap = measure.difference
            rows.append(
                {
                    "": measure.name,
                    "A": form.format(measure.first),
                    "B": form.format(measure.second),
                    "A − B": signed.format(gap.value),
                    "95% interval": f"{signed.format(gap.low)} to {signed.format(gap.high)}",
                    "lists": f"{gap.n:,}",
                }
            )
        st.dataframe(pl.DataFrame(rows), hide_index=True)
        before = (
            ""
            if compared.rank_before is None
            else f" The target's mean rank in the prompt is {compared.rank_before:.2f}."
        )
        st.caption(
            "Accepted by ruleset paper. Sampling of a list stops at the requested number of accepted traces, so only "
            f"the first attempts compare A and B without bias.{before}"
        )
    with right:
        st.markdown("##### Lists with an accepted attempt")
        (both, only_first), (only_second, neither) = compared.passed_2_2.tolist()
        st.dataframe(
            pl.DataFrame(
                {
                    "": ["accepted by A", "not by A"],
                    "accepted by B": [_part(both, compared.lists), _part(only_second, compared.lists)],
                    "not by B": [_part(only_first, compared.lists), _part(neither, compared.lists)],
                }
            ),
            hide_index=True,
        )


def _part(lists: int, of: int) -> str:
    return f"{lists:,} ({lists / of:.0%})"


def draw_lists(lists: pl.DataFrame) -> None:
    """Draw a table of lists with links."""
    if lists.height == 0:
        st.info("There are none.")
        return
    rows = [
        {
            "list": to_page("compare", {"list": row["list_id"]}),
            "A accepted": f"{row['accepted']} of {row['attempts']}",
            "B accepted": f"{row['accepted_2']} of {row['attempts_2']}",
            "rank before": row["rank_before"],
            "rank after A": row["rank"],
            "rank after B": row["rank_2"],
        }
        for row in lists.iter_rows(named=True)
    ]
    st.dataframe(
        pl.DataFrame(rows, infer_schema_length=None),
        hide_index=True,
        column_config={
            "list": st.column_config.LinkColumn("list", display_text=r"list=(.{12})"),
            "rank before": st.column_config.NumberColumn(help="The target's rank in the prompt."),
            "rank after A": st.column_config.NumberColumn(help="The target's rank in A's first attempt."),
            "rank after B": st.column_config.NumberColumn(help="The target's rank in B's first attempt."),
        },
    )
