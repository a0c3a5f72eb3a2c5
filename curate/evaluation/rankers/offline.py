"""Rankers that need no training and no network: the pre-ranker, the evidence teacher and a fitted scorecard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from curate.evaluation.rankers.protocol import Ranked, given_order
from curate.traces.teachers.evidence import rank_candidates
from curate.traces.teachers.fitted.scorecard import Scorecard, ScorecardTeacher, fit_scorecard
from prompts.tasks import RerankTask
from store import InputError, Store


@dataclass(frozen=True, slots=True)
class PreRanker:
    """Leaves the candidates in their order. name: the pre-ranker that made the lists."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """Return the input order of each task."""
        return (Ranked(given_order(task)) for task in tasks)


@dataclass(frozen=True, slots=True)
class EvidenceRanker:
    """Ranks like the evidence teacher at temperature 0."""

    name: str = "evidence.v1"
    settings: dict[str, Any] = field(default_factory=dict)

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """Rank the candidates of each task by their evidence, best first."""
        for task in tasks:
            yield Ranked([candidate.item.item_id for candidate in rank_candidates(task, temperature=0, seed=0)])


@dataclass(frozen=True, slots=True)
class ScorecardRanker:
    """Ranks like the scorecard teacher at temperature 0."""

    card: Scorecard
    settings: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", {"digest": self.card.digest, "lists": self.card.lists})

    @property
    def name(self) -> str:
        """The name of the teacher's model."""
        return ScorecardTeacher(self.card).model

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """Rank the candidates of each task by their points, most first. Ties keep the input order."""
        for task in tasks:
            order = np.argsort(-self.card.scores(task), kind="stable")
            yield Ranked([task.candidates[k].item.item_id for k in order])


def fit_scorecard_ranker(store: Store, dataset: str, sid_version: str, pre_ranker: str, split: str) -> ScorecardRanker:
    """Fit a ranker that can be evaluated on the lists of `split`.

    Raises InputError on train lists, because the scorecard has learned from them.
    """
    if split == "train":
        raise InputError("a scorecard is fitted to train lists, so only `split` valid or test can judge it")
    return ScorecardRanker(fit_scorecard(store, dataset, sid_version, pre_ranker))
