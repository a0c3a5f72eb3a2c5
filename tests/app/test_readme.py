"""What the README says is run, so that it cannot go stale."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import app
from curate.review.sql_console import run_sql
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import Store

ROOT = Path(app.__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line.split("#")[0].split() for line in text.splitlines() if line.startswith("gr2 ")]


def test_every_sql_example_runs_and_finds_something(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=60))
    (examples,) = blocks("sql")
    statements = [part.strip() for part in re.split(r"^--.*$", examples, flags=re.MULTILINE) if part.strip()]
    assert len(statements) == 5
    for statement in statements:
        assert run_sql(shop, statement).height > 0, statement


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_and_option_exists(words: list[str]) -> None:
    plain = [word for word in words[1:] if not word.startswith("-")]
    name = plain[:2] if plain[0] in {"snapshot", "train"} else plain[:1]
    if name == ["sids"]:
        name.append(plain[1] if plain[1] in {"list", "compare", "explain"} else "make")
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *name, "--help"], capture_output=True, text=True, check=True
    )
    for option in (word for word in words if word.startswith("--")):
        assert option in done.stdout


def test_links_and_pictures_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_targets_named_here_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_benchmarks_named_here_exist() -> None:
    for name in re.findall(r"python (bench/\w+\.py)", README):
        assert (ROOT / name).is_file()
