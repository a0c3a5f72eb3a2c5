import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from app.cli import cli
from curate.datasets.sources import choose_sources
from curate.evaluation.evaluate import evaluate
from curate.evaluation.settings import EvalSettings
from curate.sids.assignment import assign_semantic_ids
from curate.sids.quantizers import ResidualKMeans
from curate.traces.target_lists import load_target_lists
from prompts.completion import render_completion
from prompts.tasks import RerankTask
from store import InputError, Store
from train.ranking.modes import student_rankers
from train.ranking.rerankers import Completion, FirstTokenRanker, GeneratingRanker, open_student
from train.sft.training import SftSettings, train_sft

TEMPLATE = "rerank_numbers.v1"


def tasks_of(store: Store) -> list[RerankTask]:
    with store.reading() as session:
        sources = choose_sources(session, "shop", None, None)
    return [listed.task for listed in load_target_lists(store, "shop", *sources, "test", limit=30).listed]


def teach(inputs: Store) -> None:
    train_sft(inputs, "traces", "new", "taught", SftSettings(max_steps=2, batch_size=4))


@pytest.fixture
def taught(prepare: Callable[..., Store], built_inputs: Path) -> Store:
    """A store of one's own with a student that was trained for two steps."""
    return prepare(built_inputs, teach)


def test_the_first_token_orders_candidates_by_the_logits_of_their_numbers(taught: Store) -> None:
    student = open_student(taught, "taught")
    tasks = tasks_of(taught)[:5]
    for task, ranked in zip(tasks, FirstTokenRanker(student).rank(tasks), strict=True):
        text = student.prompt(task) + '{"explanation":"","recommendations":['
        ids = torch.tensor([student.tokenizer.encode(text, add_special_tokens=False)])
        with torch.no_grad():
            logits = student.model(ids).logits[0, -1]
        numbers = [student.tokenizer.convert_tokens_to_ids(str(number)) for number in range(1, 11)]
        expected = sorted(range(10), key=lambda index: -float(logits[numbers[index]]))
        assert list(ranked.item_ids) == [task.candidates[index].item.item_id for index in expected]


def test_batches_do_not_change_what_a_student_writes(taught: Store) -> None:
    ranker = GeneratingRanker(open_student(taught, "taught"), max_tokens=12)
    tasks = tasks_of(taught)[:6]
    assert ranker.complete(tasks) == [ranker.complete([task])[0] for task in tasks]


@pytest.mark.parametrize("mode", ["reasoning", "direct"])
def test_constrained_to_permutations_every_answer_is_valid(mode: str, inputs: Store) -> None:
    tasks = tasks_of(inputs)
    (free,) = student_rankers(inputs, "new", [mode], template="rerank_numbers.v1", max_tokens=60)
    (constrained,) = student_rankers(
        inputs, "new", [mode], template="rerank_numbers.v1", max_tokens=60, decode="permutation"
    )
    assert not any(ranked.valid for ranked in free.rank(tasks))
    rankings = constrained.rank(tasks)
    assert all(ranked.valid for ranked in rankings)
    assert all(len(set(ranked.item_ids)) == 10 for ranked in rankings)
    assert constrained.name == f"{free.name} by permutation"
    assert constrained.settings["decode"] == "permutation"


def test_orders_are_read_and_what_cannot_be_read_is_not_valid(taught: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [render_completion("because", [3, 1, 2, *range(4, 11)]), "no order", render_completion("", [1, 1, 1])]

    def complete(_: Any, tasks: Sequence[RerankTask]) -> list[Completion]:
        return [Completion(answer, 7, 3) for answer in answers]

    monkeypatch.setattr(GeneratingRanker, "complete", complete)
    tasks = tasks_of(taught)[:3]
    first, second, third = GeneratingRanker(open_student(taught, "taught")).rank(tasks)
    assert first.valid
    assert [task.item.item_id for task in tasks[0].candidates].index(first.item_ids[0]) == 2
    assert not second.valid
    assert len(set(third.item_ids)) < 10
    assert {(ranked.prompt_tokens, ranked.completion_tokens) for ranked in (first, second, third)} == {(7, 3)}


def test_the_tokens_of_a_list_are_those_of_its_prompt_and_its_answer_without_padding(taught: Store) -> None:
    student = open_student(taught, "taught")
    tasks = tasks_of(taught)
    prompts = [len(ids) for ids in student.prompts(tasks)]
    assert len(set(prompts)) > 1
    # An answer that is cut off has as many tokens as are allowed, in a batch and alone.
    cut = list(GeneratingRanker(student, max_tokens=6).rank(tasks))
    assert [(ranked.prompt_tokens, ranked.completion_tokens) for ranked in cut] == [(read, 6) for read in prompts]
    # The first token: the beginning of the answer is read too, and nothing is written.
    for read, ranked, task in zip(prompts, FirstTokenRanker(student).rank(tasks), tasks, strict=True):
        beginning = student.tokenizer.encode('{"explanation":"","recommendations":[', add_special_tokens=False)
        assert (ranked.prompt_tokens, ranked.completion_tokens) == (read + len(beginning), 0), task


def test_padding_behind_an_answer_that_has_ended_is_not_counted(taught: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    student = open_student(taught, "taught")
    end, pad = student.chat.end_id, student.tokenizer.pad_token_id
    written_B_T = torch.tensor([[end, pad, pad, pad], [9, 9, end, pad], [9, 9, 9, 9]])

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids, written_B_T], dim=1)

    monkeypatch.setattr(student.model, "generate", generate)
    tasks = sorted(tasks_of(taught)[:3], key=lambda task: len(student.prompts([task])[0]))
    assert [answer.completion_tokens for answer in GeneratingRanker(student).complete(tasks)] == [1, 3, 4]


def test_an_evaluation_takes_students_beside_other_rankers(taught: Store) -> None:
    rankers = student_rankers(taught, "taught", ["first-token", "direct"], max_tokens=16)
    done = evaluate(taught, "shop", rankers, EvalSettings(limit=20, shuffles=2))
    valid = dict(done.metrics.filter(metric="valid_share").select("ranker", "value").rows())
    assert valid["taught first token"] == 1.0
    assert set(valid) == {"cooccurrence.v1", "taught first token", "taught without reasoning"}


def test_a_student_is_asked_about_the_semantic_ids_that_it_learned(taught: Store) -> None:
    with taught.reading() as session:
        learned, _ = choose_sources(session, "shop", None, None)
    assign_semantic_ids(taught, "shop", ResidualKMeans(seed=1))
    words = ["eval", "shop", "--student", "taught", "--modes", "first-token", "--rankers", "evidence"]
    done = CliRunner().invoke(cli, [*words, "--limit", "5", "--shuffles", "0", "--store", str(taught.folder)])
    assert done.exit_code == 0, done.output
    with taught.reading() as session:
        ((settings,),) = session.connection.execute(
            "select settings from runs where kind = 'evaluate' order by started_at desc limit 1"
        ).fetchall()
    assert json.loads(settings)["sid_version"] == learned


def test_what_cannot_rank_is_a_clear_error(taught: Store) -> None:
    with pytest.raises(InputError, match="`modes` is 'magic'; it must be reasoning, direct, first-token"):
        student_rankers(taught, "taught", ["magic"])
    with pytest.raises(InputError, match="was trained on 0 templates; name one with `template`"):
        open_student(taught, "new")
    with pytest.raises(InputError, match="answers with semantic IDs"):
        FirstTokenRanker(open_student(taught, "new", "rerank_compact.v1"))
