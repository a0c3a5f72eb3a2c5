"""Named SQL: every statement lives in `store/sql/*.sql` under a line `-- name: its_name`.

Values are bound by DuckDB (`$name`), never formatted into the text. Where people choose what to filter by, a statement
has a line `-- and: conditions`; the conditions, named statements too, take its place. So each query holds what was
asked for and no more: DuckDB runs conditions that null parameters switch off many times slower.
"""

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_CONDITIONS = "-- and: conditions"


@cache
def load_queries() -> dict[str, str]:
    """All named statements of the package. Raises ValueError on a name that is given twice."""
    queries: dict[str, str] = {}
    for file in sorted(files("store").joinpath("sql").iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".sql"):
            continue
        _, *parts = _NAME.split(file.read_text("utf-8"))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in queries:
                raise ValueError(f"{file.name}: the statement {name!r} is named a second time; give it another name")
            queries[name] = text.strip()
    return queries


def query(name: str, where: Sequence[str] = ()) -> str:
    """The text of one statement; `where`: names of conditions that rows must meet, all of them.

    Raises KeyError on an unknown name, ValueError where the statement takes no conditions.
    """
    text = load_queries()[name]
    if not where:
        return text
    if _CONDITIONS not in text:
        raise ValueError(f"the statement {name!r} has no line {_CONDITIONS!r}, so it cannot be filtered")
    return text.replace(_CONDITIONS, "\n".join(f"and ({load_queries()[condition]}\n)" for condition in where))
