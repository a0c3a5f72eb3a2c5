import re
from dataclasses import fields
from pathlib import Path

import pytest

import store
from curate.traces.filter import TraceFilter
from store.queries import load_queries, query

ROOT = Path(store.__file__).parents[1]
PACKAGES = ("store", "prompts", "curate", "train", "app")
CALL = re.compile(r"\.(?:execute|frame|rows|reader|insert|put)\(\s*\"(\w+)\"")


def used_names() -> set[str]:
    names = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for found in CALL.finditer(file.read_text("utf-8")):
                names.add(f"put_{found[1]}" if found[0].startswith(".put(") else found[1])
    return names


def test_every_statement_that_code_names_exists() -> None:
    assert used_names() <= load_queries().keys()


def test_every_statement_is_used() -> None:
    code = [file.read_text("utf-8") for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    by_variable = {name for name in load_queries() if any(f'"{name}"' in text for text in code)}
    conditions = {f"where_{field.name}" for field in fields(TraceFilter)}
    assert load_queries().keys() - used_names() - by_variable == conditions


def test_conditions_are_put_where_a_statement_takes_them() -> None:
    text = query("count_traces", ["where_split", "where_fails"])
    assert "and (split = $split\n)" in text
    assert text.index("$split") < text.index("$fails")
    with pytest.raises(ValueError, match="cannot be filtered"):
        query("last_migration", ["where_split"])


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
