"""The order-copying hack, shown and closed: the same DAPO run with the unconditional and with two other rewards.

    python bench/order_copying.py [--steps 60] [--keep FOLDER]

A student that saw no evidence learns cautious orders, of which about half are the input order. Any item that it moves,
it mostly demotes, so under `unconditional` a copy pays best. Under `conditional` a copy earns nothing unless the target
is first, so that moving items is worth a try. Under `ndcg`, the report's form, a copy earns less than any other
permutation. The runs have the same seed, prompts and settings. The data are simulated shoppers, without real data and
network. Drawing needs `pip install vl-convert-python`. Writes docs/images/order-copying.svg and prints the shares at
both ends.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import altair as alt
import polars as pl
from measure import Bars, quiet

from curate.candidates.making import make_candidates
from curate.datasets.simulation import simulate
from curate.sids.assignment import assign_semantic_ids
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import BRIEF, EvidenceTeacher
from store import Store
from train.browsing import load_curves, load_trainings
from train.dapo.training import DapoSettings, train_dapo
from train.runs import TrainingSummary, student_folder
from train.sft.training import SftSettings, train_sft
from train.students.initialization import init_from_snapshot

TEMPLATE = "rerank_ids.v1"
REWARDS = ("unconditional", "conditional", "ndcg")
SHOWN = {"answers/copied": "share of copied orders", "answers/promotion": "promotion of the target, in lists' lengths"}
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "order-copying.svg"
# Each printed value is the mean of this many steps.
WINDOW = 5


def build(store: Store) -> None:
    """Make simulated shoppers, cautious traces of every outcome, and a student trained on them."""
    simulate(store, "shop", users=1_000)
    assign_semantic_ids(store, "shop")
    make_candidates(store, "shop")
    settings = SamplingSettings("shop", template=TEMPLATE, temperature=0.12, max_attempts=1, ruleset="answered")
    sample(store, EvidenceTeacher(BRIEF), settings)
    for kind in ("sft", "dapo"):
        selection = SnapshotSettings("shop", ruleset="answered", template=TEMPLATE, kind=kind, splits=("train",))
        publish(store, f"shop-{kind}", selection)
    if not student_folder(store, "new").exists():
        init_from_snapshot(store, "shop-sft", "new", "tiny")
    go_on(store, "timid", partial(train_sft, store, "shop-sft", "new", "timid", SftSettings(epochs=6, reasoning=False)))


def go_on(store: Store, name: str, train: Callable[..., TrainingSummary]) -> None:
    """Train a student unless it exists, and continue an interrupted training."""
    place = student_folder(store, name)
    if not (place / "config.json").exists():
        train(resume=place.exists(), on_progress=print)


def main() -> None:
    """Train once with each reward, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    quiet()
    with tempfile.TemporaryDirectory() as temporary:
        store = Store.open(options.keep or Path(temporary) / "store", create=True)
        build(store)
        for reward in REWARDS:
            settings = DapoSettings(reward=reward, steps=options.steps, max_tokens=48, refill_rounds=0)
            go_on(store, reward, partial(train_dapo, store, "shop-dapo", "timid", reward, settings))
        trainings = (
            load_trainings(store)
            .filter(pl.col("name").is_in(REWARDS), status="done")
            .unique("name", keep="first", maintain_order=True)
        )
        curves = load_curves(store, trainings["run_id"].to_list()).join(
            trainings.select("run_id", reward="name"), on="run_id"
        )
    draw(curves)
    bars = Bars()
    begun, ended = {}, {}
    for reward in REWARDS:
        copied = curves.filter(reward=reward, metric="answers/copied").sort("step")["value"]
        begun[reward], ended[reward] = copied.head(WINDOW).mean(), copied.tail(WINDOW).mean()
        valid = curves.filter(reward=reward, metric="answers/valid").sort("step")["value"].tail(WINDOW).mean()
        print(
            f"{reward}: copied {begun[reward]:.3f} at the beginning, {ended[reward]:.3f} at the end; valid {valid:.3f}"
        )
    bars.at_least(
        "copied at the end under unconditional, over conditional's", ended["unconditional"] - ended["conditional"], 0.1
    )
    bars.at_most("rise of copying under conditional", ended["conditional"] - begun["conditional"], 0.0)
    bars.at_most("copied at the end under ndcg", ended["ndcg"], 0.05)
    sys.exit(not bars.met)


def draw(curves: pl.DataFrame) -> None:
    """Draw the runs beside each other, as means of a few steps."""
    smooth = (
        curves.filter(pl.col("metric").is_in(list(SHOWN)))
        .sort("step")
        .with_columns(pl.col("value").rolling_mean(WINDOW, min_samples=1).over("reward", "metric"))
    )
    charts = [
        alt.Chart(smooth.filter(metric=metric), title=title, width=330, height=220)
        .mark_line()
        .encode(
            x=alt.X("step:Q", title="step", axis=alt.Axis(tickMinStep=1)),
            y=alt.Y("value:Q", title=None),
            color=alt.Color("reward:N", title="reward", sort=list(REWARDS)),
        )
        for metric, title in SHOWN.items()
    ]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    alt.hconcat(*charts).save(PICTURE)


if __name__ == "__main__":
    main()
