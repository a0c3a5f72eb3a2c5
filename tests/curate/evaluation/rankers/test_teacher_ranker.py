import json
from collections.abc import Callable

import pytest

from curate.evaluation.rankers.protocol import Ranked
from curate.evaluation.rankers.teacher_ranker import TeacherRanker
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import Completion, RequestFailedError, TeacherRequest
from prompts.tasks import RerankTask
from prompts.templates import load_template
from store import InputError, TeacherError

TEMPLATE = load_template("rerank_evidence.v1")


def ranks(task: RerankTask, handler: Callable[[TeacherRequest], Completion | str | Exception]) -> list[Ranked]:
    return list(TeacherRanker(FakeTeacher(handler), TEMPLATE).rank([task]))


def test_it_asks_once_a_list_at_temperature_0_and_closes_the_teacher(task: RerankTask) -> None:
    teacher = FakeTeacher(lambda _: '{"explanation": "", "recommendations": [3, 1, 2]}')
    ranker = TeacherRanker(teacher, TEMPLATE, concurrency=2)
    assert list(ranker.rank([task] * 5)) == [Ranked(("e", "c", "d"))] * 5
    assert len(teacher.requests) == 5
    assert {request.temperature for request in teacher.requests} == {0}
    assert {request.task.target for request in teacher.requests} == {None}
    assert teacher.closed
    assert ranker.name == "fake@rerank_evidence.v1"
    assert ranker.settings["template_sha256"] == TEMPLATE.sha256


def test_answers_are_read_by_what_was_shown(task: RerankTask) -> None:
    assert ranks(task, lambda request: json.dumps({"recommendations": [c.item.sid for c in request.task.candidates]}))[
        0
    ] == Ranked(("c", "d", "e"))


def test_the_tokens_that_the_server_counted_are_kept(task: RerankTask) -> None:
    answer = '{"recommendations": [3, 1, 2]}'
    (ranked,) = ranks(task, lambda _: Completion(answer, "stop", prompt_tokens=70, completion_tokens=9))
    assert (ranked.prompt_tokens, ranked.completion_tokens) == (70, 9)
    (ranked,) = ranks(task, lambda _: Completion("no order", "stop", prompt_tokens=70, completion_tokens=2))
    assert (ranked.valid, ranked.prompt_tokens, ranked.completion_tokens) == (False, 70, 2)


@pytest.mark.parametrize("answer", ["I would rather not", '{"recommendations": ["<c>", "<d>", "<e>", "<x>"]}'])
def test_an_answer_that_is_no_order_is_not_valid(task: RerankTask, answer: str) -> None:
    assert not ranks(task, lambda _: answer)[0].valid


def test_a_failed_request_keeps_its_error(task: RerankTask) -> None:
    answers: list[str | Exception] = ["no", RequestFailedError("HTTP 500: out of memory")]
    ranker = TeacherRanker(FakeTeacher(lambda request: answers.pop(0)), TEMPLATE, concurrency=1)
    failed = Ranked((), valid=False, error="HTTP 500: out of memory")
    assert list(ranker.rank([task] * 2)) == [Ranked((), valid=False), failed]


@pytest.mark.parametrize(("lists", "counted"), [(3, 3), (100, 20)])
def test_a_teacher_that_answers_nothing_ends_it(task: RerankTask, lists: int, counted: int) -> None:
    sent = 0

    def fail(_: TeacherRequest) -> Exception:
        nonlocal sent
        sent += 1
        return RequestFailedError("HTTP 502" if sent % 3 else f"HTTP 500: request {sent}")

    teacher = FakeTeacher(fail)
    with pytest.raises(
        TeacherError, match=rf"none of the first {counted} requests; .* \({counted - counted // 3} times"
    ):
        list(TeacherRanker(teacher, TEMPLATE).rank([task] * lists))
    assert teacher.closed


def test_a_teacher_that_answered_once_may_fail_for_all_others(task: RerankTask) -> None:
    answers: list[str | Exception] = [RequestFailedError("HTTP 500")] * 50
    answers[15] = "no"
    ranker = TeacherRanker(FakeTeacher(lambda _: answers.pop(0)), TEMPLATE, concurrency=1)
    assert sum(ranked.error is not None for ranked in ranker.rank([task] * 50)) == 49


def test_a_teacher_that_cannot_work_ends_it_and_is_closed(task: RerankTask) -> None:
    teacher = FakeTeacher(lambda _: TeacherError("wrong key"))
    with pytest.raises(TeacherError, match="wrong key"):
        list(TeacherRanker(teacher, TEMPLATE).rank([task] * 100))
    assert teacher.closed


def test_the_evidence_teacher_ranks_as_the_evidence_ranker_does(task: RerankTask) -> None:
    assert list(TeacherRanker(EvidenceTeacher(), TEMPLATE).rank([task])) == [Ranked(("e", "c", "d"))]


def test_a_template_that_shows_the_target_is_refused() -> None:
    with pytest.raises(InputError, match="shows the target"):
        TeacherRanker(EvidenceTeacher(), load_template("rerank_targeted.v1"))
    with pytest.raises(InputError, match="`concurrency` is 0"):
        TeacherRanker(EvidenceTeacher(), TEMPLATE, concurrency=0)
