"""Rankers that need no training and no network: the pre-ranker, and the evidence teacher."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from curate.evaluation.rankers.protocol import Ranked, given_order
from curate.traces.teachers.evidence import rank_candidates
from prompts.tasks import RerankTask


@dataclass(frozen=True, slots=True)
class PreRanker:
    """Leaves the candidates as they are. name: the pre-ranker that made the lists."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """The input order of each."""
        return (Ranked(given_order(task)) for task in tasks)


@dataclass(frozen=True, slots=True)
class EvidenceRanker:
    """The evidence teacher's order at temperature 0."""

    name: str = "evidence.v1"
    settings: dict[str, Any] = field(default_factory=dict)

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """The best evidence first."""
        for task in tasks:
            yield Ranked([candidate.item.item_id for candidate in rank_candidates(task, temperature=0, seed=0)])
