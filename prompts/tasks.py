"""What a re-ranking prompt shows: a history and its candidates, each with semantic ID, words and, maybe, evidence.

A task is the one thing that templates render, the parser reads completions against, teachers work on and rules check.
It does not know where its rows come from.
"""

from dataclasses import dataclass

from store.records import Evidence


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One item as a prompt shows it. `sid` is its semantic ID in text form (`prompts.semantic_ids`)."""

    item_id: str
    sid: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate and what links it to the history; `evidence` is None where the template does not show it."""

    item: ShownItem
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class RerankTask:
    """One candidate list to re-order.

    history: oldest first. candidates: in the pre-ranker's order, best first.
    target: the item to explain in the targeted strategy; None in every other, so that no request can hold it.
    """

    history: tuple[ShownItem, ...]
    candidates: tuple[Candidate, ...]
    target: ShownItem | None = None
