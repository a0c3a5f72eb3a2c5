"""What the page of trainings shows: which there were, and their curves."""

import polars as pl

from store import Store


def load_trainings(store: Store) -> pl.DataFrame:
    """All trainings, newest first: what each began with, how far it is, its last loss and reward."""
    with store.reading() as session:
        return session.frame("training_runs")


def load_rollout_steps(store: Store, run_id: str) -> dict[int, int]:
    """The number of rollouts of each step of a training; empty for one that keeps none."""
    with store.reading() as session:
        return dict(session.rows("rollout_steps", run_id=run_id))


def load_curves(store: Store, run_ids: list[str]) -> pl.DataFrame:
    """Rows of run_id, metric, step, value."""
    with store.reading() as session:
        return session.frame("curves_of", run_ids=run_ids)
