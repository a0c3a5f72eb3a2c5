"""The page of agreement: how far people who label agree with each other and with the rules, and where they do not.

It draws; what it draws comes from `curate.review.agreement`. Annotators' and queues' names are shown as text, never as
HTML or Markdown.
"""

import polars as pl
import streamlit as st

from app.browser.charts import CATEGORIES, dashed_rule, draw_chart, either, nominal, quantitative
from app.browser.filter_bar import choose_filter
from app.browser.pages import to_traces
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
SHARE = st.column_config.NumberColumn(format="percent")
FIGURE = st.column_config.NumberColumn(format="%.3f")
TRACE = st.column_config.LinkColumn("trace", display_text="open", width="small")


def draw_agreement(store: Store) -> None:
    """Draw the page."""
    st.subheader("Agreement")
    chosen = choose_filter(store)
    queues = load_labelled_queues(store)
    left, right = st.columns(2, vertical_alignment="bottom")
    queue_id = left.selectbox(
        "Labelled in the queue",
        list(queues),
        index=None,
        placeholder="any, or none",
        key="agreement-queue",
        format_func=lambda queue_id: f"{queues[queue_id]} ({queue_id[:6]})",
        bind="query-params",
    )
    unsure = right.toggle(
        "Count unsure",
        value=True,
        key="agreement-unsure",
        help="On: unsure is a label of its own, as far from good as from bad. Off: it is left out, as skip always is.",
        bind="query-params",
    )
    labels = load_judgements(store, chosen, queue_id=queue_id, unsure=unsure)
    if labels.height == 0:
        if chosen == TraceFilter() and queue_id is None:
            st.info("Nobody labelled yet: label traces on the page Label.")
        else:
            st.info("No label on what the filter and the queue leave. Widen them, or label traces on the page Label.")
        return
    annotators = labels["annotator"].unique().sort().to_list()
    if len(annotators) == 1:
        st.info("One annotator only: agreement needs two. How the labels go with the rules stands below.")
    else:
        draw_figures(measure_agreement(labels))
    rules = measure_rules(labels)
    draw_confusions(labels, annotators, rules)
    draw_rules(rules)
    if len(annotators) > 1:
        draw_linked(
            "Traces that people disagree on",
            find_disagreements(labels),
            "No trace is good to one and bad to another.",
        )
    draw_linked(
        "Traces that people and ruleset paper disagree on",
        find_ruleset_disagreements(labels),
        "Wherever people lean to good or bad, ruleset paper says the same.",
    )
    draw_annotators(labels)


def draw_figures(figures: list[Agreement]) -> None:
    """Each statistic as a point with its interval, and in a table."""
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
    st.dataframe(table, hide_index=True, column_config=dict.fromkeys(("value", "low", "high"), FIGURE))
    st.caption(
        "Agreement beyond chance; 0: as often as by chance, 1: always. Intervals: 95% percentile bootstrap over "
        f"traces, {RESAMPLES:,} resamples; where all labels agree they have no width, however few labels there are."
    )


def draw_intervals(table: pl.DataFrame) -> None:
    """Points with their intervals, in the order given; what is undefined is left to the table."""
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
        title="agreement beyond chance, 95%",
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
    """Two annotators' labels against each other, and people's against a rule's verdicts."""
    left, right = st.columns(2)
    with left:
        st.markdown("#### Two annotators")
        if len(annotators) > 1:
            one, other = st.columns(2)
            first: str = one.selectbox("Rows", annotators, key="agreement-first")
            others = [name for name in annotators if name != first]
            second: str = other.selectbox("Columns", others, key="agreement-second")
            draw_cells(confuse_annotators(labels, first, second), first, second, "traces")
        else:
            st.info("There is no second annotator.")
    with right:
        st.markdown("#### People and a rule")
        names = {f"{kind} {name}": name for kind, name in rules.select("kind", "name").rows()}
        rulesets = [name for name in names if name.startswith("ruleset")]
        options = rulesets + [name for name in names if name not in rulesets]
        default = options.index("ruleset paper")
        chosen: str = st.selectbox("Rule or ruleset", options, index=default, key="agreement-rule")
        kind, name = chosen.split(" ", 1)
        counts = rules.filter(kind=kind, name=name).row(0, named=True)
        cells = [
            {"first": said, "second": verdict, "labels": counts[f"{said}_{verdict}"]}
            for said in ("good", "bad")
            for verdict in ("passed", "failed")
        ]
        draw_cells(pl.DataFrame(cells), "people", chosen, "labels")


def draw_cells(cells: pl.DataFrame, rows: str, columns: str, counted: str) -> None:
    """A heat map of counts, each written in its cell; cells: first, second and the column `counted`."""
    most = max(1, *cells[counted].to_list())
    shared = {
        "x": nominal(
            "second",
            title=columns,
            sort=cells["second"].unique(maintain_order=True).to_list(),
            axis={"orient": "top", "labelAngle": 0},
        ),
        "y": nominal("first", title=rows, sort=cells["first"].unique(maintain_order=True).to_list()),
        # A colon, for Vega takes a field that is called image for the address of one.
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
    draw_chart(cells, {"layer": layers, "height": 280})


def draw_rules(rules: pl.DataFrame) -> None:
    """How each rule and ruleset goes with what people say."""
    st.markdown("#### Rules and rulesets against people")
    counts = ("good_passed", "good_failed", "bad_passed", "bad_failed")
    st.dataframe(
        rules.select(
            pl.concat_str("kind", pl.lit(" "), "name").alias("rule"),
            *("agreement", "kappa", "low", "high", "precision", "recall", "labels", *counts, "note"),
        ),
        hide_index=True,
        height="content",
        column_config={
            **{name: name.replace("_", ", ") for name in counts},
            **dict.fromkeys(("agreement", "precision", "recall"), SHARE),
            **dict.fromkeys(("kappa", "low", "high"), FIGURE),
        },
    )
    st.caption(
        "Good and bad only; every person's label counts once. Kappa is Cohen's, with its 95% interval. Precision: of "
        "what fails the rule, the share that people call bad; recall: of what people call bad, the share that fails it."
    )


def draw_linked(title: str, found: pl.DataFrame, nothing: str) -> None:
    """Rows of traces, each with a link that opens it; `nothing` where there is none."""
    st.markdown(f"#### {title}")
    if found.height == 0:
        st.info(nothing)
        return
    links = [to_traces({"trace": trace_id}) for trace_id in found["trace_id"].head(MOST_ROWS)]
    st.dataframe(
        found.head(MOST_ROWS).with_columns(trace_id=pl.Series(links, dtype=pl.String)),
        hide_index=True,
        column_config={
            "trace_id": TRACE,
            "share": st.column_config.NumberColumn(
                "smaller side",
                format="percent",
                width="small",
                help="Among those who say good or bad, the share of the fewer; 50% is most divided",
            ),
            "accepted": st.column_config.CheckboxColumn(width="small", help="By ruleset paper"),
            "people": st.column_config.TextColumn(width="small", help="What more of them say"),
            "failed_rules": "failed rules",
            **dict.fromkeys(("good", "bad", "unsure"), st.column_config.ListColumn(width="medium")),
        },
    )
    if found.height > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS:,} of {found.height:,}.")


def draw_annotators(labels: pl.DataFrame) -> None:
    """Who labelled."""
    st.markdown("#### Annotators")
    st.dataframe(
        summarize_annotators(labels),
        hide_index=True,
        column_config={
            "share_good": st.column_config.NumberColumn("share good", format="percent"),
            "median_seconds": st.column_config.NumberColumn("median seconds", format="%.1f"),
        },
    )
