"""An OpenAI-compatible server on loopback that misbehaves in eighty ways, and keeps an account of its answers.

Every answer carries a unique number, which reveals an answer that was lost or stored twice.
"""

import gzip
import json
import random
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CANDIDATE = re.compile(r"^\d+\.? (<\|sid_begin\|>(?:<s_[a-z]_\d+>)+<\|sid_end\|>)", re.MULTILINE)
# The number of an answer, as it appears in the reasoning of a trace.
NUMBER = re.compile(r"answer-(\d+)-")
MEGABYTE = 2**20


@dataclass(frozen=True)
class Sent:
    """An answer that the server has written to the end. prompt_tokens: None if the server did not report them."""

    time: float
    prompt_tokens: int | None


@dataclass
class Account:
    """The server's record: its requests by fault ("" for none), and its answers by number."""

    requests: dict[str, int] = field(default_factory=dict)
    sent: dict[int, Sent] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    started: int = 0

    def begin(self, fault: str) -> int:
        """Count a request, and return the number of its answer."""
        with self.lock:
            self.started += 1
            self.requests[fault] = self.requests.get(fault, 0) + 1
            return self.started


class FaultServer:
    """The server, which can be stopped and restarted.

    mix: the share of requests that meet a random fault. only: the one fault that every second request meets.
    """

    def __init__(self, key: str, seed: int) -> None:
        self.account = Account()
        self.key = key
        self.mix = 0.0
        self.only: str | None = None
        self.chance = random.Random(seed)
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self.port = self._server.server_port
        self._start()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}/v1"

    def stop(self) -> None:
        """Refuse connections, and break those that are open."""
        self._server.shutdown()
        self._server.server_close()
        self._server.break_connections()

    def restart(self) -> None:
        """Listen on the same port again."""
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._start()

    def _start(self) -> None:
        self._server.owner = self
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def choose(self) -> str:
        """Choose the fault of the next request, "" for none."""
        if self.only is not None:
            return self.only if self.account.started % 2 == 0 else ""
        return self.chance.choices(NAMES, WEIGHTS)[0] if self.chance.random() < self.mix else ""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256
    owner: FaultServer

    def __init__(self, *arguments: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """Ignore broken pipes, which killed clients leave on purpose here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        owner = self.server.owner
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = owner.choose()
        number = owner.account.begin(fault)
        prompt = "\n".join(message["content"] for message in request["messages"])
        time.sleep(0.005 + 0.03 * random.random())
        reply = Reply(self, number, CANDIDATE.findall(prompt), owner.key)
        FAULTS[fault].play(reply)
        if FAULTS[fault].answers:
            tokens = None if fault in UNCOUNTED else reply.prompt_tokens
            with owner.account.lock:
                owner.account.sent[number] = Sent(time.monotonic(), tokens)


class Reply:
    """One response that is still to be sent."""

    def __init__(self, handler: _Handler, number: int, sids: list[str], key: str) -> None:
        self.handler, self.number, self.key = handler, number, key
        self.prompt_tokens = 100 + number % 997
        order = sids[1:] + sids[:1]
        explanation = f"This is answer-{number:07}-. {order[0] if order else 'nothing'} fits the history best."
        self.answer = json.dumps({"explanation": explanation, "recommendations": order})

    def chat(self, content: Any = None, *, usage: Any = "counted", finish: Any = "stop", **message: Any) -> str:
        """Return a chat completion. content: None means the answer, and ... means no content."""
        content = (
            {None: self.answer, ...: None}.get(content, content) if not isinstance(content, list | dict) else content
        )
        if usage == "counted":
            usage = {"prompt_tokens": self.prompt_tokens, "completion_tokens": 50, "total_tokens": 0}
        choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
        return json.dumps({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    def send(self, status: int, body: Any = "", **headers: Any) -> None:
        """Send a well-formed response. headers: named with underscores for hyphens."""
        data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
        headers = {"Content_Type": "application/json", "Content_Length": len(data), **headers}
        self.handler.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.handler.send_header(name.replace("_", "-"), str(value))
        self.handler.end_headers()
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def raw(self, data: bytes) -> None:
        """Send bytes as they are, and then close the connection."""
        self.handler.close_connection = True
        self.handler.wfile.write(data)
        self.handler.wfile.flush()

    def drip(self, data: bytes, size: int, seconds: float) -> None:
        """Send bytes in small pieces with pauses."""
        for start in range(0, len(data), size):
            self.handler.wfile.write(data[start : start + size])
            self.handler.wfile.flush()
            time.sleep(seconds)

    def reset(self) -> None:
        """End the connection by a reset."""
        linger = struct.pack("ii", 1, 0)
        self.handler.close_connection = True
        self.handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.handler.connection.close()

    def chunked(self, data: bytes, end: bytes = b"0\r\n\r\n") -> None:
        """Send a response in chunks. end: the bytes after the last chunk."""
        self.raw(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
            + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:70], data[70:]))
            + end
        )

    def refuse(self, status: int, message: str, **fields: Any) -> None:
        """Send an error in the words of OpenAI's API."""
        self.send(status, {"error": {"message": message, **fields}})


@dataclass(frozen=True)
class Fault:
    """A way to respond. answers: whether the response contains an answer that must be kept.

    weight: how often it comes.
    """

    play: Callable[[Reply], object]
    answers: bool
    weight: float


FAULTS: dict[str, Fault] = {"": Fault(lambda reply: reply.send(200, reply.chat()), answers=True, weight=0)}


def fault(name: str, *, answers: bool = False, weight: float = 1) -> Callable[[Callable[[Reply], object]], None]:
    """Return a decorator that registers a fault."""

    def register(play: Callable[[Reply], object]) -> None:
        FAULTS[name] = Fault(play, answers, weight)

    return register


def text_part(reply: Reply) -> dict[str, Any]:
    return {"type": "text", "text": reply.answer}


def call(arguments: Any) -> dict[str, Any]:
    return {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "answer", "arguments": arguments}}]}


THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me compare."}]}
HUGE = 10**400
# Answers in unusual forms, and answers with fields that no store can hold.
GOOD: dict[str, Callable[[Reply], str]] = {
    "parts": lambda reply: reply.chat([text_part(reply)]),
    "parts with thinking": lambda reply: reply.chat([THOUGHT, text_part(reply)]),
    "one part": lambda reply: reply.chat(text_part(reply)),
    "tool call": lambda reply: reply.chat(..., **call(reply.answer)),
    "tool call of an object": lambda reply: reply.chat("", **call(json.loads(reply.answer))),
    "function call": lambda reply: reply.chat(..., function_call={"name": "answer", "arguments": reply.answer}),
    "answer as reasoning": lambda reply: reply.chat(..., reasoning_content=reply.answer),
    "answer as reasoning, empty content": lambda reply: reply.chat("", reasoning="So: " + reply.answer),
    "reasoning apart": lambda reply: reply.chat(reasoning_content="Let me compare {them}."),
    "think": lambda reply: reply.chat(f"<think>Let me compare.</think>{reply.answer}"),
    "unclosed think": lambda reply: reply.chat(f"<think>Let me compare. {reply.answer}"),
    "usage of 2^31": lambda reply: reply.chat(usage={"prompt_tokens": 2**31, "completion_tokens": 2**63}),
    "usage of 10^400": lambda reply: reply.chat(usage={"prompt_tokens": HUGE, "completion_tokens": HUGE}),
    "negative usage": lambda reply: reply.chat(usage={"prompt_tokens": -1, "completion_tokens": -5}),
    "usage as text": lambda reply: reply.chat(usage={"prompt_tokens": "many", "completion_tokens": "\ud800"}),
    "usage of NaN": lambda reply: reply.chat(usage={"prompt_tokens": float("nan"), "completion_tokens": float("inf")}),
    "usage null": lambda reply: reply.chat(usage=None),
    "usage a list": lambda reply: reply.chat(usage=[1, 2]),
    "usage nested": lambda reply: reply.chat(usage={"prompt_tokens": {"text": 5}, "completion_tokens": [7]}),
    "no finish reason": lambda reply: reply.chat(finish=None),
    "finish reason a number": lambda reply: reply.chat(finish=3),
    "finish reason of a megabyte": lambda reply: reply.chat(finish="x" * MEGABYTE),
    "finish reason with a surrogate": lambda reply: reply.chat(finish="\ud800\x00"),
    "lone surrogate": lambda reply: reply.chat(reply.answer.replace("fits", "\ud83d fits \udc00")),
    "NUL": lambda reply: reply.chat(reply.answer.replace("fits", "\\u0000 fits")),
    "control characters": lambda reply: reply.chat(reply.answer.replace("fits", "\x00\x1b[2J\x7f fits")),
    "a megabyte": lambda reply: reply.chat(reply.answer.replace("fits", "fits " + "well " * 200_000)),
    "key in the answer": lambda reply: reply.chat(
        reply.answer.replace("fits", f"{reply.key} {reply.key.upper()} fits")
    ),
    "unknown fields": lambda reply: reply.chat(audio=None, annotations=[{}])[:-1] + ', "service_tier": {"a": [1]}}',
    "duplicate keys": lambda reply: '{"choices": [], "usage": 7, ' + reply.chat()[1:],
    "byte order mark": lambda reply: "\ufeff" + reply.chat(),
    "blank lines first": lambda reply: "\n" * 500 + reply.chat(),
    "fenced": lambda reply: reply.chat(f"Here you are:\n```json\n{reply.answer}\n```\n"),
    "encoded twice": lambda reply: reply.chat(json.dumps(reply.answer)),
}
# In these answers, the server reports no usable token count.
UNCOUNTED = {name for name in GOOD if "usage" in name} | {"no usage"}
for name, body in GOOD.items():
    fault(name, answers=True)(lambda reply, body=body: reply.send(200, body(reply)))  # type: ignore[misc]
fault("no usage", answers=True)(
    lambda reply: reply.send(200, {key: value for key, value in json.loads(reply.chat()).items() if key != "usage"})
)
fault("chunked", answers=True)(lambda reply: reply.chunked(reply.chat().encode()))
fault("gzip", answers=True)(
    lambda reply: reply.send(200, gzip.compress(reply.chat().encode()), Content_Encoding="gzip")
)
fault("deflate", answers=True)(
    lambda reply: reply.send(200, zlib.compress(reply.chat().encode()), Content_Encoding="deflate")
)
fault("text/plain", answers=True)(lambda reply: reply.send(200, reply.chat(), Content_Type="text/plain; charset=x"))
fault("long header", answers=True)(lambda reply: reply.send(200, reply.chat(), X_Trace="x" * 50_000))
fault("cookie and key in headers", answers=True)(
    lambda reply: reply.send(200, reply.chat(), Set_Cookie=f"key={reply.key}", X_Key=reply.key)
)
fault("connection closed after it", answers=True)(lambda reply: reply.send(200, reply.chat(), Connection="close"))
fault("HTTP/1.0 without length", answers=True)(
    lambda reply: reply.raw(b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + reply.chat().encode())
)


@fault("early hints", answers=True)
def _(reply: Reply) -> None:
    reply.handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n")
    reply.send(200, reply.chat())


@fault("slow", answers=True)
def _(reply: Reply) -> None:
    time.sleep(2)
    reply.send(200, reply.chat())


@fault("in drops", answers=True)
def _(reply: Reply) -> None:
    data = reply.chat().encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data)
    reply.drip(head + data, 100, 0.02)


# These responses are not answers, but the next try may bring one.
TRIED_AGAIN: dict[str, tuple[int, Any]] = {
    "500": (500, {"error": {"message": "internal error", "type": "server_error"}}),
    "500 of HTML": (500, "<html><head><title>500</title></head><body><h1>Oops</h1></body></html>"),
    "502 of HTML": (502, "<html><body><center><h1>502 Bad Gateway</h1></center></body></html>"),
    "503 without a body": (503, ""),
    "504": (504, "upstream request timeout"),
    "529": (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
    "408": (408, {"error": {"message": "request timeout"}}),
    "409": (409, {"error": {"message": "conflict"}}),
    "425": (425, {"error": {"message": "too early"}}),
    "429": (429, {"error": {"message": "slow down"}}),
    "error in 200": (200, {"error": {"code": 429, "message": "Rate limit exceeded upstream"}}),
    "error in a list": (200, [{"error": {"code": 503, "message": "The model is overloaded."}}]),
    "error as text": (200, {"error": "upstream \ud800 error"}),
    "nothing in 200": (200, ""),
    "204": (204, ""),
    "HTML in 200": (200, "<!doctype html><title>Sign in</title>"),
    "null": (200, "null"),
    "list": (200, "[]"),
    "number": (200, "7"),
    "no choices": (200, {"choices": [], "usage": {"prompt_tokens": 2**31}}),
    "choices null": (200, {"choices": None}),
    "choices of text": (200, {"choices": ["hello"]}),
    "message null": (200, {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]}),
    "finish reason error": (200, {"choices": [{"message": {"content": "half an"}, "finish_reason": "error"}]}),
    "empty and without tokens": (
        200,
        {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}], "usage": {"completion_tokens": 0}},
    ),
    "content of numbers": (200, {"choices": [{"message": {"content": [1, 2, {"type": 7}]}, "finish_reason": "stop"}]}),
    "events": (200, 'data: {"choices": [{"delta": {"content": "a"}}]}\n\ndata: [DONE]\n\n'),
    "half of it": (200, '{"choices": [{"message": {"content": "ab'),
    "not UTF-8": (200, b'{"choices": [{"message": {"content": "\xff\xfe\xfa'),
    "nested too deeply": (200, '{"choices": ' + "[" * 200_000 + "]" * 200_000 + "}"),
    "error nested too deeply": (500, '{"error": ' + '{"error": ' * 100_000 + "1" + "}" * 100_001),
    "surrogates in an error": (500, {"error": {"message": "bad \ud800 \udfff \x00 byte", "code": "\ud800"}}),
    "error of a megabyte": (500, {"error": {"message": "x" * MEGABYTE}}),
    "10 MB": (200, b'{"choices": "' + b"x" * (10 * MEGABYTE) + b'"}'),
}
for name, (status, said) in TRIED_AGAIN.items():
    fault(name)(lambda reply, status=status, said=said: reply.send(status, said))  # type: ignore[misc]
for name, wait in {"1": "1", "a date": None, "nan": "nan", "negative": "-5", "nonsense": "soon"}.items():
    fault(f"429, retry after {name}", weight=0.3)(
        lambda reply, wait=wait: reply.send(  # type: ignore[misc]
            429, {"error": {"message": "slow down"}}, Retry_After=wait or formatdate(time.time() + 1, usegmt=True)
        )
    )
fault("key in an error")(lambda reply: reply.refuse(500, f"Bad request with Authorization: Bearer {reply.key}"))
fault("key in markup")(
    lambda reply: reply.send(502, f"<html><b>{reply.key[:12]}</b>{reply.key[12:]} and {reply.key.upper()}</html>")
)
fault("redirect", weight=0.3)(
    lambda reply: reply.send(302, "", Location=f"http://127.0.0.1:9/{reply.key}/v1/chat/completions")
)
fault("bomb")(lambda reply: reply.send(200, gzip.compress(b'{"a": "' + bytes(64 * MEGABYTE)), Content_Encoding="gzip"))
fault("bad gzip")(lambda reply: reply.send(200, b"\x1f\x8b\x08nothing of the kind", Content_Encoding="gzip"))
fault("unknown encoding")(lambda reply: reply.send(200, b"\x00\x01\x02", Content_Encoding="x-strange"))
fault("no end of chunks")(lambda reply: reply.chunked(reply.chat().encode(), b"ff\r\nab"))
fault("less than its length")(lambda reply: reply.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n{"))
fault("negative length")(lambda reply: reply.raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}"))
fault("two lengths")(lambda reply: reply.raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 9\r\n\r\n{}"))
fault("no status line")(lambda reply: reply.raw(b"SSH-2.0-OpenSSH_9.6\r\n"))
fault("impossible status")(lambda reply: reply.raw(b"HTTP/1.1 99999 Odd\r\nContent-Length: 0\r\n\r\n"))
fault("header of 200 KB")(lambda reply: reply.raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n{}"))
fault("closed without a word")(lambda reply: reply.raw(b""))
fault("reset")(lambda reply: reply.reset())


@fault("reset in the middle")
def _(reply: Reply) -> None:
    reply.handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + reply.chat().encode()[:100])
    reply.handler.wfile.flush()
    reply.reset()


@fault("drips for ever", weight=0.1)
def _(reply: Reply) -> None:
    reply.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 600, 1, 0.1)
    reply.handler.close_connection = True


@fault("silent", weight=0.1)
def _(reply: Reply) -> None:
    time.sleep(30)
    reply.handler.close_connection = True


# These prompts get no answer, but later ones do.
fault("moderated")(
    lambda reply: reply.refuse(403, "Your input was flagged by the moderation of the chosen model.", code=403)
)
fault("content filter")(
    lambda reply: reply.refuse(
        400, "The response was filtered by the content management policy.", code="content_filter"
    )
)
fault("too long")(
    lambda reply: reply.refuse(400, "This model's maximum context length is 512 tokens. Please reduce the length.")
)
fault("413")(lambda reply: reply.send(413, "<html><h1>413 Request Entity Too Large</h1></html>"))
fault("422 that repeats the request")(
    lambda reply: reply.send(422, {"detail": [{"loc": ["body", "x"], "msg": "not permitted", "input": reply.key}]})
)
fault("404 of a proxy")(lambda reply: reply.send(404, "<html><h1>404 Not Found</h1></html>"))
fault("451")(lambda reply: reply.refuse(451, "unavailable for legal reasons"))

NAMES = [name for name in FAULTS if name]
WEIGHTS = [FAULTS[name].weight for name in NAMES]
