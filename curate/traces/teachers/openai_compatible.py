"""A teacher behind any OpenAI-compatible endpoint: a vendor's API, or the URL of a `vllm serve`.

This module owns the retries, the pause that all workers share, and the search for the dialect that the server
understands. It knows nothing of the contents of prompts or of the use of completions. A rate limit concerns all
workers: if each backed off alone, the rest would go on sending requests.

Source: the chat completions API of OpenAI (status codes, `response_format`, `max_completion_tokens`) and vLLM's
departures from it (`reasoning_content`, `reasoning`).
"""

import asyncio
import random
import time
from collections.abc import Mapping
from functools import wraps
from typing import Any, cast

from curate.endpoints.client import EndpointClient, TransportError
from curate.endpoints.failures import ServerFailure, read_failure
from curate.traces.teachers.chat_answers import NoAnswerError, read_completion
from curate.traces.teachers.dialects import Dialect, may_concern_dialect, simpler_dialect
from curate.traces.teachers.protocol import Completion, FailureKind, RequestFailedError, TeacherRequest
from curate.traces.teachers.settings import OpenAISettings
from store.errors import TeacherError

# The maximum number of tries that may be billed without giving an answer.
MAX_COSTLY_TRIES = 2


class _TransientError(Exception):
    """This try failed, but the next may succeed.

    wait_s: the wait that the server asked for, or None. throttled: whether the server limits the rate of requests.
    costly: whether the server has probably worked on the request.
    """

    def __init__(
        self, reason: str, *, wait_s: float | None = None, throttled: bool = False, costly: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.throttled = throttled
        self.costly = costly


class _RejectionError(Exception):
    """The server rejected a request, perhaps only because of its dialect."""

    def __init__(self, failure: ServerFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class _DialectError(Exception):
    """The dialect has been replaced since the request went out; send it again."""


class OpenAITeacher:
    """A teacher that sends its requests to an OpenAI-compatible endpoint, any number of them at a time.

    Raises TeacherError if a key is needed but not set, or if the base URL is not a valid address.
    """

    name = "openai"

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self.model = settings.model
        self._client = EndpointClient(settings, max_connections=settings.max_connections)
        self._url, self._key_hint = self._client.endpoint.shown, self._client.endpoint.key_hint
        structured = settings.structured_output
        response_format = cast("Any", "json_schema" if structured == "auto" else structured)
        self._dialect = Dialect(response_format, seeded=settings.seed)
        # The dialect of the last answer, or None before the first.
        self._understood: Dialect | None = None
        # Only one request at a time looks for a dialect. Rejections that no dialect could avoid are not explored again.
        self._exploring = asyncio.Lock()
        self._explored: set[str] = set()
        self._reached = False
        self._answers = 0
        # No worker sends a request before this time of time.monotonic().
        self._resume_at = 0.0

    @property
    def run_settings(self) -> Mapping[str, Any]:
        """The facts that a run records: the host, never credentials, and the settings that shape the answers."""
        return {
            "endpoint": self._client.endpoint.host,
            "structured_output": self._settings.structured_output,
            "top_p": self._settings.top_p,
            "seeded": self._settings.seed,
        }

    async def complete(self, request: TeacherRequest) -> Completion:
        """Draw one completion, with retries.

        A refusal has an empty text and the finish_reason "refusal". If the server returns the reasoning in a separate
        field, it is put in front of the text as `<think>...</think>`.

        Raises RequestFailedError after the last retry or if the server rejects this request, and TeacherError if it
        would reject all requests.
        """
        failures = costly = 0
        while True:
            await self._wait_for_all()
            # The count of answers is taken when the request goes out, because other workers may change it in the
            # meantime.
            answers = self._answers
            try:
                return await self._ask(request)
            except _DialectError:
                continue
            except _RejectionError as rejection:
                raise self._request_failed(rejection.failure) from None
            except _TransientError as error:
                # Under a rate limit some request is always rejected. A rejection counts as a failure only if no worker
                # got answers.
                failures += not (error.throttled and self._answers > answers)
                costly += error.costly
                if failures > self._settings.max_retries or costly >= MAX_COSTLY_TRIES:
                    tries = f"{failures} tries" if failures > 1 else "one try"
                    raise RequestFailedError(f"gave up after {tries}: {error}") from None
                # If a server asks for a wait of 0, the usual backoff is used.
                wait_s = error.wait_s or self._backoff_s(failures)
                if error.throttled:
                    # A rate limit stops all workers, any other failure only this one.
                    self._resume_at = max(self._resume_at, time.monotonic() + wait_s)
                else:
                    await asyncio.sleep(wait_s)

    async def close(self) -> None:
        """Close all connections. The teacher cannot be used afterwards."""
        await self._client.close()

    async def _wait_for_all(self) -> None:
        """Wait until the shared pause is over. The jitter keeps the workers from all returning at the same moment."""
        # This is a loop, because another worker may have been told to wait longer in the meantime.
        while (left_s := self._resume_at - time.monotonic()) > 0:
            await asyncio.sleep(left_s + random.uniform(0, self._settings.backoff_s))

    def _backoff_s(self, failures: int) -> float:
        # A throttled try may come here before any failure is counted, hence max().
        doubled_s = self._settings.backoff_s * 2.0 ** max(failures - 1, 0)
        return min(doubled_s, self._settings.max_wait_s) * random.uniform(0.5, 1)

    async def _ask(self, request: TeacherRequest) -> Completion:
        """Send a request in the current dialect.

        If the server has understood no dialect so far, look for another one.
        """
        dialect = self._dialect
        try:
            return await self._send(request, dialect)
        except _RejectionError as rejection:
            # If the server has understood this dialect before, it complains about this request alone.
            if dialect == self._understood or not may_concern_dialect(rejection.failure):
                raise
            failure = rejection.failure
        async with self._exploring:
            # While this request waited, another one may have found a dialect, or found that no dialect helps.
            if dialect not in (self._dialect, self._understood):
                raise _DialectError
            if dialect != self._understood and failure.signature not in self._explored:
                return await self._explore(request, dialect, failure)
        raise _RejectionError(failure)

    async def _explore(self, request: TeacherRequest, dialect: Dialect, failure: ServerFailure) -> Completion:
        """Try simpler and simpler dialects. All later requests use the first one that the server understands.

        If it understands none, the dialect stays as it is, because the server complains about something else.
        """
        # An explicit setting is a requirement. A silent fallback would mix traces of two kinds.
        keep_format = self._settings.structured_output != "auto"
        complaint, simpler = failure, dialect
        while may_concern_dialect(complaint):
            if keep_format and complaint.about_format:
                structured_output = self._settings.structured_output
                raise TeacherError(
                    f"{self._url} refuses structured output as {structured_output} ({complaint}); set "
                    "`structured_output` to auto"
                )
            following = simpler_dialect(simpler, complaint, keep_format=keep_format)
            if following is None:
                break
            simpler = following
            try:
                completion = await self._send(request, simpler)
            except _RejectionError as rejection:
                complaint = rejection.failure
            else:
                self._dialect = simpler
                return completion
        self._explored.add(failure.signature)
        raise _RejectionError(failure)

    async def _send(self, request: TeacherRequest, dialect: Dialect) -> Completion:
        try:
            response = await self._client.post("chat/completions", self._body(request, dialect))
        except TransportError as error:
            # Before the first answer this is probably a wrong URL. Later, the server may just be restarting.
            if error.unreachable and not self._reached:
                raise TeacherError(
                    f"cannot reach the teacher at {self._url}: {error}; check the base URL and that the server is "
                    "running"
                ) from None
            raise _TransientError(str(error), costly=error.costly) from None
        first, self._reached = not self._reached, True
        if (failure := read_failure(response, self._client.excerpt)) is not None:
            raise self._failed(failure)
        try:
            completion = read_completion(response.body, self._settings, self._client.mask)
        except NoAnswerError as error:
            excerpt = self._client.excerpt(response.body.decode(errors="replace"))
            # As a first answer, a web page means a wrong URL. Later it may come from a proxy in trouble.
            if first and response.body.lstrip().startswith(b"<"):
                raise TeacherError(
                    f"{self._url} answers with a web page ({excerpt}); check the base URL, which usually ends in /v1"
                ) from None
            raise _TransientError(f"not a chat completion, {error}: {excerpt}") from None
        self._answers += 1
        self._understood = dialect
        return completion

    def _body(self, request: TeacherRequest, dialect: Dialect) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "temperature": request.temperature,
            **dialect.parameters(request),
        }
        if self._settings.top_p is not None:
            body["top_p"] = self._settings.top_p
        return {**body, **(self._settings.extra_body or {})}

    def _failed(self, failure: ServerFailure) -> Exception:
        """Return the exception for an error of the server: it ends the run, this try, or perhaps only this request."""
        status = failure.status
        if (reason := self._ends_run(failure)) is not None:
            return TeacherError(reason)
        explorable = self._understood is None and may_concern_dialect(failure)
        if status < 400 or status in (408, 409, 425, 429) or (status >= 500 and not explorable):
            wait_s = failure.retry_after_s
            if wait_s is not None:
                wait_s = min(wait_s, self._settings.max_wait_s)
            reason = f"not a chat completion, {failure}" if failure.in_body else str(failure)
            return _TransientError(reason, wait_s=wait_s, throttled=status == 429)
        return _RejectionError(failure)

    def _ends_run(self, failure: ServerFailure) -> str | None:
        """Explain why no request can succeed, and what to do. None if other requests may succeed."""
        status, no_answer_yet = failure.status, self._answers == 0
        # This check comes first, because OpenAI reports an empty account as status 429, and retries cannot help.
        if failure.about_credit:
            return f"the account at {self._url} has no credit left ({failure}); raise its limit"
        if 300 <= status < 400 and no_answer_yet:
            return f"{self._url} redirects to another address ({failure}); use that one as the base URL"
        # Once the server has answered, a 403 or 404 concerns one request, such as one that a moderation refuses. A 404
        # that does not mention the model may come from a proxy, even as a first answer. The next requests will tell.
        if status == 401 or (status == 403 and no_answer_yet and failure.about_key and not failure.about_content):
            return (
                f"{self._url} refuses the key ({failure}); {self._key_hint}, and check that the key may use "
                f"{self.model!r}"
            )
        not_found = status in (404, 405) and failure.is_about_model(self.model)
        if no_answer_yet and (not_found or failure.code == "model_not_found"):
            return (
                f"{self._url} has no model {self.model!r} ({failure}); check the model against {self._url}/models, and "
                "the base URL, which usually ends in /v1"
            )
        if failure.param == "temperature":
            return f"{self.model!r} does not accept this temperature ({failure}); choose another one"
        return None

    def _request_failed(self, failure: ServerFailure) -> RequestFailedError:
        kind, hint = FailureKind.REJECTED, ""
        if failure.status < 500 and failure.about_content:
            kind = FailureKind.MODERATED
        elif failure.status < 500 and failure.about_length and not failure.about_completion_length:
            kind = FailureKind.TOO_LONG
        elif failure.status in (404, 405) and self._answers == 0:
            hint = f"; check the base URL {self._url}, which usually ends in /v1"
        return RequestFailedError(f"{failure}{hint}", kind)


# The options of the teacher are the fields of its settings.
@wraps(OpenAISettings, assigned=(), updated=())
def make_openai_teacher(**options: Any) -> OpenAITeacher:
    """Make a teacher from the settings that a user chooses. Raises the errors of OpenAITeacher and its settings."""
    return OpenAITeacher(OpenAISettings(**options))
