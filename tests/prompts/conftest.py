"""A task of three history items and four candidates, with evidence."""

import pytest

from prompts.semantic_ids import render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.records import Evidence, Link, Similarity


def item(number: int, title: str | None = None) -> ShownItem:
    path = ("Beauty", "Hair Care", f"Kind {number % 3}")
    return ShownItem(f"i{number}", render_sid((number, 7, 23, 4)), title or f"Product {number}", path, "Acme")


@pytest.fixture
def task() -> RerankTask:
    links, near = (Link("i2", 12, 1), Link("i1", 0, 3)), Similarity(0.5, 0.25, 0.75)
    evidence = Evidence(0.5, 0.1, links, ("Beauty", "Hair Care"), 3, 2, 4, near, near)
    return RerankTask(
        history=tuple(item(number) for number in range(3)),
        candidates=tuple(Candidate(item(number), evidence) for number in range(10, 14)),
    )
