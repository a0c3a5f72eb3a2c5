"""Named SQL: every statement lives in `store/sql/*.sql` under a line `-- name: its_name`.

Values are bound by DuckDB (`$name`), never formatted into the text.
"""

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


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


def query(name: str) -> str:
    """The text of one statement. Raises KeyError on an unknown name."""
    return load_queries()[name]
