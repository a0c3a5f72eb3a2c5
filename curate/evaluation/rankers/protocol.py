"""What a ranker is: something that orders the candidates of tasks, without their targets.

The evaluation knows rankers by this protocol alone. What is no permutation of the candidates is no order: the input
order takes its place, and it is counted.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from prompts.completion import ParseFailure, parse_completion
from prompts.tasks import RerankTask


class Ranked(NamedTuple):
    """Item ids of the candidates, best first.

    valid: False where the ranker gave no order that can be used. error: why it gave none at all, such as a failed
    request; None where it answered. prompt_tokens, completion_tokens: what a language model read and wrote for this
    list; None where nobody counted.
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
        """Under which its figures are stored; different settings want different names."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its orders depend on, kept with the run that evaluates it."""

    def rank(self, tasks: Sequence[RerankTask]) -> Iterable[Ranked]:
        """One order for each task, in the tasks' order. The tasks hold no target."""


def read_ranking(text: str, task: RerankTask) -> Ranked:
    """What a completion says of a task's order; not valid where it cannot be read or names what is no candidate."""
    parsed = parse_completion(text, task)
    if isinstance(parsed, ParseFailure):
        return Ranked((), valid=False)
    return Ranked(parsed.ranking, valid=not parsed.unknown)


def given_order(task: RerankTask) -> list[str]:
    """The candidates as the task has them: the pre-ranker's order, unless somebody shuffled it."""
    return [candidate.item.item_id for candidate in task.candidates]


def checked(task: RerankTask, ranked: Ranked) -> Ranked:
    """The order given, or, where it is not valid or no permutation of the candidates, the input order, not valid."""
    if ranked.valid and sorted(ranked.item_ids) == sorted(given_order(task)):
        return ranked._replace(item_ids=list(ranked.item_ids))
    return ranked._replace(item_ids=given_order(task), valid=False)
