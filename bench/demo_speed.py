"""How long `gr2 demo` takes, alone or beside the demo of another checkout, and how much its student gains.

    python bench/demo_speed.py [--base DIR] [--rounds 1] [--seed 0]

DIR is a checkout with its environment in DIR/.venv. The demos run in turns, each in a separate store. Of several rounds
the fastest counts, because other work on the machine can only slow a demo down. Under load, compare CPU time, which
depends on other processes far less than wall time.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from measure import GR2, Bars, Measured, measure

from curate.evaluation.results import load_evaluations
from store import Store

SECONDS, RATIO = 90, 0.36
LINES, COLUMNS = 48, 100
DATASET = "demo"
GAIN = "conditional_ndcg_at_5_gain"


def main() -> None:
    """Run the demos in turns, compare them, and check their output and their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    commands = {"this checkout": GR2}
    if options.base:
        commands["base"] = [str(options.base.absolute() / ".venv" / "bin" / "gr2")]
    runs: dict[str, list[Measured]] = {name: [] for name in commands}
    bars = Bars()
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(options.rounds):
            for name, gr2 in commands.items():
                store = Path(temporary) / f"{name}-{number}"
                measurement = measure("demo", "--seed", str(options.seed), "--store", str(store), gr2=gr2)
                print(f"       {name}: {measurement.seconds:.1f} s, {measurement.cpu_seconds:.1f} s of CPU", flush=True)
                runs[name].append(measurement)
        output = runs["this checkout"][0].output
        check_student(bars, Store.open(Path(temporary) / "this checkout-0"))
    print(output)
    bars.at_most("seconds of the demo", min(run.seconds for run in runs["this checkout"]), SECONDS)
    bars.at_most("lines of its output", len(output.splitlines()), LINES)
    # The last lines name the store, which may have any path.
    bars.at_most("columns of its output", max(map(len, output.partition("Next:")[0].splitlines())), COLUMNS)
    if options.base:
        for unit in ("seconds", "cpu_seconds"):
            ours, theirs = (min(getattr(run, unit) for run in runs[name]) for name in ("this checkout", "base"))
            bars.at_most(f"{unit} as a share of the base's", ours / theirs, RATIO)
    sys.exit(not bars.met)


def check_student(bars: Bars, store: Store) -> None:
    """Check the student's gain over the pre-ranker, whose whole interval must be above zero, and the other rankers."""
    metrics = load_evaluations(store, DATASET).metrics
    [gain] = metrics.filter(ranker=f"{DATASET}-dapo points", metric=GAIN).iter_rows(named=True)
    bars.at_least(f"lower end of the interval of the student's gain {gain['value']:+.4f}", gain["low"], 1e-9)
    half_width = (gain["high"] - gain["low"]) / 2
    bars.at_least("gain of the student in half widths of its interval", gain["value"] / half_width, 2)
    bars.at_least("lambdamart and the oracle in the table", len({"lambdamart", "oracle"} & {*metrics["ranker"]}), 2)


if __name__ == "__main__":
    main()
