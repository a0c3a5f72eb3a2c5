"""Benchmarks are run by hand, so that a name which moved would be missed until then."""

import runpy
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.mark.parametrize("script", sorted(BENCH.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_finds_all_that_it_imports(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    before = set(sys.modules)
    runpy.run_path(str(script), run_name=script.stem)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) == str(BENCH / f"{name}.py"):
            del sys.modules[name]


def test_each_mutation_still_finds_its_piece_and_its_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    mutations = runpy.run_path(str(BENCH / "mutations.py"), run_name="mutations")["MUTATIONS"]
    root = BENCH.parent
    stale = [
        mutation.name
        for mutation in mutations
        if (root / mutation.file).read_text("utf-8").count(mutation.piece) != 1
        or f"def {mutation.tests.partition('::')[2].partition('[')[0]}"
        not in (root / "tests" / mutation.tests.partition("::")[0]).read_text("utf-8")
    ]
    assert stale == []
