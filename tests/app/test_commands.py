import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

import curate
import train
from app.cli import COMMANDS, cli, main
from app.former_spellings import FLAGS
from curate.datasets.formats import FORMATS
from curate.datasets.ingest import IngestSettings
from curate.datasets.simulator import SimulatorSettings
from curate.evaluation.rankers.selection import RANKERS
from curate.evaluation.settings import EvalSettings
from curate.sids.methods import EMBEDDERS
from curate.sids.settings import EmbedderSettings, PurchaseSettings, ResidualKMeansSettings
from curate.snapshots import KINDS, SnapshotSettings
from curate.traces.settings import RequestSettings, SamplingSettings
from curate.traces.teachers.selection import TEACHERS
from curate.traces.teachers.settings import OpenAISettings
from store.settings import options_of
from train.dapo.settings import DapoSettings
from train.distillation.settings import DistillationSettings
from train.midtrain.settings import MidtrainSettings
from train.ranking.settings import FullRankingSettings, SelectionSettings, StudentSettings
from train.sft.settings import SftSettings
from train.sids.settings import RqVaeSettings
from train.students.settings import InitSettings

SETTINGS: dict[str, tuple[type, ...]] = {
    "simulate": (SimulatorSettings,),
    "ingest": (IngestSettings,),
    "sids make": (ResidualKMeansSettings, RqVaeSettings, EmbedderSettings, PurchaseSettings),
    "candidates": (FullRankingSettings,),
    "trace": (SamplingSettings, OpenAISettings, RequestSettings),
    "snapshot publish": (SnapshotSettings,),
    "train init": (InitSettings,),
    "train midtrain": (MidtrainSettings,),
    "train sft": (SftSettings, SelectionSettings),
    "train dapo": (DapoSettings, SelectionSettings),
    "train distill": (DistillationSettings, SelectionSettings),
    "eval": (EvalSettings, StudentSettings, RequestSettings),
}


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    context = typer.Context(command)
    if not hasattr(command, "list_commands"):
        yield " ".join(path), command
        return
    for name in command.list_commands(context):
        yield from walk(command.get_command(context, name), (*path, name))


LEAVES = dict(walk(typer.main.get_command(cli)))


def option_of(command: str, name: str) -> Any:
    (option,) = (param for param in LEAVES[command].params if param.name == name)
    return option


def help_of(command: str) -> str:
    return " ".join(LEAVES[command].get_help(typer.Context(LEAVES[command])).split())


@pytest.fixture
def gr2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process; returns exit code, output and errors."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gr2", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.mark.parametrize("command", LEAVES)
def test_every_option_is_described_and_every_command_ends_with_an_example(command: str) -> None:
    for param in LEAVES[command].params:
        text = re.sub(r" +\[[^]]*\]$", "", param.help or "")
        assert re.fullmatch(r"\S.*[.?]", text, re.DOTALL), (param.name, param.help)
    assert LEAVES[command].help.rsplit("\n\n", 1)[1].startswith(f"Example: gr2 {command.removesuffix(' make')}")


@pytest.mark.parametrize(
    ("command", "settings"), [(command, each) for command, classes in SETTINGS.items() for each in classes]
)
def test_options_have_default_range_choices_and_help_of_their_fields(command: str, settings: type) -> None:
    defaults = {field.name: field.default for field in fields(settings)}
    shown = {name: known for name, known in options_of(settings).items() if known.help}
    assert shown
    for name, known in shown.items():
        option, default = option_of(command, name), defaults[name]
        assert option.opts[0] == f"--{(known.flag or name).replace('_', '-')}"
        assert f"{option.opts[0]} " in help_of(command)
        assert option.help.startswith(known.help)
        assert option.rich_help_panel == known.group
        if known.choices:
            assert option.metavar == "|".join(known.choices)
        elif known.allowed:
            assert option.help.endswith(f"{known.allowed}]")
        if isinstance(default, bool):
            # What is on by default can be turned off.
            assert bool(option.secondary_opts) is default
        elif default not in (None, MISSING, ()):
            typed = ",".join(default) if isinstance(default, tuple) else default
            assert option.default == typed
            assert f"[default: {typed}" in option.help


def test_no_settings_are_forgotten() -> None:
    known = {each for classes in SETTINGS.values() for each in classes}
    for package in (curate, train):
        root = Path(package.__path__[0])
        for file in root.rglob("settings.py"):
            module = importlib.import_module(".".join(file.relative_to(root.parent).with_suffix("").parts))
            for each in vars(module).values():
                if isinstance(each, type) and is_dataclass(each):
                    shown = any(option.help for option in options_of(each).values())
                    assert not shown or any(issubclass(other, each) for other in known), each


def test_help_lists_the_names_that_are_built_in() -> None:
    for registry, command, option in (
        (FORMATS, "ingest", "format"),
        (KINDS, "snapshot publish", "kind"),
        (RANKERS, "eval", "rankers"),
        (TEACHERS, "trace", "teacher"),
        (EMBEDDERS, "sids make", "kind"),
    ):
        for name in (*registry.builtin, "module:object"):
            assert name in option_of(command, option).help


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "trace shop --max-attempts 1 --num-accepted 2",
            "--num-accepted is 2; it must not be more than --max-attempts, 1",
        ),
        ("trace shop --temperature 3", "--temperature is 3.0; it must be from 0 to 2"),
        ("trace shop --split tset", "--split is 'tset'; it must be train, valid or test"),
        (
            "eval shop --modes reasoning,aloud",
            "--modes is 'aloud'; it must be reasoning, direct",
        ),
        ("eval shop --shuffles 1", "--shuffles is 1; it must be 0, or 2 or more to compare"),
        ("candidates shop --beams 0", "--beams is 0; it must be 1 or more"),
        ("train init shop --name x --size huge", "--size is 'huge'; it must be tiny, small or base"),
        (
            "train sft shop --optimizer muon --lora-rank 4",
            "--lora-rank is 4, but --optimizer is muon; LoRA needs adamw",
        ),
        (
            "train dapo shop --save-steps 5 --num-iterations 2",
            "--save-steps is 5; it must be a multiple of --num-itera",
        ),
        ("train midtrain shop --max-length 1", "--max-length is 1; it must be 2 or more"),
        ("simulate x --items 3", "--items is 3; it must be 76 or more"),
        ("status --store nowhere", "or choose another --store"),
    ],
)
def test_errors_name_flags(gr2: Any, words: str, message: str) -> None:
    code, _, err = gr2(*words.split())
    assert code == 2
    assert err.startswith("gr2: ")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "old", "new"), [(command, *pair) for command, pairs in FLAGS.items() for pair in pairs.items()]
)
@pytest.mark.parametrize("form", ["{flag}={value}", "{flag} {value}"])
def test_former_flags_still_work_with_a_warning(
    command: str, old: str, new: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = (each for path, each in LEAVES.items() if path.split()[-1] == command)
    (option,) = (param for param in found.params if new in param.opts)

    def params(flag: str) -> dict[str, Any]:
        words = form.format(flag=flag, value=7).split()
        made: dict[str, Any] = found.make_context(command, ["shop", *words]).params
        return made

    assert params(old) == params(new)
    assert str(params(new)[option.name]).startswith("7")
    assert capsys.readouterr().err == f"gr2: {old} is now {new}; the old name will be removed in 0.3\n"
    assert old not in help_of(next(path for path in LEAVES if path.split()[-1] == command)).split()


@pytest.mark.parametrize(
    ("command", "words", "name", "value", "warnings"),
    [
        (
            "trace",
            "--policy all",
            "ruleset",
            "answered",
            ["--policy is now --ruleset", "--ruleset all is now --ruleset a"],
        ),
        ("snapshot publish", "--ruleset all", "ruleset", "answered", ["--ruleset all is now --ruleset answered"]),
        ("train dapo", "--reward paper", "reward", "conditional", ["--reward paper is now --reward conditional"]),
        ("train dapo", "--reward plain", "reward", "unconditional", ["--reward plain is now --reward unconditional"]),
        ("train dapo", "--reward gated", "reward", "format_gated", ["--reward gated is now --reward format_gated"]),
        (
            "eval",
            "--rankers evidence,ceiling",
            "rankers",
            "evidence,oracle",
            ["--rankers ceiling is now --rankers oracle"],
        ),
        (
            "verify",
            "--rules grounded,complete",
            "rules",
            "grounded,not_truncated",
            ["--rules complete is now --rules n"],
        ),
        ("trace", "--ruleset paper", "ruleset", "paper", []),
    ],
)
def test_former_values_still_work_with_a_warning(
    command: str, words: str, name: str, value: str, warnings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    context = LEAVES[command].make_context(command, ["shop", *words.split()])
    assert context.params[name] == value
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(warnings)
    for line, warning in zip(lines, warnings, strict=True):
        assert line.startswith(f"gr2: {warning}")


def test_former_flags_reach_the_core(shop: Any, gr2: Any, tmp_path: Path) -> None:
    code, _, err = gr2("candidates", "shop", "--from", tmp_path / "none.parquet", "--store", shop.folder)
    assert code == 2
    warning, error = err.splitlines()
    assert warning == "gr2: --from is now --scores; the old name will be removed in 0.3"
    assert (
        error
        == f"gr2: {tmp_path / 'none.parquet'} is not a file; --scores must be Parquet with user_id, item_id, score"
    )


def test_the_version_is_told(gr2: Any) -> None:
    code, out, _ = gr2("--version")
    assert code == 0
    assert re.fullmatch(r"gr2 \d+\.\d+\.\d+\S*\n", out)


def test_a_typing_error_is_answered_with_the_nearest_command(gr2: Any) -> None:
    code, _, err = gr2("tarce")
    assert code == 2
    assert "Did you mean 'trace'?" in err


def test_every_command_of_the_list_is_there() -> None:
    context = typer.Context(typer.main.get_command(cli))
    group: Any = typer.main.get_command(cli)
    for name, entry in COMMANDS.items():
        assert group.get_command(context, name).name == name
        assert len(entry.summary) <= 60
    assert group.get_command(context, "nope") is None


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("gr2 t", ["trace", "train"]),
        ("gr2 --ver", ["--version"]),
        ("gr2 train d", ["dapo", "distill"]),
        ("gr2 train dapo --num-g", ["--num-generations"]),
        ("gr2 trace --split v", ["valid"]),
        ("gr2 trace ", ["beauty"]),
        ("gr2 snapshot show --store {store} b", ["beauty-sft"]),
        ("gr2 train sft --student ", ["newborn"]),
        ("gr2 eval beauty --student new", ["newborn"]),
        ("gr2 snapshot show --store {store}/none b", []),
    ],
)
def test_a_shell_completes_commands_options_and_names(
    words: str, completions: list[str], gr2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("models/sids/beauty", "models/students/newborn", "snapshots/beauty-sft", "snapshots/.temporary-1"):
        (tmp_path / folder).mkdir(parents=True)
    typed = words.format(store=tmp_path)
    monkeypatch.setenv("GR2_STORE", str(tmp_path))
    monkeypatch.setenv("_GR2_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split(" ")) - 1))
    code, out, err = gr2()
    assert (code, out.split(), err) == (0, completions, "")


def test_the_completion_script_can_be_shown() -> None:
    # Typer finds out which shell it is for by looking at the processes above it, and a test run may have none there.
    script = f'{sys.executable} -c "from app.cli import main; main()" --show-completion; exit $?'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert "_COMPLETE=complete_bash" in done.stdout


@pytest.mark.parametrize("words", ["--help", "train dapo --help", "trace --help", "sids make --help"])
def test_help_imports_no_library_that_is_slow_to_import(words: str) -> None:
    code = """
import sys
from app.cli import main
try:
    main()
except SystemExit:
    pass
slow = {"torch", "trl", "transformers", "datasets", "streamlit", "sklearn", "openai", "lightgbm", "duckdb", "polars"}
print(sorted(slow & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "Usage: " in done.stdout
