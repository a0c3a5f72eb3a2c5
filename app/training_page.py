"""The page of trainings: which there were, their curves beside each other, and how rankers compare.

It draws; what it draws comes from `train.browsing` and `curate.evaluation`. Names are shown as text, never as HTML.
"""

import altair as alt
import polars as pl
import streamlit as st

from curate.evaluation import load_evaluations
from store import Store
from train.browsing import load_curves, load_trainings

# What people look at first, where a training has it.
FIRST_METRICS = ("reward", "loss", "answers/promotion", "answers/copied", "answers/valid", "entropy")
SHOWN_CURVES = 4
GAIN = "conditional_ndcg_at_5_gain"


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
            st.altair_chart(
                alt.Chart(curves.filter(metric=metric), title=metric)
                .mark_line(interpolate="monotone")
                .encode(
                    x=alt.X("step:Q", title="step"),
                    y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
                    color=alt.Color("label:N", title=None, scale=alt.Scale(scheme="tableau10")),
                    tooltip=["label:N", "step:Q", alt.Tooltip("value:Q", format=".4g")],
                )
                .properties(height=240)
            )


def draw_evaluations(store: Store) -> None:
    """The newest figures of each ranker, as gains over the pre-ranker with their intervals."""
    st.subheader("Evaluations")
    with store.reading() as session:
        datasets = [name for (name,) in session.rows("evaluated_datasets")]
    if not datasets:
        st.info("No evaluation yet. gr2 eval compares rankers on the candidate lists of a data set.")
        return
    dataset = st.selectbox("data set", datasets, key="evaluated")
    metrics = load_evaluations(store, dataset).metrics.filter(split="test")
    gains = metrics.filter(metric=GAIN).unique("ranker", keep="first", maintain_order=True)
    if gains.height:
        order = gains.sort("value", descending=True)["ranker"].to_list()
        base = alt.Chart(gains).encode(y=alt.Y("ranker:N", title=None, sort=order))
        st.altair_chart(
            (
                base.mark_rule().encode(x=alt.X("low:Q", title="N@5 gain over the pre-ranker, 95%"), x2="high:Q")
                + base.mark_point(filled=True, size=70).encode(
                    x="value:Q", tooltip=["ranker", "value", "low", "high", "n"]
                )
                + alt.Chart(pl.DataFrame({"zero": [0.0]})).mark_rule(strokeDash=[4, 4]).encode(x="zero:Q")
            ).properties(height=60 + 36 * gains.height)
        )
    shown = metrics.unique(["ranker", "metric"], keep="first", maintain_order=True)
    st.dataframe(shown.pivot("metric", index="ranker", values="value"), hide_index=True)
