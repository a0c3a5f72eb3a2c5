"""The first steps of a newcomer: clone the committed code into an empty folder, `make demo`, `make test`.

    python bench/fresh_clone.py

The set-up counts. The demo reports its own time at its end.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import DATA, Bars

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Clone the code, and run the demo and the tests."""
    bars = Bars()
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "gr2"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        seconds, output = make(clone, "demo")
        bars.at_most("make demo, set-up included, seconds", seconds, 300)
        bars.at_most("the demo itself, seconds", float(re.findall(r"Done in ([\d.]+) s", output)[0]), 90)
        seconds, output = make(clone, "test")
        outcome = re.findall(r"\d+ passed[^=]*", output)[-1].strip()
        print(f"       make test after it, set-up included: {seconds:.0f} s; {outcome}")
    sys.exit(not bars.met)


def make(clone: Path, target: str) -> tuple[float, str]:
    """Run one of the README's two commands, and exit if it fails."""
    started = time.perf_counter()
    process = subprocess.run(
        ["make", target], cwd=clone, env=environment(), stdout=subprocess.PIPE, text=True, check=False
    )
    if process.returncode != 0:
        sys.exit(f"make {target} failed:\n{process.stdout}")
    return time.perf_counter() - started, process.stdout


def environment() -> dict[str, str]:
    """Return this process's environment, without its virtual environment and store, but with the same real data."""
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "GR2_STORE")}
    return {**kept, "GR2_DATA": str(DATA)}


if __name__ == "__main__":
    main()
