"""A teacher for tests: a function answers, in the manner of httpx's MockTransport. It knows no network and no model."""

from collections.abc import Callable

from curate.traces.teachers.protocol import Completion, TeacherRequest


class FakeTeacher:
    """Answers each request with what `handler` returns, and keeps the requests in the order they came.

    A string stands for a completion that stopped by itself; an exception is raised:
    `FakeTeacher(lambda request: RequestFailedError("gave up"))`.
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
        """The handler's answer. Raises what the handler returns, or raises itself."""
        self.requests.append(request)
        answer = self.handler(request)
        if isinstance(answer, Exception):
            raise answer
        return Completion(answer, "stop") if isinstance(answer, str) else answer

    async def close(self) -> None:
        """Remember that it was closed."""
        self.closed = True
