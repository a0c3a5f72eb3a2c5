import re
from pathlib import Path

import store
from store.queries import load_queries, query

ROOT = Path(store.__file__).parents[1]
CALL = re.compile(r"\.(?:execute|frame|rows|reader|insert|put)\(\s*\"(\w+)\"")


def used_names() -> set[str]:
    names = set()
    for package in ("store", "prompts", "curate", "train", "app"):
        for file in (ROOT / package).rglob("*.py"):
            for found in CALL.finditer(file.read_text("utf-8")):
                names.add(f"put_{found[1]}" if found[0].startswith(".put(") else found[1])
    return names


def test_every_statement_that_code_names_exists() -> None:
    assert used_names() <= load_queries().keys()


def test_every_statement_is_used() -> None:
    by_variable = {
        name for name in load_queries() if any(f'"{name}"' in file.read_text("utf-8") for file in ROOT.glob("*/*.py"))
    }
    assert load_queries().keys() - used_names() - by_variable == set()


def test_no_sql_stands_in_python() -> None:
    sql = re.compile(r"\"\s*(select .+ from|insert into|delete from|update .+ set|create table)\b", re.IGNORECASE)
    offenders = [
        str(file.relative_to(ROOT))
        for package in ("prompts", "curate", "train", "store")
        for file in (ROOT / package).rglob("*.py")
        if sql.search(file.read_text("utf-8"))
    ]
    assert offenders == []


def test_a_statement_comes_without_its_name_line() -> None:
    assert query("last_migration").startswith("select")
