"""The whole pipeline on real data, against the project's bars for two cores.

    python bench/real_data.py                 Beauty and Sports, from GR2_DATA or ../shared/data

Prints every bar with the measured value. Exit status 1 if one is missed.
"""

import sys
import tempfile
from pathlib import Path

from measure import DATA, Bars, measure

from store import Store


def main() -> None:
    """Measure both datasets."""
    if not DATA.is_dir():
        sys.exit(f"no real data in {DATA}; set GR2_DATA to the folder that holds beauty/ and sports/")
    bars = Bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = str(Path(temporary) / "store")
        for name in ("beauty", "sports"):
            prepare(bars, folder, name)
        check_rankings(bars, folder)
        check_teacher(bars, folder)
    sys.exit(not bars.met)


def prepare(bars: Bars, folder: str, name: str) -> None:
    """Measure time and memory of ingest, semantic IDs and candidates."""
    files = DATA / name
    measurement = measure(
        "ingest", name, "--items", str(files / "items.jsonl"),
        "--interactions", str(files / "interactions.csv.gz"), "--store", folder,
    )  # fmt: skip
    bars.at_most(f"{name}: ingest, seconds", measurement.seconds, 10)
    measurement = measure("sids", name, "--store", folder)
    bars.at_most(f"{name}: sids, seconds", measurement.seconds, 60)
    measurement = measure("candidates", name, "--store", folder)
    # The bars are for Beauty. Sports is half as large again.
    if name == "beauty":
        bars.at_most(f"{name}: candidates, seconds", measurement.seconds, 60)
        bars.at_most(f"{name}: candidates, peak MB", measurement.peak_mb, 2000)
    else:
        print(
            f"       {name}: candidates, seconds: {measurement.seconds:.1f}, "
            f"peak MB: {measurement.peak_mb:.0f} (no bar)"
        )


def check_rankings(bars: Bars, folder: str) -> None:
    """Check uniqueness, and the pre-ranker's full ranking over the catalogue."""
    with Store.open(folder).reading() as session:
        query = session.connection.execute
        for name, uniqueness in query("select dataset, uniqueness from sid_versions order by dataset").fetchall():
            bars.at_least(f"{name}: uniqueness of semantic IDs", uniqueness, 0.99)
        metrics = {
            (dataset, metric): value
            for dataset, metric, value in query(
                "select dataset, metric, value from evaluations where split = 'test'"
            ).fetchall()
        }
        lists = dict(
            query(
                "select split, count(target_rank) from candidate_lists where dataset = 'beauty' group by all"
            ).fetchall()
        )
    bars.at_least("beauty: test R@5", metrics["beauty", "recall_at_5"], 0.063)
    bars.at_least("beauty: test N@5", metrics["beauty", "ndcg_at_5"], 0.046)
    bars.at_least("beauty: test R@10", metrics["beauty", "recall_at_10"], 0.087)
    bars.at_least("sports: test R@5", metrics["sports", "recall_at_5"], 0.032)
    bars.at_least("beauty: test lists that hold their target", lists["test"], 1_900)
    bars.at_least("beauty: train lists that hold their target", lists["train"], 15_000)


def check_teacher(bars: Bars, folder: str) -> None:
    """Check the evidence teacher at temperature 0 on all test lists that contain their target."""
    measure(
        "trace", "beauty", "--teacher", "evidence", "--template", "rerank_evidence.v1", "--split", "test",
        "--temperature", "0", "--max-attempts", "1", "--store", folder,
    )  # fmt: skip
    with Store.open(folder).reading() as session:
        traces, first, before = session.connection.execute(
            "select count(*), avg((predicted_rank = 1)::int), avg((target_rank = 1)::int) from trace_browser"
        ).fetchall()[0]
    print(f"       beauty: target first before, over {traces:,} test lists: {before:.4f}")
    bars.at_least("beauty: target first, evidence teacher", first, 0.36)


if __name__ == "__main__":
    main()
