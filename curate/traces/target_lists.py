"""The candidate lists that rankers learn from and are judged on: those that hold their target."""

from typing import NamedTuple

import polars as pl

from curate.traces.tasks import ListedTask, load_tasks
from store import Store

BATCH_LISTS = 2_000
NO_LIMIT = 2**62


class TargetLists(NamedTuple):
    """Lists that hold their target, in the order of their ids.

    facts: list_id, target_rank, history_length (up to 20) and target_popularity of each. misses: how many lists among
    them do not hold their target.
    """

    facts: pl.DataFrame
    listed: list[ListedTask]
    misses: int


def load_target_lists(
    store: Store, dataset: str, sid_version: str, pre_ranker: str, split: str, *, limit: int | None = None
) -> TargetLists:
    """The lists of a split until `limit` of them hold their target, which makes them a random sample of all lists:
    their ids are hashes.
    """
    with store.reading() as session:
        lists = session.frame(
            "lists_until_limit",
            dataset=dataset,
            split=split,
            pre_ranker=pre_ranker,
            limit=NO_LIMIT if limit is None else limit,
        )
    facts = lists.filter(pl.col("target_rank").is_not_null())
    listed: list[ListedTask] = []
    for batch in facts["list_id"].to_frame().iter_slices(BATCH_LISTS):
        list_ids = batch["list_id"].to_list()
        with store.reading() as session:
            tasks = load_tasks(session, dataset, sid_version, list_ids)
        listed += (tasks[list_id] for list_id in list_ids)
    return TargetLists(facts, listed, lists.height - facts.height)
