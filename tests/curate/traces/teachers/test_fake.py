import asyncio

import pytest

from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import Completion, RequestFailedError, Teacher, TeacherRequest
from prompts.tasks import RerankTask


def a_request(sample_index: int = 0) -> TeacherRequest:
    return TeacherRequest("t", (), RerankTask((), ()), {}, sample_index, 1.0, 64, seed=1)


def test_a_string_stands_for_a_completion_that_stopped() -> None:
    teacher: Teacher = FakeTeacher(lambda request: f"sample {request.sample_index}")
    assert asyncio.run(teacher.complete(a_request(3))) == Completion("sample 3", "stop")


def test_a_completion_is_given_as_it_is() -> None:
    cut = Completion("half", "length", 10, 20, 0.1)
    assert asyncio.run(FakeTeacher(lambda _: cut).complete(a_request())) is cut


def test_an_exception_is_raised_and_the_request_still_kept() -> None:
    teacher = FakeTeacher(lambda _: RequestFailedError("time-out"))
    with pytest.raises(RequestFailedError, match="time-out"):
        asyncio.run(teacher.complete(a_request()))
    assert teacher.requests == [a_request()]


def test_it_tells_its_name_and_whether_it_was_closed() -> None:
    teacher = FakeTeacher(lambda _: "", name="openai", model="m")
    assert (teacher.name, teacher.model, teacher.closed) == ("openai", "m", False)
    asyncio.run(teacher.close())
    assert teacher.closed
