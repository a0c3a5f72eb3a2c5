import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from curate.candidates.making import PRE_RANKER
from curate.evaluation.rankers.oracle import put_oracle
from curate.evaluation.results import load_evaluations
from curate.traces.teachers.fitted.boosting import import_lightgbm
from store import InputError, Store

Gr2 = Callable[..., subprocess.CompletedProcess[str]]


class Reverser(BaseHTTPRequestHandler):
    """A chat completions endpoint that turns the candidates round, and to some lists has nothing to say.

    Model `flaky` fails at every fifth request, and model `broken` at every one.
    """

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if body["model"] == "broken" or (body["model"] == "flaky" and len(self.asked) % 5 == 0):
            self.send_error(500, "out of memory")
            return
        sids = body["response_format"]["json_schema"]["schema"]["properties"]["recommendations"]["items"]["enum"]
        text = "no" if sids[0] < sids[-1] else json.dumps({"explanation": "", "recommendations": sids[::-1]})
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        answer = json.dumps({"choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and what it was asked."""
    handler = type("Handler", (Reverser,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1", handler.asked
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_all_that_can_be_had_is_compared(shop: Store, gr2_process: Gr2) -> None:
    try:
        import_lightgbm()
    except InputError as error:
        pytest.skip(str(error))
    put_oracle(shop, "shop", PRE_RANKER)
    done = gr2_process("eval", "shop", "--slices", "--store", shop.folder)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    table, differences, *_ = out.split("gain over each other")
    for text in ("valid", "copied", "R@1", "N@5", "MRR", "top-1 consistency", "over all 120 lists (end to end)"):
        assert text in table
    rankers = ("cooccurrence.v1", "evidence.v1", "scorecard.v1", "lambdamart", "oracle")
    shown = [line.split()[0].split("-")[0] for line in table.splitlines() if line.strip().startswith(rankers)]
    assert shown == list(rankers)
    assert differences.split("N@5 by")[0].count("+") >= 3
    for title in ("length of the history", "popularity of the target", "position in the input", "first picks by their"):
        assert title in differences
    done = load_evaluations(shop, "shop")
    assert done.runs.height == 1
    assert done.differences.height == 10


@pytest.mark.slow
def test_an_endpoint_is_asked_about_every_list_and_its_bad_answers_are_counted(
    shop: Store, endpoint: tuple[str, list[dict[str, Any]]], gr2_process: Gr2
) -> None:
    url, asked = endpoint
    done = gr2_process(
        *("eval", "shop", "--rankers", "evidence,endpoint", "--model", "reverser", "--base-url", url, "--limit", 10),
        *("--shuffles", 2, "--concurrency", 3, "--store", shop.folder),
        env=os.environ | {"NO_PROXY": "127.0.0.1"},
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "reverser@rerank_evidence.v1" in out
    assert "N@5 by length" not in out
    assert len(asked) == 10 * (1 + 2)
    assert {body["temperature"] for body in asked} == {0}
    with shop.reading() as session:
        rows = session.connection.execute(
            "select valid, r.item_ids = list_reverse(c.item_ids), r.item_ids = c.item_ids from rankings r"
            " join candidate_lists c using (list_id) where ranker like 'reverser%'"
        ).fetchall()
    assert len(rows) == 10
    assert set(rows) == {(True, True, False), (False, False, True)}


@pytest.mark.slow
def test_failed_requests_of_an_endpoint_are_counted_apart_from_its_answers(
    shop: Store, endpoint: tuple[str, list[dict[str, Any]]], gr2_process: Gr2
) -> None:
    words = ["--base-url", endpoint[0], "--limit", 10, "--shuffles", 2, "--max-retries", 0, "--store", shop.folder]

    def run(model: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NO_PROXY": "127.0.0.1"}
        return gr2_process("eval", "shop", "--rankers", "endpoint", "--model", model, *words, env=environment)

    flaky = run("flaky")
    assert flaky.returncode == 0, flaky.stderr
    assert "flaky@rerank_evidence.v1: 6 of 30 requests failed" in flaky.stdout
    assert "HTTP 500" in flaky.stdout
    assert "(6 times)" in flaky.stdout
    broken = run("broken")
    assert broken.returncode == 2
    assert "broken@rerank_evidence.v1 answered none of the first 20 requests" in broken.stderr
    assert "HTTP 500" in broken.stderr
    assert broken.stdout == ""
    with shop.reading() as session:
        assert session.connection.execute("from evaluations where ranker like 'broken%'").fetchall() == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "no dataset is called 'nope'; there are: shop"),
        (
            ["shop", "--rankers", "best"],
            "no ranker is called 'best'; there are: evidence, scorecard, lambdamart, endpoint, oracle",
        ),
        (["shop", "--rankers", "endpoint"], "ranker 'endpoint' needs"),
        (["shop", "--rankers", "oracle"], "gr2 candidates stores them for simulated datasets"),
        (["shop", "--rankers", "lambdamart", "--split", "train"], "only --split test can judge it"),
        (["shop", "--rankers", "evidence,evidence"], "two rankers are called 'evidence.v1'"),
        (["shop", "--split", "all"], "--split is 'all'"),
        (["shop", "--limit", "0"], "--limit is 0"),
        (["shop", "--shuffles", "1"], "--shuffles is 1"),
        (["shop", "--pre-ranker", "x"], "no pre-ranker is called 'x'"),
        (["shop", "--rankers", "endpoint", "--model", "m", "--base-url", "nowhere"], "is not a valid address"),
        (["shop", "--rankers", "endpoint", "--model", "m", "--base-url", "http://127.0.0.1:9/v1"], "cannot reach"),
        (["shop", "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--template", "x"], "there is no template"),
    ],
)
def test_mistakes_are_one_clear_line(words: list[str], message: str, shop: Store, gr2: Gr2) -> None:
    done = gr2("eval", *words, "--store", shop.folder, NO_PROXY="127.0.0.1")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert load_evaluations(shop, "shop").runs.height == 0
