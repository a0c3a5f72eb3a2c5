"""A task of three history items and four candidates, with evidence."""

import pytest

from prompts.semantic_ids import render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.records import Evidence, Link


def item(number: int, title: str | None = None) -> ShownItem:
    path = ("Beauty", "Hair Care", f"Kind {number % 3}")
    return ShownItem(f"i{number}", render_sid((number, 7, 23, 4)), title or f"Product {number}", path, "Acme")


@pytest.fixture
def task() -> RerankTask:
    evidence = Evidence(0.5, 0.1, (Link("i2", 12, 1), Link("i1", 0, 3)), ("Beauty", "Hair Care"), 3, 2, 4)
    return RerankTask(
        history=tuple(item(number) for number in range(3)),
        candidates=tuple(Candidate(item(number), evidence) for number in range(10, 14)),
    )
