"""Commands, queries, Python, links and pictures of all Markdown files are run or parsed, so that none goes stale."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import duckdb
import pytest
import typer
from accelerate.commands.launch import launch_command_parser
from typer.core import TyperGroup
from typer.main import get_command

import app
from app.cli import cli
from curate.review.sql_console import run_sql
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import Store

ROOT = Path(app.__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
GENERATED = ROOT / "docs" / "reference" / "cli.md"
# Programs of others that an example may start.
FOREIGN = {"git", "vllm"}


def examples(found: list[tuple[Path, str]]) -> list[object]:
    """Test parameters that say where each of them stands."""
    return [pytest.param(text, id=f"{page.relative_to(ROOT)}: {text}") for page, text in dict.fromkeys(found)]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def shell_lines() -> list[tuple[Path, str]]:
    """The command lines of all shell blocks, each on one line."""
    return [
        (page, " ".join(line.split()))
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]


def inline_commands() -> list[tuple[Path, str]]:
    """`gr2 ...` within sentences: parts of a command, whose arguments may be missing."""
    return [
        (page, " ".join(code.split()))
        for page in PAGES
        if page != GENERATED
        for code in re.findall(r"`(gr2 [a-z-][^`]*)`", page.read_text("utf-8"))
    ]


def statements() -> list[tuple[Path, str]]:
    """The SQL of all blocks, and of `gr2 sql`."""
    texts = [(page, block) for page in PAGES for block in blocks(page, "sql")]
    texts += [(page, shlex.split(line)[2]) for page, line in shell_lines() if line.startswith("gr2 sql ")]
    return [
        (page, found.query.strip())
        for page, text in texts
        for found in duckdb.extract_statements(re.sub("--.*", "", text))
    ]


@pytest.mark.parametrize("line", examples(shell_lines()))
def test_every_shell_command_can_be_typed(line: str) -> None:
    # accelerate launch ... $(command -v gr2) train ... starts gr2 too.
    launch, starts, rest_of_line = line.partition(" $(command -v gr2)")
    if starts:
        launch_command_parser().parse_args([*shlex.split(launch.removeprefix("accelerate launch")), "gr2"])
        line = f"gr2{rest_of_line}"
    words = shlex.split(line, comments=True)
    program, *rest = words
    match Path(program).name:
        case "gr2":
            parse(rest)
        case "make":
            assert all(
                re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE) for target in rest
            )
        case "pip":
            check_extras(rest)
        case "python" if rest[0] != "-m":
            assert (ROOT / rest[0]).is_file()
        case "python":
            subprocess.run([sys.executable, "-m", rest[1], "--help"], capture_output=True, check=True)
        case "pytest" | "ruff" | "mypy" | "lint-imports":
            assert all((ROOT / word).exists() for word in rest if "/" in word)
        case "pre-commit":
            assert (ROOT / ".pre-commit-config.yaml").is_file()
        case other:
            assert other in FOREIGN


def parse(words: list[str]) -> None:
    """Parse the words as gr2 does, without running the command."""
    name, command, context = "gr2", get_command(cli), None
    try:
        while True:
            context = command.make_context(name, words, parent=context)
            if not isinstance(command, TyperGroup):
                return
            name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
    except typer.Exit:
        return  # --help and the like


def check_extras(words: list[str]) -> None:
    """`pip install '.[app,train]'` names extras that exist."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for word in words:
        if named := re.fullmatch(r"\.\[(.+)\]", word):
            assert set(named[1].split(",")) <= known.keys()


@pytest.mark.parametrize("code", examples(inline_commands()))
def test_every_command_and_option_named_in_a_sentence_exists(code: str) -> None:
    command = get_command(cli)
    for word in shlex.split(code)[1:]:
        if isinstance(command, TyperGroup) and (named := command.get_command(typer.Context(command), word)):
            command = named
        elif word.startswith("--"):
            assert word in {option for parameter in command.params for option in parameter.opts} | {"--help"}
        else:
            # Only a group that takes a name in place of a command, as sids does, goes on from here.
            assert not isinstance(command, TyperGroup) or command.name == "sids"


@pytest.fixture(scope="module")
def traced(built_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with traces and a snapshot called `demo`."""
    store = Store.open(shutil.copytree(built_shop, tmp_path_factory.mktemp("docs") / "gr2-store"))
    sample(store, EvidenceTeacher(), SamplingSettings("shop", limit=60))
    publish(store, "demo", SnapshotSettings("shop"))
    return store


@pytest.mark.parametrize("statement", examples(statements()))
def test_every_query_runs(statement: str, traced: Store) -> None:
    run_sql(traced, statement)


@pytest.mark.parametrize("statement", examples([found for found in statements() if found[0] == README]))
def test_every_query_of_the_readme_finds_something(statement: str, traced: Store) -> None:
    assert run_sql(traced, statement).height > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_python_of_the_readme_runs(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(traced.folder.parent)
    (block,) = blocks(README, "python")
    exec(compile(block, str(README), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_benchmarks_named_here_exist(page: Path) -> None:
    for name in re.findall(r"bench/\w+\.py", page.read_text("utf-8")):
        assert (ROOT / name).is_file(), name


def test_the_readme_is_short_and_begins_with_a_picture() -> None:
    text = README.read_bytes()
    assert len(text) <= 8_192
    assert b"![" in b"\n".join(text.splitlines()[:15])


def test_the_command_line_reference_is_what_the_code_gives(tmp_path: Path) -> None:
    made = tmp_path / "cli.md"
    command = [sys.executable, "-m", "typer", "app.cli", "utils", "docs", "--name", "gr2", "--output", str(made)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert made.read_text("utf-8") == GENERATED.read_text("utf-8"), "run `make docs` and commit docs/reference/cli.md"
