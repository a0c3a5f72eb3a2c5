"""From stored candidate lists to the tasks that prompts show and rules judge against."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prompts.tasks import Candidate, RerankTask, ShownItem
from prompts.templates import Template
from store import Session
from store.records import Evidence, Link


@dataclass(frozen=True, slots=True)
class ListedTask:
    """A task with its evidence, and the answer that no teacher sees.

    task: holds no target. target_item_id: what the user took next.
    """

    list_id: str
    task: RerankTask
    target_item_id: str


def load_tasks(session: Session, dataset: str, sid_version: str, list_ids: Sequence[str]) -> dict[str, ListedTask]:
    """The tasks of candidate lists by list id, with the last 20 items of each history; unknown ids are left out."""
    lists = session.frame("task_lists", list_ids=list(list_ids))
    wanted = sorted({item for column in ("history", "item_ids") for items in lists[column] for item in items})
    items = {
        item_id: ShownItem(item_id, sid, title, tuple(categories), brand)
        for item_id, sid, title, categories, brand in session.rows(
            "task_items", dataset=dataset, sid_version=sid_version, item_ids=wanted
        )
    }
    evidence: dict[str, list[Evidence]] = {}
    for list_id, score, last_weight, links, category, category_items, brand_items, popularity in session.rows(
        "task_evidence", list_ids=list(list_ids)
    ):
        evidence.setdefault(list_id, []).append(
            Evidence(
                score,
                last_weight,
                tuple(Link(link["item_id"], link["after"], link["before"]) for link in links),
                tuple(category),
                category_items,
                brand_items,
                popularity,
            )
        )
    return {
        list_id: ListedTask(
            list_id,
            RerankTask(
                history=tuple(items[item] for item in history),
                candidates=tuple(
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
    """What a template shows of a list, and the chat messages that show it."""
    task = listed.task
    if template.strategy == "targeted":
        target = next(c.item for c in task.candidates if c.item.item_id == listed.target_item_id)
        task = replace(task, target=target)
    return render_task(template, task, knowledge_priming=knowledge_priming)


def render_task(
    template: Template, task: RerankTask, *, knowledge_priming: bool
) -> tuple[RerankTask, tuple[dict[str, str], ...]]:
    """What a template shows of a task, and the chat messages that show it."""
    if not template.shows_evidence:
        task = replace(task, candidates=tuple(replace(candidate, evidence=None) for candidate in task.candidates))
    return task, template.render(task, knowledge_priming=knowledge_priming)
