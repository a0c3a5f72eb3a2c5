"""Loads stored candidate lists as the tasks that prompts show and that rules judge against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import polars as pl

from prompts.tasks import Candidate, RerankTask, ShownItem
from prompts.templates import Template
from store import Session
from store.records import Evidence, Link, Similarity


@dataclass(frozen=True, slots=True)
class ListedTask:
    """A task with its evidence and its target.

    task: does not contain the target, so that no teacher sees it. target_item_id: the item of the user's next
    interaction.
    """

    list_id: str
    task: RerankTask
    target_item_id: str


class Places(NamedTuple):
    """Where lists lie in the store: the first and last row of the lists themselves, and of their evidence."""

    first: int = 0
    last: int = 2**62
    first_evidence: int = 0
    last_evidence: int = 2**62


class PromptPlaces(NamedTuple):
    """Where prompts lie in the store: the first and the last of them, and their lists."""

    first: int = 0
    last: int = 2**62
    lists: Places = Places()


def locate_lists(session: Session, lists: pl.DataFrame) -> pl.DataFrame:
    """Return lists (list_id, and any other columns) in the order in which they lie in the store.

    The result has the columns that `places_of` needs. Lists are never changed or removed, so their places stay valid.
    """
    session.insert("create_located_lists", lists.select("list_id").unique())
    return lists.join(session.frame("located_lists"), on="list_id").sort("place", maintain_order=True)


def places_of(located: pl.DataFrame) -> Places:
    """The places of neighbouring rows of the result of `locate_lists`. There must be at least one row."""
    ends = located.select(
        pl.min("place"), pl.max("place").alias("last"), pl.min("first_evidence"), pl.max("last_evidence")
    )
    first, last, first_evidence, last_evidence = ends.row(0)
    return Places(first, last, first_evidence or 0, last_evidence or 0)


def load_tasks(
    session: Session, dataset: str, sid_version: str, list_ids: Sequence[str], within: Places | None = None
) -> dict[str, ListedTask]:
    """Load the tasks of candidate lists, by list id, with the last 20 items of each history. Unknown ids are left out.

    within: where the lists lie, if that is known; rows outside are then not read. None reads through all lists.
    """
    places = within or Places()
    lists = session.frame("task_lists", list_ids=list(list_ids), first=places.first, last=places.last)
    # Lists share many items, so each item is loaded once.
    item_ids_of_lists = sorted(
        {item for column in ("history", "item_ids") for items in lists[column] for item in items}
    )
    items = {
        item_id: ShownItem(item_id, sid, title, tuple(categories), brand)
        for item_id, sid, title, categories, brand in session.rows(
            "task_items", dataset=dataset, sid_version=sid_version, item_ids=item_ids_of_lists
        )
    }
    evidence: dict[str, list[Evidence]] = {}
    for list_id, score, last_weight, links, category, category_items, brand_items, popularity, *cosines in session.rows(
        "task_evidence", list_ids=list(list_ids), first=places.first_evidence, last=places.last_evidence
    ):
        # The store has either all six cosines or none.
        text, copurchase = (None, None) if cosines[0] is None else (Similarity(*cosines[:3]), Similarity(*cosines[3:]))
        evidence.setdefault(list_id, []).append(
            Evidence(
                score,
                last_weight,
                tuple(Link(link["item_id"], link["after"], link["before"]) for link in links),
                tuple(category),
                category_items,
                brand_items,
                popularity,
                text,
                copurchase,
            )
        )
    return {
        list_id: ListedTask(
            list_id,
            RerankTask(
                history=tuple(items[item] for item in history),
                candidates=tuple(
                    # A list without stored evidence still has the pre-ranker's scores.
                    Candidate(items[item], facts)
                    for item, facts in zip(
                        item_ids, evidence.get(list_id) or [Evidence(score) for score in scores], strict=True
                    )
                ),
            ),
            target,
        )
        for list_id, history, target, item_ids, scores in lists.iter_rows()
    }


def render_list(
    template: Template, listed: ListedTask, *, knowledge_priming: bool
) -> tuple[RerankTask, tuple[dict[str, str], ...]]:
    """The part of a list's task that a template shows, and the chat messages that show it.

    knowledge_priming: whether the messages include the template's paragraph on how people shop.
    """
    task = listed.task
    if template.strategy == "targeted":
        # This is the only place where a target enters a task. The target is always one of the candidates here.
        target = next(c.item for c in task.candidates if c.item.item_id == listed.target_item_id)
        task = replace(task, target=target)
    return render_task(template, task, knowledge_priming=knowledge_priming)


def render_task(
    template: Template, task: RerankTask, *, knowledge_priming: bool
) -> tuple[RerankTask, tuple[dict[str, str], ...]]:
    """The part of a task that a template shows, and the chat messages that show it."""
    if not template.shows_evidence:
        # The evidence is removed from the task too: the evidence teacher reads the task, and must know no more than the
        # prompt says.
        task = replace(task, candidates=tuple(replace(candidate, evidence=None) for candidate in task.candidates))
    return task, template.render(task, knowledge_priming=knowledge_priming)
