"""The page Agreement: how well annotators agree with each other and with the rules, and where they disagree.

This module only draws; `curate.review.agreement` computes. Names of annotators and queues are shown as text, never as
HTML or Markdown.
"""

import polars as pl
import streamlit as st

from app.browser.charts import CATEGORIES, dashed_rule, draw_chart, either, nominal, quantitative
from app.browser.filter_bar import choose_filter
from app.browser.pages import draw_title, to_traces
from curate.review.agreement import (
    COHEN,
    RESAMPLES,
    Agreement,
    confuse_annotators,
    find_disagreements,
    find_ruleset_disagreements,
    load_judgements,
    load_labelled_queues,
    measure_agreement,
    measure_rules,
    summarize_annotators,
)
from curate.traces.filter import TraceFilter
from store import Store

MOST_ROWS = 500
FIGURE = st.column_config.NumberColumn(format="%.3f")
TRACE = st.column_config.LinkColumn("trace", display_text="open", width="small")


def draw_agreement(store: Store) -> None:
    """Draw the page."""
    draw_title(
        "Agreement",
        "How well the people who label agree with each other and with the rules, and on which traces they disagree.",
    )
    chosen = choose_filter(store)
    queues = load_labelled_queues(store)
    left, right = st.columns(2, vertical_alignment="bottom")
    queue_id = left.selectbox(
        "Queue",
        list(queues),
        index=None,
        placeholder="any",
        key="agreement-queue",
        format_func=lambda queue_id: f"{queues[queue_id]} ({queue_id[:6]})",
        bind="query-params",
    )
    unsure = right.toggle(
        "Count unsure",
        value=True,
        key="agreement-unsure",
        help="On: unsure counts as a third label. Off: it is left out. Skip is always left out.",
        bind="query-params",
    )
    labels = load_judgements(store, chosen, queue_id=queue_id, unsure=unsure)
    if labels.height == 0:
        if chosen == TraceFilter() and queue_id is None:
            st.info("There are no labels yet. Make a queue and label traces on the page Label.")
        else:
            st.info("No labelled trace matches the filter and the queue. Widen them, or label more on the page Label.")
        return
    annotators = labels["annotator"].unique().sort().to_list()
    if len(annotators) == 1:
        st.info("Only one person has labelled, and agreement needs two. Below you see how the labels match the rules.")
    else:
        draw_figures(measure_agreement(labels))
    rules = measure_rules(labels)
    draw_confusions(labels, annotators, rules)
    draw_rules(rules)
    if len(annotators) > 1:
        draw_linked(
            "Traces that people disagree on",
            find_disagreements(labels),
            "No trace is called good by one person and bad by another.",
        )
    draw_linked(
        "Traces where people disagree with ruleset paper",
        find_ruleset_disagreements(labels),
        "Ruleset paper agrees with the majority of labels on every trace.",
    )
    draw_annotators(labels)


def draw_figures(figures: list[Agreement]) -> None:
    """Draw each statistic as a point with its interval, and as a row of a table."""
    table = pl.DataFrame(figures, infer_schema_length=None).select(
        pl.col("measure"),
        annotators=pl.when(pl.col("measure") == COHEN)
        .then(pl.col("annotators").list.join(", "))
        .otherwise(pl.lit("all")),
        value=pl.col("value").cast(pl.Float64),
        low=pl.col("low").cast(pl.Float64),
        high=pl.col("high").cast(pl.Float64),
        traces="traces",
        note="note",
    )
    draw_intervals(table.with_columns(name=pl.concat_str("measure", pl.lit(": "), "annotators")))
    st.dataframe(
        table,
        hide_index=True,
        placeholder="–",
        column_config={
            **dict.fromkeys(("value", "low", "high"), FIGURE),
            "measure": st.column_config.TextColumn(width=150),
            "annotators": st.column_config.TextColumn(width=120),
            "traces": st.column_config.NumberColumn(width=60),
            "note": st.column_config.TextColumn(width=370),
        },
    )
    st.caption(
        "Agreement beyond chance: 0 means as often as by chance, 1 means always. Low and high are the ends of the 95% "
        f"percentile bootstrap interval over traces ({RESAMPLES:,} resamples). If all labels agree, the interval has "
        "no width, even for few labels."
    )


def draw_intervals(table: pl.DataFrame) -> None:
    """Draw points with their intervals, in the order given. Undefined values appear only in the table."""
    shown = table.filter(pl.col("value").is_not_null())
    if shown.height == 0:
        return
    least = min(0.0, *shown.select(pl.min_horizontal("value", "low")).to_series())
    shared = {
        "y": nominal("name", title=None, sort=shown["name"].to_list(), axis={"labelLimit": 320}),
        "color": nominal("measure", legend=None, scale=CATEGORIES),
        "tooltip": [
            nominal("name"),
            *(quantitative(column, format=".3f") for column in ("value", "low", "high")),
            quantitative("traces"),
        ],
    }
    interval = quantitative(
        "low",
        title="agreement beyond chance, with the 95% interval",
        scale={"domain": [least, 1], "nice": True},
        axis={"tickCount": 10},
    )
    layers = [
        dashed_rule("x", 0),
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": shared | {"x": interval, "x2": {"field": "high"}}},
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
            "encoding": shared | {"x": quantitative("value")},
        },
    ]
    draw_chart(shown, {"layer": layers, "height": 60 + 28 * shown.height})


def draw_confusions(labels: pl.DataFrame, annotators: list[str], rules: pl.DataFrame) -> None:
    """Draw two annotators' labels against each other, and all labels against a rule's verdicts."""
    left, right = st.columns(2)
    with left:
        st.markdown("##### Two annotators")
        if len(annotators) > 1:
            one, other = st.columns(2)
            first: str = one.selectbox("Rows", annotators, key="agreement-first")
            others = [name for name in annotators if name != first]
            second: str = other.selectbox("Columns", others, key="agreement-second")
            draw_cells(confuse_annotators(labels, first, second), first, second, "traces")
        else:
            st.info("Only one person has labelled.")
    with right:
        st.markdown("##### People against a rule")
        names = {f"{kind} {name}": name for kind, name in rules.select("kind", "name").rows()}
        rulesets = [name for name in names if name.startswith("ruleset")]
        options = rulesets + [name for name in names if name not in rulesets]
        default = options.index("ruleset paper")
        chosen: str = st.selectbox("Rule or ruleset", options, index=default, key="agreement-rule")
        kind, name = chosen.split(" ", 1)
        counts = rules.filter(kind=kind, name=name).row(0, named=True)
        cells = [
            {"first": label, "second": verdict, "labels": counts[f"{label}_{verdict}"]}
            for label in ("good", "bad")
            for verdict in ("passed", "failed")
        ]
        draw_cells(pl.DataFrame(cells), "people", chosen, "labels")


def draw_cells(cells: pl.DataFrame, rows: str, columns: str, counted: str) -> None:
    """Draw a heat map with counts in its cells. cells: first, second and the column `counted`."""
    most = max(1, *cells[counted].to_list())
    shared = {
        "x": nominal(
            "second",
            title=columns,
            sort=cells["second"].unique(maintain_order=True).to_list(),
            axis={"orient": "top", "labelAngle": 0},
        ),
        "y": nominal("first", title=rows, sort=cells["first"].unique(maintain_order=True).to_list()),
        # The colon keeps Vega from loading a field called "image" as the address of a picture.
        "tooltip": [
            nominal("first", title=f"{rows}:"),
            nominal("second", title=f"{columns}:"),
            quantitative(counted),
        ],
    }
    layers = [
        {
            "mark": "rect",
            "encoding": shared
            | {"color": quantitative(counted, legend=None, scale={"scheme": "blues", "domain": [0, most]})},
        },
        {
            "mark": {"type": "text", "fontSize": 18},
            "encoding": shared
            | {
                "text": quantitative(counted, format=","),
                "color": either("white", "black", test=f"datum.{counted} > {most / 2}"),
            },
        },
    ]
    draw_chart(cells, {"layer": layers, "height": 240})


def draw_rules(rules: pl.DataFrame) -> None:
    """Draw how well each rule and ruleset matches people's labels."""
    st.markdown("##### Rules and rulesets against people")
    counts = {
        f"{label}_{verdict}": st.column_config.NumberColumn(
            f"{label} {mark}", width=60, help=f'Number of labels "{label}" on traces that {verdict}.'
        )
        for label in ("good", "bad")
        for verdict, mark in (("passed", "✓"), ("failed", "✗"))
    }
    number = st.column_config.NumberColumn
    st.dataframe(
        rules.select(
            pl.concat_str("kind", pl.lit(" "), "name").alias("rule"),
            *("agreement", "kappa", "low", "high", "precision", "recall", "labels", *counts, "note"),
        ),
        hide_index=True,
        height="content",
        placeholder="–",
        # A note says why a value is undefined. It does not fit on a small screen: the table's menu shows it.
        column_order=("rule", "agreement", "kappa", "low", "high", "precision", "recall", "labels", *counts),
        column_config={
            "rule": st.column_config.TextColumn(width=145),
            "labels": number(width=60),
            **counts,
            **{name: number(format="percent", width=80) for name in ("agreement", "precision", "recall")},
            **{name: number(format="%.3f", width=60) for name in ("kappa", "low", "high")},
        },
    )
    st.caption(
        "Only the labels good and bad count. ✓ counts labels on traces that pass the rule, ✗ on traces that fail it. "
        "Kappa is Cohen's kappa, with low and high as the ends of its 95% interval. Precision: of the labels on traces "
        "that fail the rule, the share that is bad. Recall: of the bad labels, the share on traces that fail the rule."
    )


def draw_linked(title: str, traces: pl.DataFrame, nothing: str) -> None:
    """Draw a table of traces with links, or the text `nothing` if there are none."""
    st.markdown(f"##### {title}")
    if traces.height == 0:
        st.info(nothing)
        return
    links = [to_traces({"trace": trace_id}) for trace_id in traces["trace_id"].head(MOST_ROWS)]
    st.dataframe(
        traces.head(MOST_ROWS).with_columns(trace_id=pl.Series(links, dtype=pl.String)),
        hide_index=True,
        column_config={
            "trace_id": TRACE,
            "share": st.column_config.NumberColumn(
                "minority",
                format="percent",
                width="small",
                help="The minority's share of the labels good and bad. 50% is the strongest disagreement.",
            ),
            "accepted": st.column_config.CheckboxColumn(width="small", help="Accepted by ruleset paper."),
            "people": st.column_config.TextColumn(width="small", help="The majority's label."),
            "failed_rules": "failed rules",
            **dict.fromkeys(("good", "bad", "unsure"), st.column_config.ListColumn(width=140)),
        },
    )
    if traces.height > MOST_ROWS:
        st.caption(f"Only the first {MOST_ROWS:,} of {traces.height:,} are shown.")


def draw_annotators(labels: pl.DataFrame) -> None:
    """Draw how many labels each annotator gave."""
    st.markdown("##### Annotators")
    st.dataframe(
        summarize_annotators(labels),
        hide_index=True,
        column_config={
            "share_good": st.column_config.NumberColumn("share good", format="percent"),
            "median_seconds": st.column_config.NumberColumn("median seconds", format="%.1f"),
        },
    )
