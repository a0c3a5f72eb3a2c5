"""A hand-made task."""

import pytest

from prompts.tasks import Candidate, RerankTask, ShownItem
from store.records import Evidence, Link


@pytest.fixture
def task() -> RerankTask:
    """Three candidates after a, b: the last has the most evidence."""
    return RerankTask(
        (ShownItem("a", "<a>"), ShownItem("b", "<b>")),
        (
            Candidate(ShownItem("c", "<c>"), Evidence(2.0, popularity=5)),
            Candidate(ShownItem("d", "<d>"), Evidence(1.0, 0.5, (Link("a", 1, 2),), ("Shop",), 2)),
            Candidate(
                ShownItem("e", "<e>"),
                Evidence(2.0, 1.0, (Link("b", 3, 0), Link("a", 4, 1)), ("Shop", "Even"), 1, 1, 2),
            ),
        ),
    )
