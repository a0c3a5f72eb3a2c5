"""The page Training: all trainings with their curves, and how rankers compare.

This module only draws; `train.browsing` and `curate.evaluation` read. Names are shown as text, never as HTML.
"""

import orjson
import polars as pl
import streamlit as st

from app.browser.charts import CATEGORIES, dashed_rule, draw_chart, nominal, quantitative
from app.browser.pages import draw_title, escape_markdown, to_traces
from curate.evaluation.results import load_evaluations
from curate.traces.filter import TraceFilter
from store import Store
from train.browsing import load_curves, load_rollout_steps, load_trainings

# The curves to show first, if a training has them.
FIRST_METRICS = ("eval_ndcg_at_5", "reward", "loss", "answers/promotion", "answers/copied", "answers/valid", "entropy")
SHOWN_CURVES = 4
BLUE = "#4c78a8"
GAIN = "conditional_ndcg_at_5_gain"
# The columns of an evaluation by metric: title, format and what it counts.
SHOWN = {
    "valid_share": ("valid", "percent", "Share of answers that are a permutation of the candidates."),
    "copy_share": ("copied", "percent", "Share of answers that repeat the order of the prompt."),
    "conditional_recall_at_1": ("Recall@1", "%.4f", None),
    "conditional_recall_at_5": ("Recall@5", "%.4f", None),
    "conditional_ndcg_at_5": ("NDCG@5", "%.4f", None),
    "conditional_mrr": ("MRR", "%.4f", None),
    "top1_consistency": (
        "top-1 consistency",
        "percent",
        "How often the first item stays the same when the candidates are shuffled.",
    ),
    "prompt_tokens": ("tokens read", "%.0f", "Mean number of tokens that a language model reads for a list."),
    "completion_tokens": ("tokens written", "%.1f", "Mean number of tokens that a language model writes for a list."),
    "ms_per_list": ("ms", "%.2f", "Wall time for a list in milliseconds. Lists may have been ranked in batches."),
}
SLICE_METRICS = {"conditional_ndcg_at_5": "NDCG@5", "first_pick_share": "share of first picks"}


def draw_trainings(store: Store) -> None:
    """Draw the page."""
    draw_title("Training", "All trainings with their curves, and the newest evaluation of the rankers.")
    trainings = load_trainings(store)
    if trainings.height == 0:
        st.info(
            "There are no trainings yet. Run `gr2 train init SNAPSHOT --name NEW`, then "
            "`gr2 train sft SNAPSHOT --student NEW`."
        )
    else:
        draw_curves(store, trainings)
    draw_evaluations(store)


def draw_curves(store: Store, trainings: pl.DataFrame) -> None:
    """Draw a table of trainings. The curves of the selected trainings, or else of the newest, are below."""
    number, time = st.column_config.NumberColumn, st.column_config.DatetimeColumn
    event = st.dataframe(
        trainings.drop("run_id"),
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        key="trainings",
        height="auto",
        placeholder="–",
        column_config={
            "snapshot": st.column_config.TextColumn(width=230),
            "last_loss": number("last loss", format="%.4f", width=80),
            "last_reward": number("last reward", format="%.4f", width=90),
            "best_step": number("best step", width=80, help="The step of the kept student, by NDCG@5 on valid lists."),
            "started_at": time("started (UTC)", format="YYYY-MM-DD HH:mm", width=130),
            "ended_at": time("ended (UTC)", format="YYYY-MM-DD HH:mm", width=130),
        },
    )
    if trainings.height > 1:
        st.caption("Tick trainings to compare their curves. Without a tick, you see the newest.")
    rows = event.selection.rows or [0]
    chosen = trainings[rows]
    curves = load_curves(store, chosen["run_id"].to_list()).join(
        chosen.select("run_id", label=pl.coalesce("name", "run_id")), on="run_id"
    )
    metric_names = curves["metric"].unique().sort().to_list()
    first = [metric for metric in FIRST_METRICS if metric in metric_names] or metric_names
    metrics = st.multiselect("Curves", metric_names, default=first[:SHOWN_CURVES], key="metrics")
    columns = st.columns(2)
    for place, metric in enumerate(metrics):
        with columns[place % 2]:
            draw_curve(curves.filter(metric=metric), metric)
    draw_rollouts(store, chosen["run_id"][0])


def draw_rollouts(store: Store, run_id: str) -> None:
    """Draw a link to the rollouts that the first of the selected trainings sampled at a step."""
    steps = load_rollout_steps(store, run_id)
    if steps:
        step: int = st.selectbox("Rollouts of step", steps, index=len(steps) - 1, key="rollout-step")
        query = TraceFilter(run_id=run_id, step=step).to_query()
        st.link_button(f"Read the {steps[step]:,} rollouts of step {step:,}", to_traces(query))


def draw_curve(points: pl.DataFrame, metric: str) -> None:
    """Draw one metric over the steps of the selected trainings."""
    several = points["label"].n_unique() > 1
    encoding = {
        "x": quantitative("step", title="step", axis={"tickMinStep": 1, "tickCount": 8}),
        "y": quantitative("value", title=None, scale={"zero": False}),
        "color": nominal("label", title=None, scale=CATEGORIES, legend={"orient": "top"} if several else None),
        "tooltip": [nominal("label"), quantitative("step"), quantitative("value", format=".4g")],
    }
    st.markdown(f"**{escape_markdown(metric)}**")
    draw_chart(points, {"mark": {"type": "line", "point": True}, "encoding": encoding, "height": 220})


def draw_evaluations(store: Store) -> None:
    """Draw one evaluation, by default the newest. All its metrics are over the same lists, so they can be compared."""
    st.markdown("#### Evaluation")
    with store.reading() as session:
        datasets = [name for (name,) in session.rows("evaluated_datasets")]
    if not datasets:
        st.info("There are no evaluations yet. Run `gr2 eval NAME` to compare rankers on the lists of a dataset.")
        return
    left, right = st.columns([1, 2])
    dataset = left.selectbox("Dataset", datasets, key="evaluated")
    runs = load_evaluations(store, dataset).runs
    started = dict(runs.select("run_id", "started_at").rows())
    run_id = right.selectbox("Evaluation", started, format_func=lambda run: f"{started[run]:%Y-%m-%d %H:%M} UTC, {run}")
    evaluation = load_evaluations(store, dataset, run_id)
    figures = evaluation.metrics.pivot("metric", index="ranker", values="value")
    shown = {metric: column for metric, column in SHOWN.items() if metric in figures.columns}
    facts = orjson.loads(evaluation.runs["settings"][0])
    lists: int = evaluation.metrics.filter(metric="conditional_mrr")["n"][0]
    st.text(
        f"{lists:,} lists (split: {facts['split']}) of pre-ranker {facts['pre_ranker']} that contain their target. "
        f"Semantic IDs: {facts['sid_version']}."
    )
    st.dataframe(
        figures.select("ranker", *shown),
        hide_index=True,
        height="content",
        placeholder="–",
        column_config={
            metric: st.column_config.NumberColumn(title, format=form, help=explanation)
            for metric, (title, form, explanation) in shown.items()
        },
    )
    draw_gains(evaluation.metrics.filter(metric=GAIN), "gain in NDCG@5 over the pre-ranker, with the 95% interval")
    rankers = figures["ranker"].to_list()
    other = st.selectbox("Gain over", rankers[1:], key="other") if len(rankers) > 2 else None
    if other is not None:
        draw_gains(gains_over(evaluation.differences, other), f"gain in NDCG@5 over {other}, with the 95% interval")
    draw_slices(evaluation.slices)


def gains_over(differences: pl.DataFrame, other: str) -> pl.DataFrame:
    """Return each ranker's gain over one of them. Differences that are stored the other way round change their sign."""
    turned = differences.filter(ranker=other).select(
        ranker="other", value=-pl.col("value"), low=-pl.col("high"), high=-pl.col("low"), n="n"
    )
    return pl.concat([differences.filter(other=other).select("ranker", "value", "low", "high", "n"), turned])


def draw_gains(gains: pl.DataFrame, title: str) -> None:
    """Draw each ranker's gain with its interval, the best on top."""
    if gains.height == 0:
        return
    order = gains.sort("value", descending=True)["ranker"].to_list()
    ranker = nominal("ranker", title=None, sort=order, axis={"labelLimit": 240})
    tooltip = [nominal("ranker"), *(quantitative(column) for column in ("value", "low", "high", "n"))]
    layers = [
        {
            # Without a colour the rule is black, even in dark mode.
            "mark": {"type": "rule", "strokeWidth": 2, "color": BLUE},
            "encoding": {
                "y": ranker,
                "x": quantitative("low", title=title, axis={"tickCount": 10}),
                "x2": {"field": "high"},
            },
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "color": BLUE},
            "encoding": {"y": ranker, "x": quantitative("value"), "tooltip": tooltip},
        },
        dashed_rule("x", 0),
    ]
    draw_chart(gains, {"layer": layers, "height": 60 + 32 * gains.height})


def draw_slices(slices: pl.DataFrame) -> None:
    """Draw a metric of each ranker by one property of the lists."""
    slices = slices.filter(pl.col("metric").is_in(list(SLICE_METRICS)))
    if slices.height == 0:
        return
    slice_: str = st.selectbox(
        "Split lists by", slices["slice"].unique().sort(), format_func=lambda name: name.replace("_", " ")
    )
    rows = slices.filter(slice=slice_)
    buckets = rows["bucket"].unique(maintain_order=True).to_list()
    encoding = {
        "x": nominal("bucket", title=slice_.replace("_", " "), sort=buckets),
        "xOffset": nominal("ranker"),
        "y": quantitative("value", title=SLICE_METRICS[rows["metric"][0]]),
        "color": nominal("ranker", title=None, scale=CATEGORIES),
        "tooltip": [nominal("ranker"), nominal("bucket"), quantitative("value", format=".4f"), quantitative("n")],
    }
    draw_chart(rows, {"mark": "bar", "encoding": encoding, "height": 280})
