import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from curate.sids.embedding.openai_embedder import OpenAIEmbedder
from store import TeacherError


class Endpoint(BaseHTTPRequestHandler):
    """Embeds a text as its length and its number of a's; answers out of order; fails first where told."""

    def do_POST(self) -> None:
        server: Any = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.asked.append(asked["input"])
        if server.failures:
            server.failures -= 1
            self.send_error(503)
            return
        if len(asked["input"]) > server.limit or "poison" in asked["input"]:
            self.send_error(server.refusal)
            return
        if asked["model"] == "unknown":
            self.send_error(404)
            return
        rows = [
            {"object": "embedding", "index": index, "embedding": [len(text), text.count("a")]}
            for index, text in enumerate(asked["input"])
        ]
        server.auth = self.headers.get("Authorization")
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        body = json.dumps({"object": "list", "model": asked["model"], "data": rows[::-1], "usage": usage}).encode()
        body = server.answers.pop(0) if server.answers else body
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def endpoint() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    server.asked, server.failures, server.answers = [], 0, []
    server.limit, server.refusal = 10_000, 400
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(endpoint: Any) -> str:
    return f"http://127.0.0.1:{endpoint.server_port}/v1"


def test_vectors_come_in_the_order_of_the_texts_and_in_batches(endpoint: Any) -> None:
    embedder = OpenAIEmbedder("org/model-1", url(endpoint))
    texts = ["a" * (number % 7) + "b" for number in range(300)]
    vectors = embedder.embed(texts)
    assert vectors.tolist() == [[len(text), len(text) - 1] for text in texts]
    assert [len(asked) for asked in endpoint.asked] == [256, 44]
    assert embedder.name == "openai-org-model-1"


def test_long_texts_are_cut(endpoint: Any) -> None:
    assert OpenAIEmbedder("m", url(endpoint)).embed(["x" * 99_999]).tolist() == [[16_000, 0]]


def test_a_failure_is_tried_again(endpoint: Any) -> None:
    endpoint.failures = 1
    assert OpenAIEmbedder("m", url(endpoint)).embed(["aa"]).tolist() == [[2, 2]]
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize("refusal", [400, 413, 422])
def test_a_batch_that_is_too_large_for_the_server_is_asked_for_in_halves(endpoint: Any, refusal: int) -> None:
    endpoint.limit, endpoint.refusal = 32, refusal
    texts = ["a" * (number % 7) + "b" for number in range(300)]
    vectors = OpenAIEmbedder("m", url(endpoint)).embed(texts)
    assert vectors.tolist() == [[len(text), len(text) - 1] for text in texts]
    # The limit is found once: 256, 128 and 64 are refused.
    assert [len(asked) for asked in endpoint.asked] == [256, 128, 64, *[32] * 9, 12]


def test_a_text_that_is_refused_alone_ends_it(endpoint: Any) -> None:
    with pytest.raises(TeacherError, match="gave no embeddings by 'm'"):
        OpenAIEmbedder("m", url(endpoint)).embed(["poison", "a", "b", "c"])
    assert [len(asked) for asked in endpoint.asked] == [4, 2, 1]


def test_refusals_and_silence_are_clear_errors(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TeacherError, match=r"http://127.0.0.1:\d+/v1 gave no embeddings by 'unknown'"):
        OpenAIEmbedder("unknown", url(endpoint)).embed(["a"])
    with pytest.raises(TeacherError, match="gave no embeddings by 'm'"):
        OpenAIEmbedder("m", "http://127.0.0.1:9/v1", max_retries=0).embed(["a"])
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(TeacherError, match="set the variable OPENAI_API_KEY"):
        OpenAIEmbedder("m")


def vectors(*rows: Any, **row: Any) -> bytes:
    return json.dumps(
        {"data": [{"index": index, "embedding": each, **row} for index, each in enumerate(rows)]}
    ).encode()


@pytest.mark.parametrize(
    "wrong",
    [
        b"<html>Bad gateway</html>",
        b"[]",
        b'{"data": null}',
        b'{"data": [1, 2]}',
        b'{"error": {"message": "busy", "code": 503}}',
        vectors([1, 2]),
        vectors([1, 2], [3]),
        vectors([1, 2], [3, float("nan")]),
        vectors([1, 2], ["x", 4]),
        vectors([1, 2], None),
        vectors([1, 2], [3, 4], index=0),
        vectors([1, 2], "AACAPwAAAEA="),
        b'{"data": ' + b"[" * 200_000,
    ],
)
def test_an_answer_without_a_vector_for_each_text_is_tried_again_then_told(endpoint: Any, wrong: bytes) -> None:
    endpoint.answers = [wrong]
    assert OpenAIEmbedder("m", url(endpoint)).embed(["aa", "b"]).tolist() == [[2, 2], [1, 0]]
    endpoint.answers = [wrong]
    with pytest.raises(TeacherError, match="gave no embeddings by 'm', after one try") as caught:
        OpenAIEmbedder("m", url(endpoint), max_retries=0).embed(["aa", "b"])
    assert len(str(caught.value)) < 700


def test_the_key_goes_only_where_it_was_meant(endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    OpenAIEmbedder("m", url(endpoint)).embed(["a"])
    assert endpoint.auth is None
    OpenAIEmbedder("m", url(endpoint), api_key_env="OPENAI_API_KEY").embed(["a"])
    assert endpoint.auth == f"Bearer {key}"
    endpoint.answers = [json.dumps({"error": {"message": f"bad key {key[3:]}", "code": 401}}).encode()]
    with pytest.raises(TeacherError, match=r"bad key \[key\]; check OPENAI_API_KEY"):
        OpenAIEmbedder("m", url(endpoint), api_key_env="OPENAI_API_KEY").embed(["a"])


def test_the_size_of_batches_is_ours_to_say(endpoint: Any) -> None:
    OpenAIEmbedder("m", url(endpoint), embed_batch=2).embed(list("abcde"))
    assert [len(asked) for asked in endpoint.asked] == [2, 2, 1]
