"""Named SQL: every statement is in `store/sql/*.sql` under a line `-- name: its_name`.

DuckDB binds values (`$name`); they are never formatted into the text. A statement that users can filter has a line
`-- and: conditions`, which is replaced by the selected conditions. These are named statements too. A query thus
contains only the conditions in use: DuckDB is many times slower with conditions that null parameters switch off.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_CONDITIONS = "-- and: conditions"


@cache
def load_queries() -> dict[str, str]:
    """The texts of all named statements of the package, by name. Raises ValueError on a repeated name."""
    queries: dict[str, str] = {}
    for file in sorted(files("store").joinpath("sql").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        # Splitting by a pattern with a group gives the head of the file, then names and texts in turn.
        _, *parts = _NAME.split(file.read_text("utf-8"))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in queries:
                raise ValueError(f"{file.name}: there are two statements {name!r}; give this one another name")
            queries[name] = text.strip()
    return queries


def query(name: str, where: Sequence[str] = ()) -> str:
    """The text of one statement. where: names of conditions, all of which the rows must meet.

    Raises KeyError on an unknown name, and ValueError if the statement takes no conditions.
    """
    text = load_queries()[name]
    if not where:
        return text
    if _CONDITIONS not in text:
        raise ValueError(f"the statement {name!r} has no line {_CONDITIONS!r}, so it cannot be filtered")
    return text.replace(_CONDITIONS, "\n".join(f"and ({load_queries()[condition]}\n)" for condition in where))
