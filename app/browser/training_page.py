"""The page of trainings: which there were, their curves beside each other, and how rankers compare.

It draws; what it draws comes from `train.browsing` and `curate.evaluation.evaluate`. Names are shown as text, never as
HTML.
"""

import orjson
import polars as pl
import streamlit as st

from app.browser.charts import CATEGORIES, dashed_rule, draw_chart, nominal, quantitative
from curate.evaluation.results import load_evaluations
from store import Store
from train.browsing import load_curves, load_trainings

# What people look at first, where a training has it.
FIRST_METRICS = ("reward", "loss", "answers/promotion", "answers/copied", "answers/valid", "entropy")
SHOWN_CURVES = 4
BLUE = "#4c78a8"
GAIN = "conditional_ndcg_at_5_gain"
SHOWN = {
    "valid_share": "valid",
    "copy_share": "copied",
    "conditional_recall_at_1": "R@1",
    "conditional_recall_at_5": "R@5",
    "conditional_ndcg_at_5": "N@5",
    "conditional_mrr": "MRR",
    "top1_consistency": "top-1 consistency",
}
SLICE_METRICS = {"conditional_ndcg_at_5": "N@5", "first_pick_share": "share of first picks"}


def draw_trainings(store: Store) -> None:
    """Draw the page."""
    st.subheader("Trainings")
    trainings = load_trainings(store)
    if trainings.height == 0:
        st.info("No training yet. Make a student with gr2 train init and train it with gr2 train sft.")
    else:
        draw_curves(store, trainings)
    draw_evaluations(store)


def draw_curves(store: Store, trainings: pl.DataFrame) -> None:
    """A table of trainings; those that are picked have their curves below."""
    event = st.dataframe(
        trainings.drop("run_id"), hide_index=True, on_select="rerun", selection_mode="multi-row", key="trainings"
    )
    rows = event.selection.rows or [0]
    chosen = trainings[rows]
    curves = load_curves(store, chosen["run_id"].to_list()).join(
        chosen.select("run_id", label=pl.coalesce("name", "run_id")), on="run_id"
    )
    known = curves["metric"].unique().sort().to_list()
    first = [metric for metric in FIRST_METRICS if metric in known] or known
    metrics = st.multiselect("curves", known, default=first[:SHOWN_CURVES], key="metrics")
    columns = st.columns(2)
    for place, metric in enumerate(metrics):
        with columns[place % 2]:
            draw_curve(curves.filter(metric=metric), metric)


def draw_curve(points: pl.DataFrame, metric: str) -> None:
    """One figure over the steps of each training that is picked."""
    encoding = {
        "x": quantitative("step", title="step", axis={"tickMinStep": 1}),
        "y": quantitative("value", title=None, scale={"zero": False}),
        "color": nominal("label", title=None, scale=CATEGORIES, legend={"orient": "top"}),
        "tooltip": [nominal("label"), quantitative("step"), quantitative("value", format=".4g")],
    }
    mark = {"type": "line", "interpolate": "monotone"}
    draw_chart(points, {"mark": mark, "encoding": encoding, "title": metric, "height": 300})


def draw_evaluations(store: Store) -> None:
    """One evaluation, the newest unless another is chosen: all figures are of the same lists, so that they compare."""
    st.subheader("Evaluations")
    with store.reading() as session:
        datasets = [name for (name,) in session.rows("evaluated_datasets")]
    if not datasets:
        st.info("No evaluation yet. gr2 eval compares rankers on the candidate lists of a dataset.")
        return
    dataset = st.selectbox("dataset", datasets, key="evaluated")
    runs = load_evaluations(store, dataset).runs
    started = dict(runs.select("run_id", "started_at").rows())
    run_id = st.selectbox("evaluation", started, format_func=lambda run: f"{started[run]:%Y-%m-%d %H:%M}, {run}")
    done = load_evaluations(store, dataset, run_id)
    figures = done.metrics.pivot("metric", index="ranker", values="value")
    shown = {name: label for name, label in SHOWN.items() if name in figures.columns}
    facts = orjson.loads(done.runs["settings"][0])
    lists: int = done.metrics.filter(metric="conditional_mrr")["n"][0]
    st.text(
        f"{lists:,} {facts['split']} lists of {facts['pre_ranker']} that hold their target, "
        f"semantic IDs {facts['sid_version']}"
    )
    st.dataframe(figures.select("ranker", *shown).rename(shown), hide_index=True)
    draw_gains(done.metrics.filter(metric=GAIN), "N@5 gain over the pre-ranker, 95%")
    rankers = figures["ranker"].to_list()
    other = st.selectbox("gain over", rankers[1:], key="other") if len(rankers) > 2 else None
    if other is not None:
        draw_gains(gains_over(done.differences, other), f"N@5 gain over {other}, 95%")
    draw_slices(done.slices)


def gains_over(differences: pl.DataFrame, other: str) -> pl.DataFrame:
    """What each ranker gains over one of them; a difference that is stored the other way round is turned."""
    turned = differences.filter(ranker=other).select(
        ranker="other", value=-pl.col("value"), low=-pl.col("high"), high=-pl.col("low"), n="n"
    )
    return pl.concat([differences.filter(other=other).select("ranker", "value", "low", "high", "n"), turned])


def draw_gains(gains: pl.DataFrame, title: str) -> None:
    """Each ranker's gain with its interval, the best on top."""
    if gains.height == 0:
        return
    order = gains.sort("value", descending=True)["ranker"].to_list()
    ranker = nominal("ranker", title=None, sort=order, axis={"labelLimit": 240})
    tooltip = [nominal("ranker"), *(quantitative(column) for column in ("value", "low", "high", "n"))]
    layers = [
        {
            # A rule's own colour is black on any ground.
            "mark": {"type": "rule", "strokeWidth": 2, "color": BLUE},
            "encoding": {"y": ranker, "x": quantitative("low", title=title), "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "color": BLUE},
            "encoding": {"y": ranker, "x": quantitative("value"), "tooltip": tooltip},
        },
        dashed_rule("x", 0),
    ]
    draw_chart(gains, {"layer": layers, "height": 60 + 36 * gains.height})


def draw_slices(slices: pl.DataFrame) -> None:
    """Where each ranker is good: one figure by one property of the lists."""
    slices = slices.filter(pl.col("metric").is_in(list(SLICE_METRICS)))
    if slices.height == 0:
        return
    slice_: str = st.selectbox("by", slices["slice"].unique().sort(), format_func=lambda name: name.replace("_", " "))
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
