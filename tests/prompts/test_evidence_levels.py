from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.evidence_levels import LEVELS, EvidenceLevels, evidence_levels
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.records import Evidence, Link


def shown(item_id: str) -> ShownItem:
    return ShownItem(item_id, f"<{item_id}>")


def levels_of(*evidence: Evidence | None, history: tuple[str, ...] = ("h1", "h2")) -> list[EvidenceLevels]:
    candidates = tuple(Candidate(shown(f"c{k}"), facts) for k, facts in enumerate(evidence))
    return evidence_levels(RerankTask(tuple(map(shown, history)), candidates))


def test_levels_by_hand() -> None:
    first = Evidence(8.0, 0.2, (Link("h2", 4, 1), Link("h1", 1, 0), Link("h0", 11, 7)), ("A", "B"), 3, 2, 5)
    second = Evidence(4.0, 0.1, (Link("h1", 2, 2),))
    assert levels_of(first, second) == [
        EvidenceLevels(0, 0, 5, 1, 9, 1, 7, 2, 3, 2),
        EvidenceLevels(3, 3, 0, 3, 3, 0, 3, 0, 0, 0),
    ]


def test_without_history_score_or_weight_a_level_is_zero_or_the_worst() -> None:
    assert levels_of(Evidence(0.0), history=()) == [EvidenceLevels(11, 11, 0, 0, 0, 0, 0, 0, 0, 0)]
    assert levels_of() == []


def test_levels_need_the_evidence_of_every_candidate() -> None:
    with pytest.raises(ValueError, match="only 1 of 2 candidates have evidence"):
        levels_of(Evidence(1.0), None)


@given(
    st.lists(
        st.builds(
            Evidence,
            st.floats(0, 1e30),
            st.floats(0, 1e30),
            st.lists(st.builds(Link, st.sampled_from("xyz"), st.integers(0, 10**12), st.integers(0, 10**12))).map(
                tuple
            ),
            st.lists(st.text()).map(tuple),
            st.integers(0, 10**6),
            st.integers(0, 10**6),
        ),
        max_size=10,
    ),
    st.floats(1e-6, 1e6),
)
def test_levels_stay_in_their_range_and_the_scale_of_scores_does_not_matter(
    evidence: list[Evidence], scale: float
) -> None:
    levels = levels_of(*evidence, history=("x", "y"))
    assert all(0 <= level < LEVELS for each in levels for level in each)
    scaled = levels_of(*(replace(facts, score=facts.score * scale) for facts in evidence), history=("x", "y"))
    # Rounding may move a ratio across a border, by one level.
    assert all(abs(a.score - b.score) <= 1 for a, b in zip(levels, scaled, strict=True) if a.score < 11 > b.score)
