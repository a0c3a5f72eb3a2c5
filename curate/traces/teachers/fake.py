"""A teacher for tests, in the manner of httpx's MockTransport: a function answers, without a network or a model."""

from collections.abc import Callable

from curate.traces.teachers.protocol import Completion, TeacherRequest


class FakeTeacher:
    """Answers each request with the result of `handler`, and keeps the requests in the order in which they came.

    If the handler returns a string, the answer is a completion that stopped by itself. If it returns an exception, the
    exception is raised: `FakeTeacher(lambda request: RequestFailedError("gave up"))`.
    """

    def __init__(
        self,
        handler: Callable[[TeacherRequest], Completion | str | Exception],
        name: str = "fake",
        model: str = "fake",
    ) -> None:
        self.handler = handler
        self.name = name
        self.model = model
        self.requests: list[TeacherRequest] = []
        self.closed = False

    async def complete(self, request: TeacherRequest) -> Completion:
        """Return the handler's answer. Raises any exception that the handler returns or raises."""
        self.requests.append(request)
        answer = self.handler(request)
        if isinstance(answer, Exception):
            raise answer
        return Completion(answer, "stop") if isinstance(answer, str) else answer

    async def close(self) -> None:
        """Remember that the teacher was closed."""
        self.closed = True
