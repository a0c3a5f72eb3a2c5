"""Writes evaluations as rows of the store, one run each, and reads them back."""

import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
import polars as pl

from curate.datasets.catalogue import find_dataset
from curate.evaluation.metrics import Metric
from curate.evaluation.ranker_comparison import CONDITIONAL
from store import Store
from store.values import utc_now

RankerMetrics = dict[tuple[str, str], list[Metric]]
"""Metrics by (split, ranker)."""


class Evaluations(NamedTuple):
    """Rows of the tables `runs`, `evaluations`, `evaluation_differences` and `evaluation_slices`."""

    runs: pl.DataFrame
    metrics: pl.DataFrame
    differences: pl.DataFrame
    slices: pl.DataFrame


def load_evaluations(store: Store, dataset: str, run_id: str | None = None) -> Evaluations:
    """Load the evaluations of a dataset, newest first. run_id: only this run, or None for all.

    Raises InputError on an unknown dataset.
    """
    key: dict[str, Any] = {"dataset": dataset, "run_id": run_id}
    with store.reading() as session:
        find_dataset(session, dataset)
        return Evaluations(
            session.frame("evaluation_runs", **key),
            session.frame("evaluation_metrics", **key),
            session.frame("evaluation_differences", **key),
            session.frame("evaluation_slices", **key),
        )


def put_evaluation(store: Store, dataset: str, full: RankerMetrics, conditional: RankerMetrics) -> None:
    """Store metrics of rankers as a run, unless the store has the same values already.

    full: metrics over all lists. conditional: metrics over the lists that contain their target.
    """
    run = run_row(dataset, utc_now(), {})
    metrics = [
        (split, ranker, metric._replace(name=prefix + metric.name))
        for prefix, rankings in (("", full), (CONDITIONAL, conditional))
        for (split, ranker), of_ranker in rankings.items()
        for metric in of_ranker
    ]
    rows = metric_rows({"run_id": run["run_id"], "dataset": dataset}, ("split", "ranker"), metrics)
    with store.writing() as session:
        stored_rows = set(session.rows("evaluated", dataset=dataset))
        if not stored_rows.issuperset(
            (row["split"], row["ranker"], row["metric"], row["value"], row["n"]) for row in rows
        ):
            session.put("runs", pl.DataFrame([run]))
            session.put("evaluations", pl.DataFrame(rows))


def run_row(dataset: str, started: datetime, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": f"evaluate-{started:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}",
        "kind": "evaluate",
        "dataset": dataset,
        "settings": orjson.dumps(settings).decode(),
        "status": "done",
        "started_at": started,
        "ended_at": utc_now(),
    }


def metric_rows(
    shared: dict[str, str], keys: Sequence[str], figures: Iterable[tuple[*tuple[str, ...], Metric]]
) -> list[dict[str, Any]]:
    """Return rows of a table of metrics.

    shared: columns with the same value in all rows. keys: names of the columns that differ. figures: tuples of the
    values of `keys` and the metric.
    """
    return [
        {
            **shared,
            **dict(zip(keys, values, strict=True)),
            "metric": metric.name,
            "value": metric.value,
            "low": metric.low,
            "high": metric.high,
            "n": metric.n,
        }
        for *values, metric in figures
    ]
