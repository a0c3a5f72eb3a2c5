"""Rankers' metrics as rows of the store, one run for each evaluation."""

import secrets

import polars as pl

from curate.metrics import Metric
from store import Store
from store.values import utc_now

RankerMetrics = dict[tuple[str, str], list[Metric]]
"""Metrics by (split, ranker)."""

CONDITIONAL = "conditional_"
"""Prefix of metrics over only those lists that hold their target."""


def put_evaluation(store: Store, dataset: str, full: RankerMetrics, conditional: RankerMetrics) -> None:
    """Store metrics over all lists and over those that hold their target; figures that are there already add no run."""
    now = utc_now()
    run_id = f"evaluate-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    rows = [
        {
            "run_id": run_id,
            "dataset": dataset,
            "split": split,
            "ranker": ranker,
            "metric": prefix + metric.name,
            "value": metric.value,
            "low": metric.low,
            "high": metric.high,
            "n": metric.n,
        }
        for prefix, rankings in (("", full), (CONDITIONAL, conditional))
        for (split, ranker), metrics in rankings.items()
        for metric in metrics
    ]
    run = {
        "run_id": run_id,
        "kind": "evaluate",
        "dataset": dataset,
        "settings": "{}",
        "status": "done",
        "started_at": now,
        "ended_at": now,
    }
    with store.writing() as session:
        known = set(session.rows("evaluated", dataset=dataset))
        if not known.issuperset((row["split"], row["ranker"], row["metric"], row["value"], row["n"]) for row in rows):
            session.put("runs", pl.DataFrame([run]))
            session.put("evaluations", pl.DataFrame(rows))
