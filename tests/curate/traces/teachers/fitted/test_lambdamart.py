import asyncio
import re
from pathlib import Path

import numpy as np
import pytest

from curate.datasets.sources import choose_sources
from curate.traces.rules import Answer, judge
from curate.traces.sampling import sample
from curate.traces.settings import SamplingSettings
from curate.traces.target_lists import load_target_lists
from curate.traces.tasks import ListedTask
from curate.traces.teachers.fitted.candidate_features import feature_names
from curate.traces.teachers.fitted.lambdamart import (
    POINTS,
    WORDS,
    LambdaMartTeacher,
    explain_contributions,
    make_lambdamart_teacher,
)
from curate.traces.teachers.protocol import RequestFailedError, TeacherRequest
from prompts.completion import ParsedCompletion, parse_completion
from prompts.tasks import Candidate, RerankTask, ShownItem
from store import InputError, Store

from .conftest import fit


@pytest.fixture(scope="module")
def lists(built_shop: Path) -> list[ListedTask]:
    store = Store(built_shop)
    with store.reading() as session:
        sources = choose_sources(session, "shop", None, None)
    return load_target_lists(store, "shop", *sources, "train", limit=40).listed


@pytest.fixture(scope="module")
def teachers(built_shop: Path) -> dict[str, LambdaMartTeacher]:
    store = Store(built_shop)
    models = fit(store)
    with store.reading() as session:
        folds = dict(
            session.connection.execute("select list_id, fold from candidate_lists where fold is not null").fetchall()
        )
    return {explains: LambdaMartTeacher(models, folds, explains) for explains in (WORDS, POINTS)}


def answer(teacher: LambdaMartTeacher, listed: ListedTask, temperature: float = 0.0, seed: int = 0) -> ParsedCompletion:
    request = TeacherRequest("t", (), listed.task, {}, 0, temperature, 100, seed, listed.list_id)
    completion = asyncio.run(teacher.complete(request))
    parsed = parse_completion(completion.text, listed.task)
    assert isinstance(parsed, ParsedCompletion)
    return parsed


def test_words_and_points_give_the_same_valid_order(
    lists: list[ListedTask], teachers: dict[str, LambdaMartTeacher]
) -> None:
    for listed in lists:
        words, points = (answer(teachers[explains], listed) for explains in (WORDS, POINTS))
        assert words.ranking == points.ranking
        assert sorted(words.ranking) == sorted(candidate.item.item_id for candidate in listed.task.candidates)


def test_points_follow_the_order(lists: list[ListedTask], teachers: dict[str, LambdaMartTeacher]) -> None:
    for listed in lists:
        parsed = answer(teachers[POINTS], listed)
        points = dict(re.findall(r"(\d+) p(\d+)", parsed.reasoning))
        assert len(points) == len(listed.task.candidates)
        places = {candidate.item.item_id: str(n) for n, candidate in enumerate(listed.task.candidates, 1)}
        told = [int(points[places[item_id]]) for item_id in parsed.ranking]
        assert told == sorted(told, reverse=True)


def test_training_lists_are_rated_by_the_model_that_has_not_seen_their_users(
    lists: list[ListedTask], teachers: dict[str, LambdaMartTeacher]
) -> None:
    teacher = teachers[POINTS]
    for listed in lists[:10]:
        fold = teacher.folds[listed.list_id]
        scores_K = teacher.models.scores([listed.task], fold)
        order = np.argsort(-scores_K, kind="stable")
        expected = tuple(listed.task.candidates[k].item.item_id for k in order)
        assert answer(teacher, listed).ranking == expected


def test_every_sentence_is_true(lists: list[ListedTask], teachers: dict[str, LambdaMartTeacher]) -> None:
    """By the rules that judge traces, and by what the evidence says of similarities."""
    kinds = set()
    for listed in lists:
        for seed in range(3):
            parsed = answer(teachers[WORDS], listed, temperature=2.0, seed=seed)
            rules = ["parsed", "known_sids", "permutation", "no_leak", "grounded"]
            verdicts = judge(Answer(listed.task, listed.target_item_id, "stop", parsed), rules)
            assert all(verdict.passed for verdict in verdicts), (parsed.reasoning, verdicts)
            by_id = {candidate.item.item_id: candidate for candidate in listed.task.candidates}
            first = by_id[parsed.ranking[0]]
            for kind, words in (("text", "description"), ("copurchase", "company")):
                if words in parsed.reasoning:
                    kinds.add(kind)
                    assert listed.task.history[-1].sid in parsed.reasoning
                    lasts = {sid: getattr(c.evidence, kind).last for sid, c in by_id.items()}
                    assert lasts[first.item.item_id] == max(lasts.values())
            kinds |= {kind for kind in ("bought after", "is in", "place") if kind in parsed.reasoning}
    assert len(kinds) >= 4


def test_what_weighs_most_is_told_first(lists: list[ListedTask]) -> None:
    task = lists[0].task
    first = task.candidates[0]
    columns = feature_names()
    contributions = np.zeros(len(columns))
    contributions[columns.index("position")] = 1.0
    assert explain_contributions(task, first, contributions) == (
        f"Most of all: the given order has {first.item.sid} at place 1 of {len(task.candidates)}."
    )
    assert explain_contributions(task, first, -contributions).startswith(f"Little speaks for {first.item.sid}")


def test_a_target_that_the_task_names_comes_first(
    lists: list[ListedTask], teachers: dict[str, LambdaMartTeacher]
) -> None:
    for listed in lists[:10]:
        target = next(c.item for c in listed.task.candidates if c.item.item_id == listed.target_item_id)
        task = RerankTask(listed.task.history, listed.task.candidates, target)
        named = ListedTask(listed.list_id, task, listed.target_item_id)
        free, told = answer(teachers[POINTS], listed), answer(teachers[POINTS], named)
        assert told.ranking[0] == listed.target_item_id
        assert [item for item in free.ranking if item != listed.target_item_id] == list(told.ranking[1:])
        assert told.reasoning == free.reasoning


def test_noise_moves_the_order_and_never_the_points(
    lists: list[ListedTask], teachers: dict[str, LambdaMartTeacher]
) -> None:
    answers = [answer(teachers[POINTS], lists[0], temperature=1.0, seed=seed) for seed in range(20)]
    assert len({parsed.reasoning for parsed in answers}) == 1
    assert len({parsed.ranking for parsed in answers}) > 5


def test_first_places_follow_the_softmax_of_the_scores(
    lists: list[ListedTask], teachers: dict[str, LambdaMartTeacher]
) -> None:
    teacher, draws = teachers[POINTS], 500
    listed = lists[0]
    scores_K = teacher.models.scores([listed.task], teacher.folds[listed.list_id])
    best, temperature = int(scores_K.argmax()), float(scores_K.std()) / 1.2
    odds_K = np.exp(scores_K / temperature)
    firsts = [answer(teacher, listed, temperature, seed).ranking[0] for seed in range(draws)]
    share = firsts.count(listed.task.candidates[best].item.item_id) / draws
    assert share == pytest.approx(odds_K[best] / odds_K.sum(), abs=4 * (0.2 / draws) ** 0.5)


def test_a_prompt_without_evidence_is_a_failed_request(teachers: dict[str, LambdaMartTeacher]) -> None:
    task = RerankTask((), (Candidate(ShownItem("a", "<a>")),))
    with pytest.raises(RequestFailedError, match="the prompt shows none"):
        asyncio.run(teachers[WORDS].complete(TeacherRequest("t", (), task, {}, 0, 0.0, 100, 0)))


def test_another_model_is_a_clear_error(shop: Store) -> None:
    with pytest.raises(InputError, match=r"`model` is 'x'; for teacher lambdamart it must be words\.v1 or points\.v1"):
        make_lambdamart_teacher(shop, "shop", model="x")


def test_its_traces_beat_the_pre_ranker(shop: Store) -> None:
    """On lists that it has not learned from, as any trace of a training list is."""
    fit(shop)  # skips the test where LightGBM is missing
    teacher = make_lambdamart_teacher(shop, "shop", model=POINTS)
    assert teacher.model == f"{POINTS}-{teacher.models.digest}"
    sample(shop, teacher, SamplingSettings("shop", temperature=0.0, max_attempts=1, ruleset="answered"))
    with shop.reading() as session:
        ranks = session.connection.execute(
            "select list_position(traces.ranking, traces.target_item_id), candidate_lists.target_rank from traces "
            "join candidate_lists using (list_id) where candidate_lists.target_rank is not null"
        ).fetchall()
    gains = [gain(ours) - gain(given) for ours, given in ranks]
    assert np.mean(gains) > 2 * np.std(gains) / len(gains) ** 0.5


def gain(rank: int) -> float:
    """NDCG@5 of one target."""
    return 1 / np.log2(rank + 1) if rank <= 5 else 0.0
