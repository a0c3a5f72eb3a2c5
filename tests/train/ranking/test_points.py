from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from curate.datasets.sources import choose_sources
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.sampling import sample
from curate.traces.settings import SamplingSettings
from curate.traces.target_lists import load_target_lists
from curate.traces.teachers.fitted.scorecard import make_scorecard_teacher
from prompts.completion import render_completion
from prompts.tasks import RerankTask
from store import InputError, Store
from train.ranking.modes import student_rankers
from train.ranking.points import AnswerForm, PointsRanker, Scores, answer_form
from train.ranking.rerankers import Student, open_student
from train.sft.settings import SftSettings
from train.sft.training import train_sft
from train.students.initialization import init_from_snapshot

TEMPLATE = "rerank_levels.v1"


def teach_points(inputs: Store) -> None:
    settings = SamplingSettings(
        "shop", template=TEMPLATE, temperature=0.0, max_attempts=1, ruleset="answered", limit=200
    )
    sample(inputs, make_scorecard_teacher(inputs, "shop"), settings)
    publish(inputs, "rated", SnapshotSettings("shop", ruleset="answered", template=TEMPLATE, splits=("train",)))
    init_from_snapshot(inputs, "rated", "unrated", "tiny")
    train_sft(inputs, "rated", "unrated", "rater", SftSettings(max_steps=3, batch_size=8, reasoning_weight=1.0))


@pytest.fixture
def rater(prepare: Callable[..., Store], built_inputs: Path) -> Store:
    """A store of one's own with a student that has seen points for three steps."""
    return prepare(built_inputs, teach_points)


def tasks_of(store: Store, limit: int = 12) -> list[RerankTask]:
    with store.reading() as session:
        sources = choose_sources(session, "shop", None, None)
    return [listed.task for listed in load_target_lists(store, "shop", *sources, "test", limit=limit).listed]


@pytest.mark.slow
def test_the_form_of_an_answer_leaves_the_points_open(rater: Store) -> None:
    student = open_student(rater, "rater")
    form = answer_form(student, 3)
    ids = list(form.ids_T)
    for place, value in zip(form.places_K, (7, 21, 13), strict=True):
        ids[place] = form.tokens_V[form.values_V.tolist().index(value)]
    assert form.numbers_K is not None
    text = student.tokenizer.decode([*ids, form.numbers_K[1]])
    assert render_completion("1 p7 2 p21 3 p13", [2, 1, 3]).startswith(text)


def test_scores_are_those_of_a_plain_forward_pass(rater: Store) -> None:
    student = open_student(rater, "rater")
    form = answer_form(student, 10)
    (task, *_) = tasks_of(rater)
    ((points_K, firsts_K, read, written),) = PointsRanker(student, "both").scores([task])
    (ids,) = student.prompts([task])
    assert (read, written) == (len(ids) + form.places_K[0], len(form.ids_T) + 1 - form.places_K[0])
    written = list(form.ids_T)
    for number, place in enumerate(form.places_K):
        with torch.no_grad():
            logits_V = student.model(torch.tensor([[*ids, *written[:place]]])).logits[0, -1]
        chances = logits_V[form.tokens_V].double().softmax(-1)
        assert float(points_K[number]) == pytest.approx(float(chances @ form.values_V), abs=1e-3)
        written[place] = form.tokens_V[int(logits_V[form.tokens_V].argmax())]
    with torch.no_grad():
        logits_V = student.model(torch.tensor([[*ids, *written]])).logits[0, -1]
    assert firsts_K.tolist() == pytest.approx(logits_V.double().log_softmax(-1)[form.numbers_K].tolist(), abs=1e-4)


def test_batches_do_not_change_the_scores(rater: Store) -> None:
    student, tasks = open_student(rater, "rater", batch_size=5), tasks_of(rater)
    shorter = RerankTask(tasks[0].history, tasks[0].candidates[:4])
    ranker = PointsRanker(student, "both")
    together = ranker.scores([*tasks, shorter])
    for task, scores in zip([*tasks, shorter], together, strict=True):
        (alone,) = ranker.scores([task])
        assert scores.points_K.tolist() == pytest.approx(alone.points_K.tolist(), abs=1e-3)
        assert scores.firsts_K.tolist() == pytest.approx(alone.firsts_K.tolist(), abs=1e-3)


def test_what_is_read_decides_the_order(rater: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    student, task = open_student(rater, "rater"), tasks_of(rater)[0]
    three = RerankTask(task.history, task.candidates[:3])
    scores = Scores(torch.tensor([10.0, 30.0, 20.0]), torch.tensor([-1.0, -9.0, -1.0]), 70, 30)
    monkeypatch.setattr(PointsRanker, "scores", lambda *_: [scores])
    orders = {}
    for reads in ("points", "first", "both"):
        (ranked,) = PointsRanker(student, reads).rank([three])
        assert (ranked.prompt_tokens, ranked.completion_tokens) == (70, 30)
        orders[reads] = [[c.item.item_id for c in three.candidates].index(item) for item in ranked.item_ids]
    assert orders == {"points": [1, 2, 0], "first": [0, 2, 1], "both": [2, 1, 0]}


def test_every_ranking_is_valid_and_has_a_name_of_its_own(rater: Store) -> None:
    tasks = tasks_of(rater)
    rankers = student_rankers(rater, "rater", ["points", "first-after-points", "points-and-first"], batch_size=4)
    assert len({ranker.name for ranker in rankers}) == 3
    for ranker in rankers:
        for task, ranked in zip(tasks, ranker.rank(tasks), strict=True):
            assert ranked.valid
            assert sorted(ranked.item_ids) == sorted(candidate.item.item_id for candidate in task.candidates)


class Digits:
    """A chat format whose tokens are single characters, as numbers are to many pretrained tokenizers."""

    def encode_answers(self, answers: list[str]) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(map(ord, answer)) for answer in answers]}


def test_a_student_to_whom_points_are_several_tokens_is_refused(rater: Store) -> None:
    student = replace(open_student(rater, "rater"), chat=Digits())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rater does not write points as one token each"):
        answer_form(student, 3)
    with pytest.raises(InputError, match="answers with semantic IDs"):
        PointsRanker(open_student(rater, "new", "rerank_compact.v1"))


def test_the_form_of_answers_is_made_once_for_all_lists_of_a_size(
    rater: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def counting(student: Student, candidates: int) -> AnswerForm:
        sizes.append(candidates)
        return answer_form(student, candidates)

    monkeypatch.setattr("train.ranking.points.answer_form", counting)
    PointsRanker(open_student(rater, "rater")).scores(tasks_of(rater))
    assert sizes == [10]
