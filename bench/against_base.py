"""Benchmarks of this checkout and of another one in turn, and their figures side by side.

    python bench/against_base.py --base DIR [--rounds 3] [--keep FOLDER] [trace_path two_million ...]

Each round runs every script in this checkout, then the other checkout's own script of that name with its own
environment. A figure is the best of its rounds, because everything else that runs on a machine makes it worse. The bar:
no figure is more than 5% worse than the other checkout's. --keep: a folder for the stores of scripts that can keep
theirs, one for each checkout.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

from measure import Bars

ROOT = Path(__file__).parents[1]
WORSE = 1.05
FIGURE = re.compile(r"^(?:met|MISSED) +(.+): ([\d.,e+-]+) \(bar ([<>])= ", re.MULTILINE)
KEEPING = ("two_million",)


def run(checkout: Path, script: str, keep: Path | None) -> dict[tuple[str, str], float]:
    """The figures of one run by their name and by > if more is better, < if less is. A missed bar is no failure."""
    command = [str(checkout / ".venv" / "bin" / "python"), f"bench/{script}.py"]
    if keep is not None and script in KEEPING:
        keep.mkdir(parents=True, exist_ok=True)
        command += ["--keep", str(keep)]
    process = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True, check=False)
    figures = {(name, better): float(value.replace(",", "")) for name, value, better in FIGURE.findall(process.stdout)}
    if not figures:
        sys.exit(f"{' '.join(command)} in {checkout} printed no figure:\n{process.stdout[-3000:]}")
    return figures


def main() -> None:
    """Run all, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="a checkout to compare with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("scripts", nargs="*", default=["trace_path", "two_million"])
    options = parser.parse_args()
    bars = Bars()
    for script in options.scripts:
        ours: dict[tuple[str, str], list[float]] = {}
        theirs: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for label, checkout, samples in (("ours", ROOT, ours), ("base", options.base.absolute(), theirs)):
                figures = run(checkout, script, options.keep and options.keep / label)
                print(f"       {script}, {label}: {', '.join(f'{value:g}' for value in figures.values())}", flush=True)
                for key, value in figures.items():
                    samples.setdefault(key, []).append(value)
        for key in (key for key in ours if key in theirs):
            name, better = key
            best = max if better == ">" else min
            here, there = best(ours[key]), best(theirs[key])
            worse = there / here if better == ">" else here / there
            bars.at_most(f"{script}: {name}, {here:g} beside {there:g}, times worse", worse, WORSE)
    sys.exit(not bars.met)


if __name__ == "__main__":
    main()
