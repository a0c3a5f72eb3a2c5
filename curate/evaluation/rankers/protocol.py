"""The protocol of a ranker, which orders the candidates of tasks without their targets.

The evaluation knows rankers by this protocol alone. If the result is not a permutation of the candidates, it is counted
as invalid and replaced by the input order.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from prompts.completion import ParseFailure, parse_completion
from prompts.tasks import RerankTask


class Ranked(NamedTuple):
    """Item ids of the candidates, best first.

    valid: False if the ranker gave no usable order. error: why the ranker gave no answer at all, such as a failed
    request; None if it answered. prompt_tokens, completion_tokens: the tokens that a language model read and wrote for
    this list; None if they were not counted.
    """

    item_ids: Sequence[str]
    valid: bool = True
    error: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Ranker(Protocol):
    """Orders candidates. An evaluation calls `rank` once, with all lists and all their shuffles."""

    @property
    def name(self) -> str:
        """The name under which the metrics are stored. It should differ between different settings."""

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that determine the rankings. They are kept with the run that evaluates the ranker."""

    def rank(self, tasks: Sequence[RerankTask]) -> Iterable[Ranked]:
        """Return one order for each task, in the order of the tasks. The tasks do not contain their target."""


def read_ranking(text: str, task: RerankTask) -> Ranked:
    """Read the ranking of a completion. It is invalid if it cannot be read or names an item that is not a candidate."""
    parsed = parse_completion(text, task)
    if isinstance(parsed, ParseFailure):
        return Ranked((), valid=False)
    return Ranked(parsed.ranking, valid=not parsed.unknown)


def given_order(task: RerankTask) -> list[str]:
    """Return the candidates in the task's order, which is the pre-ranker's order unless they were shuffled."""
    return [candidate.item.item_id for candidate in task.candidates]


def checked(task: RerankTask, ranked: Ranked) -> Ranked:
    """Return the ranking as given, or the input order, marked as invalid, if it is not a permutation of the candidates.

    A ranking that is already marked as invalid is replaced by the input order too.
    """
    if ranked.valid and sorted(ranked.item_ids) == sorted(given_order(task)):
        return ranked._replace(item_ids=list(ranked.item_ids))
    return ranked._replace(item_ids=given_order(task), valid=False)
