"""A short run of the benchmark that kills `gr2 trace` at random points; the long one is bench/kill_resume.py."""

import subprocess
import sys
from pathlib import Path

import pytest

import app

BENCH = Path(app.__file__).parents[1] / "bench" / "kill_resume.py"


@pytest.mark.slow
def test_kills_at_random_points_lose_nothing_and_double_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "--rounds", "4", "--users", "200"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all of it adds up" in done.stdout
