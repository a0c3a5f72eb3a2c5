import re
from pathlib import Path

import store as store_package
from store import Store

DOCUMENT = Path(store_package.__file__).parents[1] / "docs" / "reference" / "data-model.md"


def documented() -> dict[str, list[str]]:
    """Columns by table or view, as docs/reference/data-model.md lists them."""
    tables: dict[str, list[str]] = {}
    for part in DOCUMENT.read_text("utf-8").split("\n### ")[1:]:
        name = part.split("\n", 1)[0].removeprefix("labels.")
        rows = re.findall(r"^\| ([a-z_0-9, ]+) \|", part, re.MULTILINE)
        tables[name] = [column for row in rows if row != "column" for column in row.split(", ")]
    return tables


def existing(store: Store) -> dict[str, list[str]]:
    with store.reading() as session:
        rows = session.connection.execute(
            "select table_name, column_name from information_schema.columns"
            " where table_catalog in ('store', 'labels') order by table_name, ordinal_position"
        ).fetchall()
    tables: dict[str, list[str]] = {}
    for table, column in rows:
        if column not in tables.setdefault(table, []):
            tables[table].append(column)
    return tables


def test_every_table_view_and_column_is_documented_and_nothing_else(store: Store) -> None:
    described = {name: sorted(columns) for name, columns in documented().items() if not name.endswith(")")}
    assert described == {name: sorted(columns) for name, columns in existing(store).items()}


def test_the_macro_is_documented(store: Store) -> None:
    assert "accepted_traces(ruleset)" in documented()
    with store.reading() as session:
        assert session.connection.execute("select count(*) from accepted_traces('strict')").fetchone() == (0,)
