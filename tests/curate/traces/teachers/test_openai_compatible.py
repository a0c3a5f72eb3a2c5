"""The client against a real HTTP server on loopback, scripted request by request."""

import asyncio
import gc
import json
import socket
import traceback
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from curate.endpoints.failures import ServerFailure, read_retry_after
from curate.traces.teachers.chat_answers import read_completion
from curate.traces.teachers.dialects import Dialect, may_concern_dialect, simpler_dialect
from curate.traces.teachers.openai_compatible import OpenAITeacher
from curate.traces.teachers.protocol import Completion, FailureKind, RequestFailedError, Teacher, TeacherRequest
from curate.traces.teachers.settings import OpenAISettings
from prompts.tasks import RerankTask
from store.errors import TeacherError

KEY = "sk-a-secret-that-must-not-leak"
SCHEMA = {"type": "object", "properties": {"explanation": {"type": "string"}}}
Handler = Callable[["Call"], web.StreamResponse | Awaitable[web.StreamResponse]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class Call:
    """One request as the server saw it; `number` counts from 1."""

    def __init__(self, http: web.Request, body: dict[str, Any], number: int) -> None:
        self.http = http
        self.body = body
        self.number = number
        assert http.transport is not None
        self.client_address = http.transport.get_extra_info("peername")

    @property
    def format(self) -> str | None:
        return self.body["response_format"]["type"] if "response_format" in self.body else None


class Server:
    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.calls: list[Call] = []
        self.url = ""

    async def answer(self, http: web.Request) -> web.StreamResponse:
        call = Call(http, await http.json(), len(self.calls) + 1)
        self.calls.append(call)
        answer = self.handler(call)
        return answer if isinstance(answer, web.StreamResponse) else await answer

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        try:
            yield
        finally:
            await runner.cleanup()


def teacher_for(url: str, **settings: Any) -> OpenAITeacher:
    # The key is named, because it goes to no other host than OpenAI's otherwise.
    defaults = {"model": "m", "base_url": url, "backoff_s": 0.001, "api_key_env": "OPENAI_API_KEY"}
    return OpenAITeacher(OpenAISettings(**{**defaults, **settings}))


def a_request(content: str = "rank these") -> TeacherRequest:
    messages = ({"role": "user", "content": content},)
    return TeacherRequest("t", messages, RerankTask((), ()), SCHEMA, 0, 0.7, 64, seed=11)


def talk(
    handler: Handler, scenario: Callable[[OpenAITeacher, Server], Coroutine[Any, Any, Any]], **settings: Any
) -> tuple[Any, Server]:
    """Run a scenario against a server that answers by `handler`; its result, and the server with what it saw."""
    server = Server(handler)

    async def run() -> Any:
        async with server.running():
            teacher = teacher_for(server.url, **settings)
            try:
                return await asyncio.wait_for(scenario(teacher, server), 10)
            finally:
                await teacher.close()

    return asyncio.run(run()), server


async def once(teacher: Teacher, _: Server) -> Completion:
    return await teacher.complete(a_request())


def chat(content: str | None = "hello", finish_reason: str | None = "stop", **message: Any) -> web.Response:
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
    return web.json_response({"choices": [{**choice, "finish_reason": finish_reason}], "usage": usage})


def failure(status: int, message: str, headers: Mapping[str, str] | None = None, **fields: Any) -> web.Response:
    return web.json_response({"error": {"message": message, **fields}}, status=status, headers=headers)


def in_turn(*answers: Callable[[], web.Response]) -> Handler:
    """The answers one after the other, the last one for ever."""
    return lambda call: answers[min(call.number, len(answers)) - 1]()


def test_a_request_is_sent_whole_and_its_answer_read() -> None:
    completion, server = talk(
        lambda _: chat(),
        once,
        price_per_million_prompt_tokens=2.0,
        price_per_million_completion_tokens=10.0,
        extra_body={"top_k": 20},
    )
    assert completion == Completion("hello", "stop", 1000, 200, cost_usd=0.004)
    (call,) = server.calls
    assert call.http.headers["Authorization"] == f"Bearer {KEY}"
    assert call.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "rank these"}],
        "temperature": 0.7,
        "max_tokens": 64,
        "seed": 11,
        "top_k": 20,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "rerank", "strict": True, "schema": SCHEMA},
        },
    }


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_passing_failures_are_tried_again(status: int) -> None:
    completion, server = talk(in_turn(*[lambda: failure(status, "busy")] * 3, chat), once)
    assert completion.text == "hello"
    assert len(server.calls) == 4
    assert len({json.dumps(call.body, sort_keys=True) for call in server.calls}) == 1


def test_a_server_error_that_stays_fails_the_request_with_its_words() -> None:
    with pytest.raises(RequestFailedError, match=r"gave up after 3 tries: HTTP 500: out of memory"):
        talk(lambda _: failure(500, "out of memory"), once, max_retries=2)


def test_a_proxys_error_page_is_told_without_its_mark_up() -> None:
    page = "<html><head><title>502 Bad Gateway</title></head>\n<body><center>nginx</center></body></html>"
    with pytest.raises(RequestFailedError, match=r"HTTP 502: 502 Bad Gateway nginx$"):
        talk(lambda _: web.Response(status=502, text=page, content_type="text/html"), once, max_retries=1)


def test_a_long_error_message_is_shortened() -> None:
    with pytest.raises(RequestFailedError) as caught:
        talk(lambda _: failure(400, "too long " * 1000), once)
    assert len(str(caught.value)) < 400


def test_a_rejected_request_is_not_tried_again() -> None:
    said = "This model's maximum context length is 2048 tokens; 'max_tokens' or 'max_completion_tokens' is too large"
    calls = []

    def reject(call: Call) -> web.Response:
        calls.append(call)
        return failure(400, said, code="context_length_exceeded")

    with pytest.raises(RequestFailedError, match="maximum context length"):
        talk(reject, once)
    assert len(calls) == 1


def test_a_silent_server_times_out_and_is_asked_again() -> None:
    async def silent_at_first(call: Call) -> web.Response:
        if call.number == 1:
            await asyncio.Event().wait()
        return chat()

    completion, server = talk(silent_at_first, once, timeout_s=0.1)
    assert completion.text == "hello"
    assert len(server.calls) >= 2


def test_a_connection_dropped_in_the_answer_is_tried_again() -> None:
    async def drop(call: Call) -> web.StreamResponse:
        if call.number > 1:
            return chat()
        half = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        await half.prepare(call.http)
        await half.write(b'{"choices": [')
        assert call.http.transport is not None
        call.http.transport.close()
        return half

    completion, server = talk(drop, once)
    assert completion.text == "hello"
    assert len(server.calls) == 2


@pytest.mark.parametrize(
    "body",
    ['{"choices": [{"mess', "[]", "{}", '{"choices": []}', '{"choices": [{}]}', '{"error": {"code": 502}}', "\udcff"],
)
def test_an_answer_that_is_no_chat_completion_is_tried_again_then_fails(body: str) -> None:
    raw = body.encode(errors="surrogateescape")

    def unreadable() -> web.Response:
        return web.Response(body=raw, content_type="application/json")

    completion, _ = talk(in_turn(unreadable, chat), once)
    assert completion.text == "hello"
    with pytest.raises(RequestFailedError, match="gave up after 2 tries: not a chat completion"):
        talk(lambda _: unreadable(), once, max_retries=1)


def test_a_web_page_from_the_first_request_on_means_a_wrong_url() -> None:
    page = web.Response
    with pytest.raises(TeacherError, match=r"answers with a web page \(Welcome\); check the base URL.*/v1"):
        talk(lambda _: page(text="<html>Welcome</html>", content_type="text/html"), once)


@pytest.mark.parametrize(
    ("status", "message", "fields", "says"),
    [
        (401, "no", {}, "refuses the key.*check OPENAI_API_KEY"),
        (403, "no", {"type": "permission_denied"}, "refuses the key.*check OPENAI_API_KEY"),
        (404, "The model `m` does not exist.", {}, "has no model 'm'.*check the model"),
        (404, "No endpoints found for m.", {}, "has no model 'm'.*check the model"),
        (404, "no", {"code": "DeploymentNotFound"}, "has no model 'm'.*check the model"),
        (400, "no", {"code": "model_not_found"}, "has no model 'm'"),
        (402, "no", {}, "has no credit left"),
        (429, "no", {"code": "insufficient_quota"}, "has no credit left"),
        (400, "no", {"param": "temperature"}, "does not accept this temperature"),
    ],
)
def test_what_would_reject_every_request_stops_the_run_at_once(
    status: int, message: str, fields: dict[str, Any], says: str
) -> None:
    calls = []

    def reject(call: Call) -> web.Response:
        calls.append(call)
        return failure(status, message, **fields)

    with pytest.raises(TeacherError, match=says) as caught:
        talk(reject, once)
    assert len(calls) == 1
    assert calls[0].http.host in str(caught.value) or "temperature" in says


@pytest.mark.parametrize("status", [404, 405])
def test_a_first_404_that_does_not_speak_of_the_model_concerns_one_request(status: int) -> None:
    async def scenario(teacher: OpenAITeacher, server: Server) -> str:
        with pytest.raises(RequestFailedError, match=f"HTTP {status}: no route.*check the base URL .*/v1$") as caught:
            await teacher.complete(a_request())
        assert caught.value.kind is FailureKind.REJECTED
        return (await teacher.complete(a_request())).text

    text, _ = talk(in_turn(lambda: failure(status, "no route"), chat), scenario)
    assert text == "hello"


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_no_error_repeats_the_key_even_where_the_server_does(status: int) -> None:
    with pytest.raises((TeacherError, RequestFailedError), match=r"\[key\]") as caught:
        talk(lambda call: failure(status, f"got {call.http.headers['Authorization']}"), once, max_retries=0)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_without_a_key_only_a_server_of_ones_own_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TeacherError, match="set the variable OPENAI_API_KEY"):
        OpenAITeacher(OpenAISettings(model="m"))
    completion, _ = talk(lambda _: chat(), once, api_key_env=None)
    assert completion.text == "hello"
    with pytest.raises(TeacherError, match="no key was sent; set OPENAI_API_KEY"):
        talk(lambda _: failure(401, "who are you"), once, api_key_env=None)


def test_the_key_may_come_from_another_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", " other\n")
    _, server = talk(lambda _: chat(), once, api_key_env="OTHER_KEY")
    assert server.calls[0].http.headers["Authorization"] == "Bearer other"


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "localhost", "ftp://host/v1", "http://", "http://host:port/v1"])
def test_a_base_url_that_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(TeacherError, match="is not a valid address"):
        teacher_for(url)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_was_never_there_stops_the_run() -> None:
    async def scenario() -> None:
        teacher = teacher_for(f"http://127.0.0.1:{free_port()}/v1")
        try:
            await teacher.complete(a_request())
        finally:
            await teacher.close()

    with pytest.raises(TeacherError, match=r"cannot reach the teacher at http://127\.0\.0\.1.*check the base URL"):
        asyncio.run(scenario())


def test_a_server_that_goes_away_and_comes_back_fails_only_the_requests_between() -> None:
    async def scenario() -> list[str]:
        server = Server(lambda _: chat())
        async with server.running():
            teacher = teacher_for(server.url, max_retries=2)
            seen = [(await teacher.complete(a_request())).text]
        with pytest.raises(RequestFailedError, match="gave up after 3 tries: Cannot connect"):
            await teacher.complete(a_request())
        async with server.running(int(server.url.split(":")[2].split("/")[0])):
            seen.append((await teacher.complete(a_request())).text)
            await teacher.close()
        return seen

    assert asyncio.run(scenario()) == ["hello", "hello"]


def test_a_rate_limit_pauses_all_workers_for_as_long_as_the_server_says() -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> None:
        first = asyncio.create_task(teacher.complete(a_request("first")))
        await refused.wait()
        while teacher._resume_at == 0:
            await asyncio.sleep(0)
        await asyncio.gather(first, *(teacher.complete(a_request("later")) for _ in range(20)))

    def limit(call: Call) -> web.Response:
        arrivals.append(asyncio.get_running_loop().time())
        if call.number == 1:
            refused.set()
            return failure(429, "slow down", {"Retry-After": "0.2"})
        return chat()

    arrivals: list[float] = []
    refused = asyncio.Event()
    talk(limit, scenario)
    assert len(arrivals) == 22
    assert min(arrivals[1:]) >= arrivals[0] + 0.2


def test_the_longest_wait_is_ours_to_say() -> None:
    completion, _ = talk(
        in_turn(lambda: failure(429, "tomorrow", {"Retry-After": "86400"}), chat), once, max_wait_s=0.01
    )
    assert completion.text == "hello"


def test_a_rate_limit_fails_no_request_while_others_get_answers() -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> Completion:
        async def lucky() -> None:
            while True:
                await waiting.get()
                await teacher.complete(a_request("lucky"))
                answered.put_nowait(None)

        helper = asyncio.create_task(lucky())
        try:
            return await teacher.complete(a_request("unlucky"))
        finally:
            helper.cancel()

    async def turn_away(call: Call) -> web.Response:
        if call.body["messages"][0]["content"] == "lucky":
            return chat()
        tries.append(call.number)
        if len(tries) == 5:
            return chat("at last")
        waiting.put_nowait(None)
        await answered.get()
        return failure(429, "slow down")

    waiting: asyncio.Queue[None] = asyncio.Queue()
    answered: asyncio.Queue[None] = asyncio.Queue()
    tries: list[int] = []
    completion, _ = talk(turn_away, scenario, max_retries=0)
    assert completion.text == "at last"
    with pytest.raises(RequestFailedError, match="gave up after 2 tries: HTTP 429"):
        talk(lambda _: failure(429, "slow down"), once, max_retries=1)


def test_a_refused_response_format_is_given_up_once_for_all_requests() -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> None:
        for _i in range(3):
            await teacher.complete(a_request())

    def old_server(call: Call) -> web.Response:
        if call.format == "json_schema":
            return failure(400, "response_format 'json_schema' is not supported")
        return chat()

    _, server = talk(old_server, scenario)
    assert [call.format for call in server.calls] == ["json_schema", *["json_object"] * 3]


def test_requests_under_way_together_step_down_together() -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> None:
        await asyncio.gather(*(teacher.complete(a_request()) for _ in range(20)))

    def plain_server(call: Call) -> web.Response:
        return chat() if call.format is None else failure(422, "extra field", param="response_format")

    _, server = talk(plain_server, scenario, max_retries=0)
    formats = [call.format for call in server.calls]
    assert formats.count(None) == 20
    assert formats.count("json_schema") <= 20
    assert formats.count("json_object") <= 20


def test_a_server_that_refuses_every_wording_fails_the_request_after_a_few_tries() -> None:
    said = "unsupported: response_format, 'seed'; use max_completion_tokens"
    calls = []

    def stubborn(call: Call) -> web.Response:
        calls.append(call)
        return failure(400, said)

    with pytest.raises(RequestFailedError, match="unsupported"):
        talk(stubborn, once)
    assert len(calls) == 5
    assert set(calls[-1].body) == {"model", "messages", "temperature", "max_completion_tokens"}


def test_a_complaint_about_a_format_that_has_worked_fails_that_request_alone() -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> None:
        await teacher.complete(a_request())
        with pytest.raises(RequestFailedError, match="too complex"):
            await teacher.complete(a_request())
        await teacher.complete(a_request())

    _, server = talk(in_turn(chat, lambda: failure(400, "this JSON schema is too complex"), chat), scenario)
    assert [call.format for call in server.calls] == ["json_schema"] * 3


def test_a_response_format_that_was_asked_for_is_never_given_up() -> None:
    with pytest.raises(
        TeacherError, match=r"refuses structured output as json_schema.*set `structured_output` to auto"
    ):
        talk(lambda _: failure(400, "no response_format here"), once, structured_output="json_schema")
    _, server = talk(lambda _: chat(), once, structured_output="off")
    assert server.calls[0].format is None


def test_max_tokens_is_renamed_once_where_the_server_wants_it() -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> None:
        for _i in range(2):
            await teacher.complete(a_request())

    said = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    _, server = talk(lambda call: failure(400, said) if "max_tokens" in call.body else chat(), scenario)
    assert [call.body.get("max_completion_tokens") for call in server.calls] == [None, 64, 64]
    assert [call.format for call in server.calls] == ["json_schema"] * 3


def test_a_seed_is_left_out_where_the_server_does_not_know_it() -> None:
    def strict(call: Call) -> web.Response:
        detail = [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
        return web.json_response({"detail": detail}, status=422) if "seed" in call.body else chat()

    completion, _ = talk(strict, once)
    assert completion.text == "hello"


def test_two_hundred_requests_share_bounded_connections() -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> list[Completion]:
        return await asyncio.gather(*(teacher.complete(a_request(str(n))) for n in range(200)))

    async def echo(call: Call) -> web.Response:
        if call.number == 16:
            full.set()
        # Nobody is answered before as many requests are under way as there may be connections.
        await full.wait()
        return chat(call.body["messages"][0]["content"])

    full = asyncio.Event()
    completions, server = talk(echo, scenario, max_connections=16)
    assert [completion.text for completion in completions] == [str(n) for n in range(200)]
    assert len({call.client_address for call in server.calls}) == 16


def test_a_closed_teacher_leaves_nothing_open() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        talk(lambda _: chat(), once)
        gc.collect()
    assert [str(warning.message) for warning in seen] == []


def read(message: dict[str, Any], **answer: Any) -> Completion:
    body = {"choices": [{"message": message, "finish_reason": "stop"}], **answer}
    return read_completion(json.dumps(body).encode(), OpenAISettings(model="m", price_per_million_prompt_tokens=1.0))


def test_reasoning_told_apart_stands_in_front_of_the_answer() -> None:
    assert read({"content": "B", "reasoning_content": "A"}).text == "<think>A</think>\nB"
    assert read({"content": "B", "reasoning": "A"}).text == "<think>A</think>\nB"
    assert read({"content": None, "reasoning": "A"}).text == "<think>A</think>\n"
    assert read({"content": "B", "reasoning": None, "reasoning_content": ""}).text == "B"


def test_a_refusal_and_an_empty_answer_are_completions_without_text() -> None:
    assert read({"content": None, "refusal": "I cannot"}) == Completion("", "refusal")
    assert read({"content": None}) == Completion("", "stop")


def test_cost_is_none_where_tokens_or_prices_are_unknown() -> None:
    assert read({"content": "B"}).cost_usd is None
    assert read({"content": "B"}, usage=None).prompt_tokens is None
    known = {"prompt_tokens": 2_000_000, "completion_tokens": 1}
    assert read({"content": "B"}, usage=known).cost_usd == 2.0
    assert read_completion(chat().body, OpenAISettings(model="m")).cost_usd is None  # type: ignore[arg-type]


def test_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert read_retry_after("7", now) == 7.0
    assert read_retry_after("0.5", now) == 0.5
    assert read_retry_after(format_datetime(now + timedelta(seconds=90), usegmt=True), now) == 90.0
    assert read_retry_after(format_datetime(now - timedelta(days=1), usegmt=True), now) == 0.0
    for said in (None, "", "soon", "nan", "inf", "-3"):
        assert read_retry_after(said, now) is None


def test_every_simpler_dialect_gives_something_up() -> None:
    for words in ("unsupported response_format, 'seed', max_completion_tokens", "bad request"):
        complaint = ServerFailure(400, words)
        assert may_concern_dialect(complaint)
        dialect: Dialect | None = Dialect("json_schema")
        seen = []
        while dialect is not None:
            seen.append(dialect)
            dialect = simpler_dialect(dialect, complaint)
        assert len(seen) == len(set(seen)) == 5
    # A word is no name of a parameter: what is unclear is tried in the usual order.
    assert simpler_dialect(Dialect("json_schema"), ServerFailure(400, "chia seed oil is no item of ours")) == Dialect(
        "json_object"
    )


FLAGGED = "Your input was flagged by the moderation of the chosen model."


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (403, FLAGGED, FailureKind.MODERATED),
        (400, "Content Exists Risk", FailureKind.MODERATED),
        (451, "Prohibited by our usage policies", FailureKind.MODERATED),
        (413, "Request Entity Too Large", FailureKind.TOO_LONG),
        (400, "prompt is too long: 200001 tokens > 200000 maximum", FailureKind.TOO_LONG),
        (400, "the request exceeds the available context size", FailureKind.TOO_LONG),
        (400, "The input token count (1900) exceeds the maximum number of tokens allowed (512).", FailureKind.TOO_LONG),
        (403, "blocked by the firewall", FailureKind.REJECTED),
        (404, "page not found", FailureKind.REJECTED),
        (405, "no", FailureKind.REJECTED),
        (400, "model 'm' does not feel like it", FailureKind.REJECTED),
    ],
)
def test_once_something_was_answered_a_rejection_concerns_one_request(
    status: int, message: str, kind: FailureKind
) -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> FailureKind:
        await teacher.complete(a_request())
        with pytest.raises(RequestFailedError, match=f"HTTP {status}") as caught:
            await teacher.complete(a_request())
        await teacher.complete(a_request())
        return caught.value.kind

    found, server = talk(in_turn(chat, lambda: failure(status, message), chat), scenario)
    assert found is kind
    assert len(server.calls) == 3
    assert len({json.dumps(call.body, sort_keys=True) for call in server.calls}) == 1


@pytest.mark.parametrize(("status", "message"), [(403, FLAGGED), (403, "no"), (400, FLAGGED), (400, "too many tokens")])
def test_a_prompt_that_is_refused_first_does_not_stop_the_others(status: int, message: str) -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> str:
        with pytest.raises(RequestFailedError):
            await teacher.complete(a_request())
        return (await teacher.complete(a_request())).text

    text, server = talk(in_turn(lambda: failure(status, message), chat), scenario)
    assert text == "hello"
    # The dialect was not at fault, and stays.
    assert [call.format for call in server.calls] == ["json_schema"] * 2


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("parameter", ["response_format", "seed", "max_tokens"])
def test_a_complaint_that_names_nothing_is_met_with_simpler_words(status: int, parameter: str) -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> None:
        await asyncio.gather(*(teacher.complete(a_request()) for _ in range(8)))
        await teacher.complete(a_request())

    def strict(call: Call) -> web.Response:
        return failure(status, "Bad request") if parameter in call.body else chat()

    _, server = talk(strict, scenario, max_retries=0)
    assert parameter not in server.calls[-1].body
    # One request found the way, and the others that were under way followed.
    assert len(server.calls) <= 9 + 8 + 4


def test_words_that_no_wording_helps_leave_the_dialect_as_it_is() -> None:
    async def scenario(teacher: OpenAITeacher, _: Server) -> None:
        for _i in range(3):
            with pytest.raises(RequestFailedError, match="try stream mode"):
                await teacher.complete(a_request())
        with pytest.raises(RequestFailedError, match="something else"):
            await teacher.complete(a_request())
        await teacher.complete(a_request())

    def stubborn(call: Call) -> web.Response:
        if call.number > 12:
            return chat()
        return failure(400, "try stream mode" if call.number <= 7 else "something else")

    _, server = talk(stubborn, scenario)
    # Five wordings for each complaint that is new, one request for what is known to be in vain.
    assert [call.format for call in server.calls] == [
        *["json_schema", "json_object", None, None, None],
        *["json_schema"] * 2,
        *["json_schema", "json_object", None, None, None],
        "json_schema",
    ]
    assert "seed" in server.calls[-1].body


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": {"content": ""}, "finish_reason": "error"}]},
        {"choices": [{"message": {"content": None}, "finish_reason": "stop"}], "usage": {"completion_tokens": 0}},
        {"error": {"code": 429, "message": "Rate limit exceeded upstream"}},
        {"error": "overloaded"},
        {"choices": None, "error": {"message": "Provider returned error", "code": 502}},
    ],
)
def test_an_answer_that_is_none_is_tried_again(body: Any) -> None:
    completion, server = talk(in_turn(lambda: web.json_response(body), chat), once)
    assert completion.text == "hello"
    assert len(server.calls) == 2


def test_what_was_probably_paid_for_is_tried_only_once_more() -> None:
    async def silent(_: Call) -> web.Response:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    calls: list[Call] = []

    def count(call: Call) -> Any:
        calls.append(call)
        return silent(call)

    with pytest.raises(
        RequestFailedError, match=r"gave up after 2 tries: (nothing came for 0\.1|no complete answer within 0\.2) s"
    ):
        talk(count, once, timeout_s=0.1)
    assert len(calls) == 2


def test_a_thinking_model_may_be_silent_for_minutes_by_default() -> None:
    assert OpenAISettings(model="m").timeout_s >= 300


def test_settings_of_the_client_reach_the_request() -> None:
    _, server = talk(lambda _: chat(), once, seed=False, top_p=0.9, headers={"X-Title": "gr2"})
    (call,) = server.calls
    assert "seed" not in call.body
    assert call.body["top_p"] == 0.9
    assert call.http.headers["X-Title"] == "gr2"


def test_a_redirect_stops_the_run_and_carries_no_key_away() -> None:
    def away(_: Call) -> web.Response:
        return web.Response(status=302, headers={"Location": f"http://elsewhere.example/{KEY}"})

    with pytest.raises(TeacherError, match=r"redirects to another address .*elsewhere\.example/\[key\]"):
        talk(away, once)
