"""Queries for the page of trainings: the trainings and their curves."""

import polars as pl

from store import Store


def load_trainings(store: Store) -> pl.DataFrame:
    """All trainings, newest first, with their starting point, their progress, and their last loss and reward."""
    with store.reading() as session:
        return session.frame("training_runs")


def load_rollout_steps(store: Store, run_id: str) -> dict[int, int]:
    """The number of rollouts by step of a training. Empty if the training stores none."""
    with store.reading() as session:
        return dict(session.rows("rollout_steps", run_id=run_id))


def load_curves(store: Store, run_ids: list[str]) -> pl.DataFrame:
    """Metrics of trainings, with columns run_id, metric, step and value."""
    with store.reading() as session:
        return session.frame("curves_of", run_ids=run_ids)
