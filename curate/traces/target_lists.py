"""Candidate lists that contain their target, on which rankers are trained and evaluated."""

from typing import NamedTuple

import polars as pl

from curate.traces.tasks import ListedTask, load_tasks
from store import Store

BATCH_LISTS = 2_000
# The LIMIT of a query needs a number.
NO_LIMIT = 2**62


class TargetLists(NamedTuple):
    """Candidate lists that contain their target, ordered by list id.

    facts: one row per list with list_id, target_rank, history_length (at most 20), fold (NULL except for train lists)
    and target_popularity. listed: the tasks in the same order. misses: the number of lists in the same range that do
    not contain their target.
    """

    facts: pl.DataFrame
    listed: list[ListedTask]
    misses: int


def load_target_lists(
    store: Store, dataset: str, sid_version: str, pre_ranker: str, split: str, *, limit: int | None = None
) -> TargetLists:
    """The lists of a split, in the order of their ids, until `limit` of them contain their target.

    List ids are hashes, so this is a random sample of all lists. limit: None means all lists of the split.
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
    # Each batch is a short read, so that a writer never waits for all of them.
    for batch in facts["list_id"].to_frame().iter_slices(BATCH_LISTS):
        list_ids = batch["list_id"].to_list()
        with store.reading() as session:
            tasks = load_tasks(session, dataset, sid_version, list_ids)
        listed += (tasks[list_id] for list_id in list_ids)
    return TargetLists(facts, listed, lists.height - facts.height)
