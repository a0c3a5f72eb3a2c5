"""The page Compare: all attempts on one candidate list, two of them word by word, and two configurations compared.

It draws; what it draws comes from `curate.review.attempts`, `curate.review.text_diff` and
`curate.review.configurations`. A link opens a list by the id of the list, of a prompt or of a trace. Text from models
and catalogues is shown by elements that know no markup.
"""

from urllib.parse import urlencode

import numpy as np
import polars as pl
import streamlit as st
from numpy.typing import NDArray

from app.browser.charts import draw_chart, either, nominal, quantitative
from app.browser.pages import to_traces
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
from store import Store

ONE_LIST = "Attempts on one list"
TWO_ARMS = "Two teachers or templates"
SHARES = (FIRST_ACCEPTED, SHARE, ANY)
TAU = "Kendall's tau: 1 is the same order, 0 an unrelated one, -1 the reversed one."
INPUT = "input"
TITLE_CHARACTERS = 46
CELL = 34
LABELS = 300


def draw_comparison(store: Store) -> None:
    """Draw the page."""
    asked = next((st.query_params[name] for name in ("list", "prompt", "trace") if st.query_params.get(name)), None)
    view = st.segmented_control(
        "Compare",
        [ONE_LIST, TWO_ARMS],
        default=ONE_LIST if asked else TWO_ARMS,
        required=True,
        key="compare-view",
        label_visibility="collapsed",
    )
    if view == TWO_ARMS:
        draw_configurations(store)
        return
    typed = st.text_input("List, prompt or trace id", value=asked, key=f"compare-id-{asked}")
    if not typed:
        st.info("Enter an id, or follow a link from a trace or from the lists of the other view.")
        return
    if typed != asked:
        st.query_params.from_dict({"list": typed})
    draw_list(store, typed)


# One list


def draw_list(store: Store, id_: str) -> None:
    """The attempts on a list, their orders, and two of them in full."""
    tried = load_attempts(store, id_)
    candidates = [candidate.item.item_id for candidate in tried.listed.task.candidates]
    st.text(f"List {tried.listed.list_id} of {tried.dataset} {tried.split}, user {tried.user_id}")
    shown = len(tried.attempts)
    if shown < tried.accepted + tried.rejected:
        st.caption(f"Shown are the first {shown} samples of {tried.accepted + tried.rejected:,}.")
    for accepted, count, title in ((True, tried.accepted, "accepted"), (False, tried.rejected, "rejected")):
        st.markdown(f"##### {count:,} {title}")
        group = [attempt for attempt in tried.attempts if attempt.accepted == accepted]
        if group:
            draw_attempts(group, candidates)
    draw_orders(tried)
    draw_pair(store, tried, id_)


def draw_attempts(attempts: list[Attempt], candidates: list[str]) -> None:
    """A table of attempts, one a row."""
    rows = [
        {
            "attempt": attempt.name,
            "open": to_traces({"trace": attempt.trace_id}),
            "target": f"{attempt.target_rank or '–'} → {attempt.predicted_rank or '–'}",
            "failed": ", ".join(attempt.failures),
            "order": order_text(candidates, attempt.ranking),
            "teacher": f"{attempt.configuration.teacher}/{attempt.configuration.model}",
            "template": attempt.configuration.template,
            "temperature": f"{attempt.configuration.temperature:g}",
            "sample": attempt.sample_index,
            "tokens": "?" if attempt.completion_tokens is None else f"{attempt.completion_tokens:,}",
            "labels": ", ".join(attempt.labels),
        }
        for attempt in attempts
    ]
    st.dataframe(
        pl.DataFrame(rows),
        hide_index=True,
        height="content",
        column_config={
            "open": st.column_config.LinkColumn("", display_text="open"),
            "target": st.column_config.TextColumn(help="Its rank before and after; –: left out, or no order"),
            "failed": st.column_config.TextColumn(
                help="Rules that it fails, first the one where ruleset strict loses it"
            ),
            "order": st.column_config.TextColumn(
                help="Candidates by their number in the input, and how far each moved"
            ),
        },
    )


def draw_orders(tried: ListAttempts) -> None:
    """Which rank each attempt gives each candidate, and how far attempts agree."""
    read = [attempt for attempt in tried.attempts if attempt.ranking]
    st.markdown("##### Orders")
    if not read:
        st.info("No order could be read from any attempt.")
        return
    candidates = [candidate.item for candidate in tried.listed.task.candidates]
    ids = [item.item_id for item in candidates]
    ranks_N_K = rank_orders(ids, [ids, *(attempt.ranking for attempt in read)])
    taus_N_N = kendall_taus(ranks_N_K)
    others = taus_N_N[1:, 1:][np.triu_indices(len(read), k=1)]
    figures = st.columns(4)
    figures[0].metric("orders that can be read", f"{len(read)} of {len(tried.attempts)}")
    figures[1].metric("distinct orders", len({attempt.ranking for attempt in read}))
    figures[2].metric("mean tau of two attempts", _mean(others), help=TAU)
    figures[3].metric("mean tau with the input", _mean(taus_N_N[0, 1:]), help=f"{TAU} The input is the order before.")
    names = [attempt.name for attempt in read]
    rows = [
        f"{'★ ' if item.item_id == tried.listed.target_item_id else ''}{number} {_short(name_of(item))}"
        for number, item in enumerate(candidates, 1)
    ]
    with st.container(horizontal=True, gap="large"):
        draw_heat_map("rank given to each candidate, ★ is the target", rows, names, ranks_N_K[1:].T, "rank")
        draw_heat_map("Kendall's tau of two orders", [INPUT, *names], names, taus_N_N[:, 1:], "tau")


def _mean(values: NDArray[np.float64]) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.2f}" if len(known) else "–"


def _short(text: str) -> str:
    return text if len(text) <= TITLE_CHARACTERS else text[: TITLE_CHARACTERS - 1] + "…"


def draw_heat_map(title: str, rows: list[str], columns: list[str], values_R_C: NDArray[np.float64], name: str) -> None:
    """Figures as coloured cells, small ranks and large taus the darker; nan leaves a cell out."""
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
        # Streamlit fits labels and title into the size that it is given.
        "width": (LABELS if ranks else 60) + CELL * len(columns),
        "height": 70 + 26 * len(rows),
        "config": {"axis": {"labelOverlap": False, "labelFlush": False, "labelBound": False}},
    }
    draw_chart(cells, spec, fit=False)


def draw_pair(store: Store, tried: ListAttempts, wanted: str | None) -> None:
    """Two attempts word by word and rank by rank."""
    st.markdown("##### Two attempts")
    pair = pick_pair(tried.attempts, wanted)
    if pair is None:
        st.info("A pair needs two attempts on this list; there are fewer.")
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
                key=f"compare-{label}-{tried.listed.list_id}-{wanted}",
            )
        ]
        for column, label, attempt in zip(st.columns(2), ("First", "Second"), pair, strict=True)
    ]
    views = load_pair(store, *(attempt.trace_id for attempt in chosen))
    texts = [read_text(view) for view in views]
    left, right = st.columns([3, 2], gap="large")
    with left:
        draw_diff(*texts)
    with right:
        st.caption("Ranks in the first and in the second; an arrow says how far the second moves a candidate.")
        st.dataframe(order_moves(tried.listed, chosen[0].ranking, chosen[1].ranking), hide_index=True, height="content")


def draw_diff(first: ReadText, second: ReadText) -> None:
    """The reasonings' differences as text."""
    st.caption("Reasonings: - stands only in the first, + only in the second; items are ‹codes title›.")
    for name, text in (("first", first), ("second", second)):
        if text.source != "reasoning":
            st.warning(f"The {name} has no reasoning that could be read; this is its {text.source}, as received.")
        if text.cut:
            st.warning(f"The {name} is too long to compare; this is its beginning.")
    changes = diff_texts(first.text, second.text)
    st.code(diff_lines(changes) or "(no text)", language="diff", wrap_lines=True)
    if len(changes) == 1 and first.text == second.text:
        st.caption("They are the same.")


# Two configurations


def draw_configurations(store: Store) -> None:
    """Two configurations on the lists that both tried."""
    configurations = list_configurations(store)
    if len(configurations) < 2:
        st.info(
            "This compares two ways to make traces, and there are fewer. Try another teacher, template or temperature "
            "with gr2 trace."
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
        st.info("There is no list that both tried.")
        return
    draw_measures(compared)
    left, right = st.columns(2)
    for column, name, lists in ((left, "A", compared.first_better), (right, "B", compared.second_better)):
        with column:
            st.markdown(f"##### Lists where {name} is accepted more often")
            draw_lists(lists)


def draw_measures(compared: ConfigurationComparison) -> None:
    """What both did on the same lists, and which lists either passed."""
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
                    "A - B": signed.format(gap.value),
                    "95% interval": f"{signed.format(gap.low)} to {signed.format(gap.high)}",
                    "lists": f"{gap.n:,}",
                }
            )
        st.dataframe(pl.DataFrame(rows), hide_index=True)
        before = (
            ""
            if compared.rank_before is None
            else f" The target's mean rank in the input is {compared.rank_before:.2f}."
        )
        st.caption(
            "Accepted: by ruleset paper. Attempts on a list end once enough are accepted, so a share of all attempts "
            f"favours whoever is accepted early; the first attempt does not.{before}"
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
    """Lists with a link to each."""
    if lists.height == 0:
        st.info("None.")
        return
    rows = [
        {
            "list": "/compare?" + urlencode({"list": row["list_id"]}),
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
            "rank before": st.column_config.NumberColumn(help="The target's rank in the input"),
            "rank after A": st.column_config.NumberColumn(help="The target's rank at the first attempt of A"),
            "rank after B": st.column_config.NumberColumn(help="The target's rank at the first attempt of B"),
        },
    )
