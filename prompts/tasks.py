"""Re-ranking tasks: a history and its candidates, each with semantic ID, texts and optional evidence.

Templates render a task, teachers answer it, the parser reads completions for it, and rules check them with it. A task
does not know where its rows come from.
"""

from dataclasses import dataclass

from store.records import Evidence


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One item as a prompt shows it. sid: its semantic ID in text form (`prompts.semantic_ids`)."""

    item_id: str
    sid: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate with the evidence that links it to the history. evidence: None if the template does not show it."""

    item: ShownItem
    evidence: Evidence | None = None


@dataclass(frozen=True, slots=True)
class RerankTask:
    """One candidate list to re-rank.

    history: oldest first. candidates: in the pre-ranker's order, best first. target: the item to explain in the
    targeted strategy. It is None in all other strategies, so that no request can contain it.
    """

    history: tuple[ShownItem, ...]
    candidates: tuple[Candidate, ...]
    target: ShownItem | None = None
