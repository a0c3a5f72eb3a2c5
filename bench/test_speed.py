"""How long `make test` takes, alone or beside that of another checkout.

    python bench/test_speed.py [--base DIR] [--rounds 1]

DIR is a checkout with its environment in DIR/.venv. The commands run in turns, and of several rounds the fastest
counts. CPU time is printed too, because it depends on other processes far less than wall time.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from fresh_clone import environment
from measure import Bars, Measured, measure_command

SHARE = 1 / 3


def main() -> None:
    """Run the commands in turns, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    checkouts = {"this checkout": Path(__file__).parents[1]}
    if options.base:
        checkouts["base"] = options.base.absolute()
    runs: dict[str, list[Measured]] = {name: [] for name in checkouts}
    for _ in range(options.rounds):
        for name, checkout in checkouts.items():
            measurement = make_test(checkout)
            outcome = re.findall(r"\d+ passed[^=\n]*", measurement.output)[-1].strip()
            print(
                f"       {name}: {measurement.seconds:.0f} s, {measurement.cpu_seconds:.0f} s of CPU; {outcome}",
                flush=True,
            )
            runs[name].append(measurement)
    bars = Bars()
    if options.base:
        ours, theirs = (min(run.seconds for run in runs[name]) for name in checkouts)
        bars.at_most("seconds as a share of the base's", ours / theirs, SHARE)
    sys.exit(not bars.met)


def make_test(checkout: Path) -> Measured:
    """Run `make test` in a checkout with the real data. Exits if it fails."""
    return measure_command(["make", "test"], cwd=checkout, env=environment(), stderr=subprocess.STDOUT)


if __name__ == "__main__":
    main()
