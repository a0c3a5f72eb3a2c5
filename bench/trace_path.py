"""How fast traces are made and judged, against the project's bars for two cores.

    python bench/trace_path.py

The whole path is `gr2 trace` itself, including process start: render, complete with the evidence teacher, parse,
verify, journal, store. Verification alone runs the pure rules over parsed completions.
"""

import sys
import tempfile
import time
from pathlib import Path

from measure import Bars, measure

from curate.traces.recording import answer_to, load_tasks_of_prompts
from curate.traces.rules import judge
from store import Store


def main() -> None:
    """Measure the whole path, and verification alone."""
    bars = Bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(temporary) / "store")
        measure("simulate", "bench", "--users", "6000", "--items", "1000", "--store", folder)
        measure("sids", "bench", "--store", folder)
        measure("candidates", "bench", "--store", folder)
        measurement = measure(
            "trace", "bench", "--teacher", "evidence", "--max-attempts", "4", "--num-accepted", "4", "--store", folder
        )
        with Store.open(folder).reading() as session:
            traces = session.connection.execute("select count(*) from traces").fetchall()[0][0]
            print(f"       {traces:,} traces in {measurement.seconds:.1f} s, peak {measurement.peak_mb:,.0f} MB")
            bars.at_least("whole path, traces per second", traces / measurement.seconds, 1_000)
            rows = session.connection.execute(
                "select prompt_id, completion, finish_reason from traces limit 20000"
            ).fetchall()
            tasks = load_tasks_of_prompts(session, [row[0] for row in rows])
        answers = [answer_to(tasks[prompt_id], completion, reason) for prompt_id, completion, reason in rows]
        started = time.perf_counter()
        for answer in answers:
            judge(answer)
        bars.at_least("verification alone, traces per second", len(answers) / (time.perf_counter() - started), 10_000)
        started = time.perf_counter()
        for prompt_id, completion, reason in rows:
            answer_to(tasks[prompt_id], completion, reason)
        print(f"       parsing alone, per second: {len(rows) / (time.perf_counter() - started):,.0f} (no bar)")
    sys.exit(not bars.met)


if __name__ == "__main__":
    main()
