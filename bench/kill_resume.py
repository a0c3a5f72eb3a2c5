"""Kill `gr2 trace` at random points, resume, and count: no received answer may be lost or stored twice.

    python bench/kill_resume.py --rounds 50

Rounds alternate between the evidence teacher and an OpenAI-compatible server on loopback that answers with delays, so
that kills also hit requests under way. Meanwhile a second process writes a label every 0.2 s and a third one reads.
Exit status 1 if anything is wrong.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson

from store import Store
from store.journals import read_journal, rejected_lines

GR2 = [sys.executable, "-m", "app.cli"]
LABELLER = """
import os, sys, time
from store import Store
from store.labels import Label, put_label
store = Store.open(sys.argv[1])
written = 0
while not os.path.exists(sys.argv[2]):
    put_label(store, f"trace-{written}", "bench", Label.GOOD)
    written += 1
    time.sleep(0.2)
print(written)
"""
READER = """
import os, sys, time
from store import Store
from curate.review.trace_pages import find_traces
from curate.traces.filter import TraceFilter
store = Store.open(sys.argv[1])
reads = 0
while not os.path.exists(sys.argv[2]):
    find_traces(store, TraceFilter(passes="paper"))
    with store.reading() as session:
        session.frame("status_funnel")
    reads += 1
    time.sleep(0.05)
print(reads)
"""


class Server(ThreadingHTTPServer):
    """Answers chat completions after 20 to 60 ms: the candidates in the prompt's order, with some unusable answers."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, *_: object) -> None:
        """Ignore broken pipes, which killed clients leave on purpose here."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chance = random.random()
        time.sleep(0.02 + 0.04 * chance)
        schema = request["response_format"]["json_schema"]["schema"]
        sids = schema["properties"]["recommendations"]["items"]["enum"]
        random.shuffle(sids)
        text = "no idea" if chance < 0.1 else json.dumps({"explanation": f"{sids[0]} fits.", "recommendations": sids})
        body = json.dumps(
            {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def watch(code: str, folder: Path, stop: Path) -> subprocess.Popen[str]:
    """Start a process beside the run, until the file `stop` appears. It prints the number of its operations."""
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(stop)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], name: str) -> int:
    """Wait for a watcher, and return the number of its operations. Exits if one failed."""
    out, err = process.communicate(timeout=120)
    if process.returncode != 0:
        sys.exit(f"{name} failed:\n{err}")
    return int(out)


def main() -> None:
    """Run the rounds and check the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--users", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(run(Path(temporary) / "store", arguments.rounds, arguments.users, random.Random(arguments.seed)))


def run(folder: Path, rounds: int, users: int, chance: random.Random) -> int:
    for words in (
        ["simulate", "demo", "--users", str(users), "--items", "300"],
        ["sids", "demo"],
        ["candidates", "demo"],
    ):
        subprocess.run([*GR2, *words, "--store", str(folder)], check=True, stdout=subprocess.DEVNULL)
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    teachers = (
        ["--teacher", "evidence", "--max-attempts", "24", "--num-accepted", "24"],
        [
            *("--teacher", "openai", "--model", "loopback", "--max-attempts", "3", "--limit", "2000"),
            *("--base-url", f"http://127.0.0.1:{server.server_port}/v1", "--concurrency", "16"),
        ],
    )
    stop = folder.with_name("stop")
    labeller, reader = watch(LABELLER, folder, stop), watch(READER, folder, stop)
    killed = 0
    started = time.monotonic()
    for number in range(rounds):
        process = subprocess.Popen(
            [*GR2, "trace", "demo", *teachers[number % 2], "--store", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, err = process.communicate(timeout=chance.uniform(0.5, 4.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            killed += 1
        else:
            if process.returncode != 0:
                sys.exit(f"round {number} failed by itself:\n{err}")
    outputs = [
        subprocess.run(
            [*GR2, "trace", "demo", *words, "--store", str(folder)], check=True, capture_output=True, text=True
        ).stdout
        for words in teachers
    ]
    stop.touch()
    labels, reads = finish(labeller, "the labeller"), finish(reader, "the reader")
    seconds = time.monotonic() - started
    server.shutdown()

    received: Counter[str] = Counter()
    sent = 0
    # The journals of finished runs are compressed.
    for journal in [*folder.glob("journals/*.jsonl"), *folder.glob("journals/*.jsonl.zst")]:
        for record, _ in read_journal(journal):
            if record.get("event") == "received":
                received[record["trace_id"]] += 1
            else:
                sent += record.get("event") == "sent"
    with Store.open(folder).reading() as session:
        query = session.connection.execute
        stored = Counter(row[0] for row in query("select trace_id from traces").fetchall())
        verdicts = query("select count(*), count(distinct (trace_id, rule)) from verdicts").fetchone()
        kept_labels = query("select count(*) from labels.label_events").fetchone()
        open_runs = query("select count(*) from runs where ended_at is null").fetchone()
        funnel = query(
            "select sum(attempts), sum(answered), sum(parsed), sum(accepted) from acceptance_funnel"
        ).fetchone()
        direct = query(
            "select count(*), count(completion), count(ranking),"
            " (select count(*) from accepted_traces('paper')) from traces"
        ).fetchone()
    checks = {
        "received responses lost": len(received.keys() - stored.keys()),
        "traces that no journal holds": len(stored.keys() - received.keys()),
        "traces stored twice": sum(count - 1 for count in stored.values()),
        "responses received twice": sum(count - 1 for count in received.values()),
        "verdicts stored twice": verdicts[0] - verdicts[1] if verdicts else -1,
        "labels lost": labels - kept_labels[0] if kept_labels else -1,
        "journal lines rejected": sum(rejected_lines(folder / "journals").values()),
        "runs left open": open_runs[0] if open_runs else -1,
        "funnel off by": sum(abs(a - b) for a, b in zip(funnel or (), direct or (), strict=True)),
    }
    print(
        f"{rounds} rounds, {killed} killed, in {seconds:.0f} s: {len(stored):,} traces, "
        f"{sent - len(stored):,} requests sent without an answer and asked again, "
        f"{labels:,} labels, {reads:,} reads, none failed"
    )
    for name, count in checks.items():
        print(f"  {name}: {count}")
    print(orjson.dumps(outputs).decode() if any(checks.values()) else "all of it adds up")
    return int(any(checks.values()))


if __name__ == "__main__":
    main()
