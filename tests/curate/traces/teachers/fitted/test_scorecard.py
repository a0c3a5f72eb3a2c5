import asyncio
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from curate.evaluation.evaluate import evaluate
from curate.evaluation.rankers.offline import ScorecardRanker
from curate.evaluation.rankers.protocol import Ranked
from curate.evaluation.settings import EvalSettings
from curate.traces.rules import Answer, judge
from curate.traces.teachers.fitted.scorecard import (
    KINDS,
    Scorecard,
    ScorecardTeacher,
    explain_points,
    fit_scorecard,
    fit_weights,
)
from curate.traces.teachers.protocol import RequestFailedError, Teacher, TeacherRequest
from prompts.completion import ParsedCompletion, parse_completion
from prompts.evidence_levels import LEVELS, EvidenceLevels
from prompts.tasks import Candidate, RerankTask, ShownItem
from store import InputError, Store
from store.records import Evidence


def a_card(**weights: float) -> Scorecard:
    """A card on which each level of a kind counts the same."""
    by_kind = [[weights.get(kind, 0.0) * level for level in range(LEVELS)] for kind in KINDS]
    return Scorecard(np.array(by_kind), lists=1)


def a_task(*brand_items: int) -> RerankTask:
    return RerankTask(
        (ShownItem("h", "<h>"),),
        tuple(
            Candidate(ShownItem(f"c{k}", f"<|sid_begin|><s_a_{k}><|sid_end|>"), Evidence(1.0, same_brand_items=items))
            for k, items in enumerate(brand_items)
        ),
    )


def answer(card: Scorecard, task: RerankTask, temperature: float = 0.0, seed: int = 0) -> ParsedCompletion:
    teacher: Teacher = ScorecardTeacher(card)
    completion = asyncio.run(teacher.complete(TeacherRequest("t", (), task, {}, 0, temperature, 100, seed)))
    parsed = parse_completion(completion.text, task)
    assert isinstance(parsed, ParsedCompletion)
    verdicts = judge(
        Answer(task, "", "stop", parsed), ["parsed", "not_truncated", "known_sids", "permutation", "no_leak"]
    )
    assert all(verdict.passed for verdict in verdicts)
    return parsed


def test_points_and_order_say_the_same() -> None:
    parsed = answer(a_card(brand_items=1.0), a_task(1, 0, 2))
    assert parsed.reasoning == "1 p18 2 p15 3 p21"
    assert parsed.ranking == ("c2", "c0", "c1")


def test_noise_moves_the_order_and_never_the_points() -> None:
    card, task = a_card(brand_items=0.5), a_task(1, 0, 2, 3)
    parsed = [answer(card, task, temperature=1.0, seed=seed) for seed in range(100)]
    assert {each.reasoning for each in parsed} == {"1 p16 2 p15 3 p18 4 p20"}
    assert len({each.ranking for each in parsed}) > 5


@pytest.mark.slow
@pytest.mark.parametrize("others", [1, 9])
def test_at_temperature_one_first_places_are_taken_by_their_odds(others: int) -> None:
    """Against one other, noise of the wrong sign would give the same shares."""
    card, task, draws = a_card(brand_items=1.0), a_task(1, *[0] * others), 2_000
    firsts = Counter(answer(card, task, temperature=1.0, seed=seed).ranking[0] for seed in range(draws))
    assert firsts["c0"] / draws == pytest.approx(np.e / (np.e + others), abs=4 * (0.2 / draws) ** 0.5)


def test_ties_stay_in_the_given_order_and_points_in_their_range() -> None:
    assert answer(a_card(), a_task(3, 1, 2)).ranking == ("c0", "c1", "c2")
    assert explain_points(np.array([99.0, -99.0])) == "1 p39 2 p0"


def test_a_prompt_without_evidence_is_a_failed_request() -> None:
    task = RerankTask((), (Candidate(ShownItem("a", "<a>")),))
    request = TeacherRequest("t", (), task, {}, 0, 0.0, 100, 0)
    with pytest.raises(RequestFailedError, match="the prompt shows none"):
        asyncio.run(ScorecardTeacher(a_card()).complete(request))


def test_other_weights_are_another_model() -> None:
    one, other = (ScorecardTeacher(a_card(after=weight)).model for weight in (1.0, 2.0))
    assert one != other
    assert one == ScorecardTeacher(a_card(after=1.0)).model


@pytest.mark.slow
def test_the_fit_finds_the_weights_that_made_the_choices() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(len(KINDS), LEVELS))
    levels = rng.integers(LEVELS, size=(20_000, 5, len(KINDS)))
    scores = true[np.arange(len(KINDS)), levels].sum(-1)
    targets = (scores + rng.gumbel(size=scores.shape)).argmax(1)
    found = fit_weights([[EvidenceLevels(*row) for row in rows] for rows in levels.tolist()], targets.tolist())
    # Only differences within a kind matter to a choice.
    centred, expected = (weights - weights.mean(1, keepdims=True) for weights in (found, true))
    assert np.abs(centred - expected).max() < 0.2
    assert np.corrcoef(centred.ravel(), expected.ravel())[0, 1] > 0.99


def test_at_the_fit_the_gradient_of_an_independent_likelihood_is_zero_also_for_short_lists() -> None:
    rng = np.random.default_rng(1)
    levels = [
        [EvidenceLevels(*row) for row in rng.integers(LEVELS, size=(size, len(KINDS))).tolist()]
        for size in rng.integers(1, 6, size=200)
    ]
    targets = [int(rng.integers(len(each))) for each in levels]
    weights = fit_weights(levels, targets)

    def loss(weights: np.ndarray) -> float:
        total = 1.5 * (weights**2).sum()
        for each, target in zip(levels, targets, strict=True):
            scores = [sum(weights[kind, level] for kind, level in enumerate(row)) for row in each]
            total -= scores[target] - np.log(np.exp(scores).sum())
        return float(total)

    for _ in range(20):
        direction = rng.normal(size=weights.shape)
        slope = (loss(weights + 1e-4 * direction) - loss(weights - 1e-4 * direction)) / 2e-4
        assert abs(slope) < 0.02
    assert loss(weights) < loss(np.zeros_like(weights))


def test_a_scorecard_of_a_store_beats_the_pre_ranker_on_lists_it_never_saw(shop: Store) -> None:
    card = fit_scorecard(shop, "shop")
    assert fit_scorecard(shop, "shop").digest == card.digest
    done = evaluate(shop, "shop", [ScorecardRanker(card)], EvalSettings(shuffles=0))
    figures = {(row["ranker"], row["metric"]): row["value"] for row in done.metrics.iter_rows(named=True)}
    assert figures[ScorecardTeacher(card).model, "conditional_ndcg_at_5_gain"] > 0


def test_a_ranker_orders_as_the_teacher_at_temperature_zero() -> None:
    card, task = a_card(brand_items=1.0), a_task(1, 0, 2)
    ranker = ScorecardRanker(card)
    assert list(ranker.rank([task])) == [Ranked(["c2", "c0", "c1"])]
    assert ranker.settings == {"digest": card.digest, "lists": 1}


def test_a_store_without_lists_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run gr2"):
        fit_scorecard(Store.open(tmp_path / "s", create=True), "shop")
