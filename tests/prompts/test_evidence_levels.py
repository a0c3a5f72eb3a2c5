from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.evidence_levels import FINE_LEVELS, LEVELS, EvidenceLevels, evidence_levels, fine_levels
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.records import Evidence, Link, Similarity


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


def fine_levels_of(*evidence: Evidence) -> list[dict[str, int]]:
    candidates = tuple(Candidate(shown(f"c{k}"), facts) for k, facts in enumerate(evidence))
    return [levels._asdict() for levels in fine_levels(RerankTask((shown("h1"), shown("h2")), candidates))]


def test_fine_levels_by_hand() -> None:
    near, far = Similarity(1.0, 0.5, 1.0), Similarity(0.0, -0.5, 0.7072)
    links = (Link("h2", 4, 1),)
    first, second = fine_levels_of(
        Evidence(8.0, 0.2, links, ("A",), 3, 2, 5, near, far), Evidence(4.0, 0.1, text=far, copurchase=near)
    )
    assert (first["score"], second["score"]) == (0, 6)
    assert (first["last_weight"], second["last_weight"]) == (0, 6)
    assert (first["after_last"], first["before_last"], first["shared_items"], first["brand_items"]) == (5, 1, 3, 2)
    # 0, 60 and 0 degrees, of which 90 are 24 levels.
    assert [first[f"text_{of}"] for of in ("last", "mean", "nearest")] == [0, 16, 0]
    # A right angle, one beyond it, and 45 degrees.
    assert [second[f"text_{of}"] for of in ("last", "mean", "nearest")] == [23, 23, 11]
    assert (first["text_rank"], second["text_rank"]) == (0, 1)
    assert (first["copurchase_rank"], second["copurchase_rank"]) == (1, 0)


def test_fine_levels_need_similarities() -> None:
    with pytest.raises(ValueError, match="no similarities; run `gr2 candidates` again"):
        fine_levels_of(Evidence(1.0))


@given(st.lists(st.tuples(*[st.floats(-1.0001, 1.0001)] * 6), min_size=1, max_size=10))
def test_fine_levels_stay_in_their_range(cosines: list[tuple[float, ...]]) -> None:
    evidence = [Evidence(1.0, text=Similarity(*six[:3]), copurchase=Similarity(*six[3:])) for six in cosines]
    assert all(0 <= level < FINE_LEVELS for levels in fine_levels_of(*evidence) for level in levels.values())


def test_without_history_score_or_weight_a_level_is_zero_or_the_worst() -> None:
    assert levels_of(Evidence(0.0), history=()) == [EvidenceLevels(11, 11, 0, 0, 0, 0, 0, 0, 0, 0)]
    assert levels_of() == []


def test_levels_need_the_evidence_of_every_candidate() -> None:
    with pytest.raises(ValueError, match="only 1 of 2 candidates have evidence"):
        levels_of(Evidence(1.0), None)


@pytest.mark.slow
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
