"""`gr2 trace` against servers that people met in the field: what is stored, what is asked again, how a run ends."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from store import Store

KEY = "sk-Planted-0123456789-abcdefghij"
RUN = ["--limit", "12", "--max-attempts", "1", "--ruleset", "answered", "--concurrency", "4"]


class FieldServer:
    """The server of the shared cases, started for these tests, and what it saw."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    def url(self, mode: str) -> str:
        return f"http://127.0.0.1:{self.port}/{mode}/v1"

    def calls(self, mode: str) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [call for call in map(json.loads, lines) if call["mode"] == mode]


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FieldServer]:
    shared = Path(os.environ.get("GR2_DATA", Path(__file__).parents[3] / "shared" / "data")).parent
    script = shared / "cases" / "endpoint" / "server.py"
    if not script.is_file():
        pytest.skip(f"there is no {script}; set GR2_DATA to the folder of data beside the folder `cases`")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("field")
    with (folder / "noise").open("w") as noise:
        process = subprocess.Popen([sys.executable, script, str(port), folder / "log"], stderr=noise)
        try:
            while not answers(port) and process.poll() is None:
                time.sleep(0.05)
            yield FieldServer(port, folder / "log")
        finally:
            process.terminate()
            process.wait()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def trace(gr2: Any, shop: Store) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `gr2 trace` on the shop against a base URL."""
    start = ["trace", "shop", "--store", shop.folder, "--teacher", "openai", "--model", "m"]

    def run(url: str, *words: object) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = gr2(*start, "--base-url", url, *RUN, *words)
        return done

    return run


def rows(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


ANSWERED = "select count(*), count(ranking), count(error) from traces"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["parts", "json_in_reasoning", "thought_tags", "no_usage", "html502"])
def test_answers_are_found_wherever_they_are(trace: Any, shop: Store, field: FieldServer, mode: str) -> None:
    done = trace(field.url(mode))
    assert done.returncode == 0, done.stderr
    assert rows(shop, ANSWERED) == [(12, 12, 0)]
    if mode == "parts":
        assert all(text.startswith("<think>Let me compare.") for (text,) in rows(shop, "select completion from traces"))
    if mode == "no_usage":
        assert rows(shop, "select count(prompt_tokens), count(cost_usd) from traces") == [(0, 0)]


@pytest.mark.parametrize(
    ("mode", "best_first"),
    [("ranked_objects", [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]), ("rankgpt", [2, 3, 4, 5, 6, 7, 8, 9, 10, 1])],
)
def test_an_order_is_read_as_it_is_meant(
    trace: Any, shop: Store, field: FieldServer, mode: str, best_first: list[int]
) -> None:
    assert trace(field.url(mode)).returncode == 0
    orders = rows(
        shop,
        "select list_transform(ranking, lambda item: list_position(item_ids, item)) from traces "
        "join candidate_lists using (list_id)",
    )
    assert orders == [(best_first,)] * 12


@pytest.mark.parametrize("mode", ["error200", "retry_date"])
def test_what_passes_is_tried_again(trace: Any, shop: Store, field: FieldServer, mode: str) -> None:
    done = trace(field.url(mode), "--limit", 4)
    assert done.returncode == 0, done.stderr
    assert rows(shop, ANSWERED) == [(4, 4, 0)]


@pytest.mark.parametrize(
    ("mode", "key"),
    [("gemini_schema", "rf"), ("llamacpp500", "rf"), ("gemini_seed", "seed"), ("echo422", "seed")],
)
def test_an_unknown_parameter_is_given_up_once(
    trace: Any, shop: Store, field: FieldServer, mode: str, key: str
) -> None:
    assert trace(field.url(mode)).returncode == 0
    assert rows(shop, ANSWERED) == [(12, 12, 0)]
    calls = field.calls(mode)
    # One per worker that was under way, and none later.
    assert len(calls) <= 12 + 4
    last = calls[-1]
    assert last["rf"] == ("json_object" if key == "rf" else "json_schema")
    assert ("seed" in last["keys"]) == (key == "rf")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "says"),
    [
        ("stream_only", "This model only support stream mode"),
        ("ctx_max_tokens", "max_tokens is too large: 1024"),
        ("error200_model", "No models available for that name"),
    ],
)
def test_what_rejects_everything_stops_the_run_with_its_words(
    trace: Any, shop: Store, field: FieldServer, mode: str, says: str
) -> None:
    done = trace(field.url(mode), "--limit", 200)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert len(field.calls(mode)) < 40
    assert rows(shop, "select distinct status from runs where kind = 'trace'") == [("failed",)]
    # Nobody's prompt is at fault: once the server is right, all are asked.
    assert rows(shop, "select distinct error_kind from traces") == [("rejected",)]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("moderated403", "moderated"),
        ("mod403one", "moderated"),
        ("azure_filter", "moderated"),
        ("ctx400", "too_long"),
    ],
)
def test_a_refused_prompt_is_not_asked_again(
    trace: Any, ok: Any, shop: Store, field: FieldServer, mode: str, kind: str
) -> None:
    first = trace(field.url(mode), "--limit", 30)
    assert first.returncode == 0, first.stderr
    ((refused,),) = rows(shop, f"select count(*) from traces where error_kind = '{kind}'")
    assert refused > 0
    assert rows(shop, ANSWERED) == [(30, 30 - refused, refused)]
    assert "errors: HTTP 40" in first.stdout
    assert "refused for good" in first.stdout
    calls = len(field.calls(mode))
    assert "nothing to sample" in trace(field.url(mode), "--limit", 30).stdout
    assert len(field.calls(mode)) == calls
    # It can be asked again on purpose; nothing is answered, and that is no success.
    assert trace(field.url(mode), "--limit", 30, "--retry-refused").returncode == 2
    assert len(field.calls(mode)) == calls + refused
    assert f"{kind} " in ok("status", "--store", shop.folder)


@pytest.mark.slow
def test_a_model_that_thinks_for_two_minutes_is_asked_once(trace: Any, shop: Store, field: FieldServer) -> None:
    for words in (("--limit", 1), ("--limit", 2, "--timeout", 300)):
        assert trace(field.url("slow"), *words).returncode == 0
    assert len(field.calls("slow")) == 2


class Echo(BaseHTTPRequestHandler):
    """Repeats the key in whatever it says; the first part of the path chooses how."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        fault = self.path.split("/")[1]
        said = f"got {key}, {self.headers.get('X-Key')}, {key.upper()}, {key[4:14]}... and <b>{key[:9]}</b>{key[9:]}"
        status, body = 200, json.dumps({"choices": [{"message": {"content": said}, "finish_reason": key}]})
        if fault.isdigit():
            status, body = int(fault), json.dumps({"error": {"message": said, "code": key, "param": key}})
        elif fault == "page":
            body = f"<html>{said}</html>"
        elif fault == "error200":
            body = json.dumps({"error": said})
        elif fault == "reasoning":
            body = json.dumps({"choices": [{"message": {"reasoning": said, "content": ""}}], "usage": {key: key}})
        self.send_response_only(status, key if status != 200 else "OK")
        self.send_header("Location", f"http://127.0.0.1/{key}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode() if fault != "short" else body.encode()[:5])
        if fault == "short":
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def echo() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


FAULTS = ["answer", "reasoning", "page", "error200", "short", "302", "400", "401", "403", "404", "422", "429", "500"]


@pytest.mark.parametrize("fault", FAULTS)
def test_no_part_of_a_key_is_shown_or_stored(
    trace: Any, ok: Any, shop: Store, echo: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "another-Secret-42424242")
    words = ["--limit", 2, "--max-retries", 0, "--api-key-env", "OPENAI_API_KEY", "--headers", '{"X-Key": "$MY_KEY"}']
    done = trace(f"{echo}/{fault}/v1", *words)
    shown = done.stdout + done.stderr + ok("status", "--store", shop.folder)
    with shop.reading() as session:
        # The files of the database are compressed.
        stored = "".join(
            str(session.connection.execute(f"from {table}").fetchall()) for table in ("traces", "runs", "verdicts")
        )
    files = b"".join(file.read_bytes() for file in shop.folder.rglob("*") if file.is_file())
    everything = (shown + stored).lower().encode() + files.lower()
    for secret in (KEY, "another-Secret-42424242"):
        for start in range(len(secret) - 7):
            assert secret[start : start + 8].lower().encode() not in everything
        assert base64.b64encode(secret.encode()).lower() not in everything
    if done.returncode == 0:
        assert b"[key]" in everything


def test_the_host_of_the_endpoint_is_recorded_without_credentials(trace: Any, shop: Store, field: FieldServer) -> None:
    url = field.url("ok").replace("127.0.0.1", "user:password-of-mine@127.0.0.1")
    assert trace(url).returncode == 0
    ((settings,),) = rows(shop, "select settings from runs where kind = 'trace'")
    assert json.loads(settings)["endpoint"] == f"127.0.0.1:{field.port}"
    assert "password" not in settings


@pytest.mark.slow
def test_openais_key_goes_to_another_host_only_if_it_is_named(
    trace: Any, field: FieldServer, echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(*words: str) -> set[str | None]:
        before = len(field.calls("ok"))
        assert trace(field.url("ok"), *words, "--retry-refused").returncode == 0
        return {call["auth"] for call in field.calls("ok")[before:]}

    assert keys("--temperature", "0.1") == {None}
    assert keys("--temperature", "0.2", "--api-key-env", "OPENAI_API_KEY") == {f"Bearer {KEY}"}
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{field.port}/other/v1")
    assert keys("--temperature", "0.3") == {f"Bearer {KEY}"}
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert keys("--temperature", "0.4") == {None}
    refused = trace(f"{echo}/401/v1")
    assert refused.returncode == 2
    assert "pass --api-key-env OPENAI_API_KEY" in refused.stderr


def test_every_setting_of_the_client_is_an_option(trace: Any, field: FieldServer) -> None:
    words = ["--no-seed", "--structured-output", "off", "--top-p", "0.9", "--extra-body", '{"top_k": 20}']
    assert trace(field.url("ok"), *words, "--max-retries", 1, "--temperature", 0.6).returncode == 0
    last = field.calls("ok")[-1]
    assert last["rf"] is None
    assert {"top_p", "top_k"} <= set(last["keys"])
    assert "seed" not in last["keys"]
    for flag, value in (
        ("--extra-body", "[1]"),
        ("--extra-body", "{"),
        ("--headers", "3"),
        ("--headers", '{"a b": "c"}'),
    ):
        wrong = trace(field.url("ok"), flag, value)
        assert wrong.returncode == 2
        assert wrong.stderr.startswith(f"gr2: {flag} ")


def test_a_run_without_any_answer_does_not_exit_with_success(trace: Any, shop: Store, echo: str) -> None:
    done = trace(f"{echo}/500/v1", "--limit", 2, "--max-retries", 0)
    assert done.returncode == 2
    assert "answered no request" in done.stderr
    assert "errors: gave up after one try: HTTP 500" in done.stdout
