"""The contents of a store in a few small tables."""

from dataclasses import dataclass

import polars as pl

from store import Store


@dataclass(frozen=True, slots=True)
class StatusTable:
    """Rows to show under a title. next_step: how to get rows, which is shown if there are none."""

    title: str
    rows: pl.DataFrame
    next_step: str


def load_status(store: Store) -> list[StatusTable]:
    """Load datasets, pre-rankers, the funnel from prompts to accepted traces, and snapshots."""
    parts = (
        ("status_datasets", "datasets", "gr2 simulate or gr2 ingest makes one"),
        (
            "status_rankers",
            "rankers (newest evaluation of most lists)",
            "gr2 candidates makes lists and evaluates the pre-ranker",
        ),
        ("status_funnel", "funnel, accepted under ruleset paper", "gr2 trace asks a teacher"),
        ("status_reasons", "why traces fail", "gr2 trace judges a teacher's answers"),
        ("status_rollouts", "rollouts of students", "gr2 train dapo keeps all of its rollouts"),
        ("status_errors", "why requests fail", "gr2 trace keeps the error of every failed request"),
        ("snapshot_list", "snapshots", "gr2 snapshot publish makes one"),
    )
    with store.reading() as session:
        return [StatusTable(title, session.frame(name), step) for name, title, step in parts]
