import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from store import Store

Gr2 = Callable[..., subprocess.CompletedProcess[str]]
Ok = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, built_shop: Path, ok: Ok, gr2_process: Gr2) -> Path:
    """The shop's store, with traces and a snapshot made by the command line."""
    copied = Path(shutil.copytree(built_shop, tmp_path_factory.mktemp("cli") / "store"))
    traced = gr2_process("trace", "shop", "--store", copied, "--limit", 40)
    assert traced.returncode == 0, traced.stderr
    ok("snapshot", "publish", "shop", "--ruleset", "strict", "--store", copied)
    return copied


COMMANDS = ["demo", "simulate", "ingest", "sids", "candidates", "trace", "verify", "eval", "sql", "status", "app"]


def test_help_answers_without_heavy_imports() -> None:
    code = """
import runpy, sys
sys.argv = ["gr2", "--help"]
try:
    runpy.run_module("app.cli", run_name="__main__")
except SystemExit:
    pass
heavy = {"torch", "trl", "transformers", "datasets", "streamlit", "vllm", "ray", "sklearn", "openai", "lightgbm"}
print(sorted(heavy & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(command in done.stdout for command in [*COMMANDS, "snapshot"])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, ok: Ok) -> None:
    assert f"Example: gr2 {command}" in ok(command, "--help")


def test_ingest_from_files_to_a_store_that_it_makes(tmp_path: Path, ok: Ok) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{n},Item {n}\n" for n in range(6)))
    rows = [{"user_id": f"u{u}", "item_id": f"i{(u + n) % 6}", "timestamp": n} for u in range(6) for n in range(5)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["ingest", "mine", "--items", tmp_path / "items.csv", "--interactions", tmp_path / "log.jsonl"]
    out = ok(*words, "--store", tmp_path / "store")
    assert "mine: 6 users, 6 items, 30 interactions (18 train, 6 valid, 6 test)" in out
    assert "the store already had all of it" in ok(*words, "--store", tmp_path / "store")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status"], "there is no store in"),
        (["trace", "nope", "--store", "{shop}"], "no dataset is called 'nope'; there are: shop"),
        (["trace", "shop", "--store", "{shop}", "--teacher", "oracle"], "no teacher is called 'oracle'"),
        (["trace", "shop", "--store", "{shop}", "--teacher", "openai"], "teacher 'openai' needs"),
        (["verify", "shop", "--store", "{shop}", "--rules", "nice"], "no rule is called 'nice'"),
        (["sids", "nope", "--store", "{shop}"], "no dataset is called 'nope'; there are: shop"),
        (["candidates", "nope", "--store", "{shop}"], "no dataset is called 'nope'; there are: shop"),
        (["snapshot", "show", "nope", "--store", "{shop}"], "there is no snapshot 'nope'"),
        (["sql", "select nope", "--store", "{shop}"], "nope"),
        (["sql", "select 1", "--store", "{shop}", "--format", "xml"], "--format is 'xml'"),
        (
            ["ingest", "x", "--items", "none", "--interactions", "none", "--store", "{tmp}/s"],
            "none: there is no such file",
        ),
        (["ingest", "x", "--items", "{tmp}", "--interactions", "none", "--store", "{tmp}/s"], "this is a folder"),
        (["simulate", "x", "--items", "3", "--store", "{tmp}/s"], "--items is 3"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    folder: Path, tmp_path: Path, words: list[str], message: str, gr2: Gr2
) -> None:
    done = gr2(*(word.format(shop=folder, tmp=tmp_path) for word in words), cwd=tmp_path)
    assert_mistake(done, message)
    assert len(done.stderr.strip().splitlines()) == 1 or words[0] == "sql"


def test_a_mistake_ends_the_process_with_exit_code_2(folder: Path, gr2_process: Gr2) -> None:
    assert_mistake(gr2_process("sql", "select nope", "--store", folder), "nope")


def assert_mistake(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2, done
    assert message in done.stderr
    assert done.stderr.startswith("gr2: ")


def test_the_store_may_come_from_the_environment(folder: Path, gr2_process: Gr2) -> None:
    done = gr2_process("status", env={"GR2_STORE": str(folder), "PATH": ""})
    assert done.returncode == 0
    assert "funnel" in done.stdout


def test_status_shows_the_funnel(folder: Path, ok: Ok) -> None:
    out = ok("status", "--store", folder)
    for words in ("shop", "rerank_evidence.v1", "evidence.v1", "target_not_first", "cooccurrence.v1"):
        assert words in out


def test_tracing_again_has_nothing_to_ask(folder: Path, ok: Ok) -> None:
    assert "nothing to sample" in ok("trace", "shop", "--store", folder, "--limit", 40)


def test_verify_prints_rules_with_reasons(folder: Path, ok: Ok) -> None:
    out = ok("verify", "shop", "--store", folder)
    assert "target_not_first" in out
    assert "0 new verdicts" in out


def test_sql_prints_in_four_formats(folder: Path, tmp_path: Path, ok: Ok) -> None:
    query = "select trace_id, ranking, accepted, created_at from trace_browser order by trace_id limit 3"
    assert "trace_id" in ok("sql", query, "--store", folder)
    rows = json.loads(ok("sql", query, "--store", folder, "--format", "json"))
    assert len(rows) == 3
    csv = pl.read_csv(io.StringIO(ok("sql", query, "--store", folder, "--format", "csv")))
    assert csv["trace_id"].to_list() == [row["trace_id"] for row in rows]
    assert json.loads(csv["ranking"][0]) == rows[0]["ranking"]
    assert ok("sql", query, "--store", folder, "--format", "parquet", "--output", tmp_path / "x.parquet") == ""
    assert pl.read_parquet(tmp_path / "x.parquet")["ranking"].to_list() == [row["ranking"] for row in rows]


def test_sql_makes_control_characters_visible(folder: Path, ok: Ok) -> None:
    out = ok("sql", "select 'a' || chr(27) || '[31mred' as text", "--store", folder)
    assert "\x1b" not in out
    assert r"a\x1b[31mred" in out


@pytest.mark.slow
def test_a_reader_that_closes_early_is_no_failure(folder: Path) -> None:
    command = f"{sys.executable} -m app.cli sql 'from range(200000)' --format csv --store {folder} | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, check=False)
    assert done.stdout == "range\n"
    assert "Traceback" not in done.stderr


def test_snapshots_are_listed_shown_verified_and_rebuilt(folder: Path, ok: Ok) -> None:
    assert "sft" in ok("snapshot", "list", "--store", folder)
    assert '"ruleset": "strict"' in ok("snapshot", "show", "shop", "--store", folder)
    assert "all as published" in ok("snapshot", "verify", "shop", "--store", folder)
    assert "the rebuilt files are identical" in ok("snapshot", "rebuild", "shop", "--store", folder)
    assert "added" in ok("snapshot", "diff", "shop", "shop", "--store", folder)


def test_a_flipped_byte_is_found_with_exit_code_1(folder: Path, tmp_path: Path, gr2: Gr2) -> None:
    with Store.open(folder).reading() as session:
        ((path,),) = session.connection.execute("select path from snapshots").fetchall()
    file = next((folder / path / "data").glob("train-*.parquet"))
    whole = file.read_bytes()
    file.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    try:
        done = gr2("snapshot", "verify", "shop", "--store", folder)
    finally:
        file.write_bytes(whole)
    assert done.returncode == 1
    assert "was changed" in done.stderr


# TRL asks transformers by an old name whenever it generates.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_demo_runs_twice_and_ends_with_what_to_do_next(tmp_path: Path, ok: Ok) -> None:
    # So few shoppers that SFT ends before its log is due.
    words = ["demo", "--users", 60, "--items", 80, "--store", tmp_path / "store"]
    out = ok(*words, "--no-train")
    for text in ("60 users with routines", "demo@", "gr2 app", "load_dataset"):
        assert text in out
    assert "demo-dapo" not in out
    again = ok(*words)
    assert "(already there)" in again
    assert "nothing to sample" in again
    for ranker in ("cooccurrence.v1", "lambdamart", "oracle", "demo-dapo"):
        assert f"\n {ranker} " in again
    assert re.search(r"demo-sft: [1-9] steps; at the end loss [\d.]+, token accuracy [\d.]+", again)
    assert "--slices" in again
    # It fits two screens.
    assert len(again.splitlines()) <= 48
    third = ok(*words)
    assert third.count("is already trained") == 2
    assert third.count("(already there)") >= 3
    assert out.split(" demo@")[1].split(":")[0] == again.split(" demo@")[1].split(":")[0]


def test_the_full_demo_prints_every_table_of_a_dataset_of_its_own(tmp_path: Path, ok: Ok) -> None:
    out = ok("demo", "--full", "--no-train", "--users", 150, "--items", 80, "--store", tmp_path / "store")
    for text in ("demo-full: 150 users", "re-ranking", "oracle", "snapshot demo-full@", "funnel", "why traces fail"):
        assert text in out


def test_lines_that_cannot_become_traces_are_told_by_one_run_and_by_status(shop: Store, ok: Ok) -> None:
    words = ("trace", "shop", "--limit", 3, "--max-attempts", 1, "--store", shop.folder)
    assert "cannot be stored" not in ok(*words)
    (journal,) = shop.journals.glob("trace-*.jsonl")
    # As after a kill: what was committed is less than what the journal holds.
    with journal.open("ab") as file:
        file.write(b"<html>502 Bad Gateway</html>\n" + b'{"event": "received"}\n')
    told = ok(*words)
    rejected = journal.with_suffix(".rejected.jsonl")
    assert f"2 lines of its journal cannot be stored as traces; the lines and the reasons are in {rejected}" in told
    assert "cannot be stored" not in ok(*words)
    status = ok("status", "--store", shop.folder)
    assert f"2 lines of journals could not be stored as traces. The lines and the reasons are in: {rejected}" in status
    rejected.unlink()
    assert "could not be stored" not in ok("status", "--store", shop.folder)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--allowed-hosts", "gr2.example.org:8501"),
        ("--allowed-hosts", "https://gr2.example.org"),
        ("--allowed-hosts", "localhost,a/b"),
        ("--base-path", "a b"),
        ("--base-path", "/a/../b"),
        ("--base-path", "/a?b"),
        ("--base-path", "https://gr2.example.org/gr2"),
    ],
)
def test_what_is_no_host_or_path_of_the_app_is_refused(gr2: Gr2, option: str, value: str) -> None:
    done = gr2("app", option, value)
    assert done.returncode == 2
    assert option in done.stderr
