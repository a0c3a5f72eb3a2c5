"""What items and interactions look like in the files that people have.

Known are named columns under many names (JSON lines, CSV, TSV, Parquet; Amazon's dumps of 2014 and 2023 and MovieLens'
CSV are such files) and a few layouts without a header: MovieLens 100K and 1M, and Amazon's ratings-only CSV of 2014.
Rows come out as Arrow tables in chunks, with the line that each is from. Other files are read by formats of one's own
(`FORMATS`), which only say what stands in which column.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from curate.datasets.files import (
    fail,
    first_line,
    is_parquet,
    read_delimited_rows,
    read_json_rows,
    read_lines,
    read_parquet_rows,
    shorten,
)
from store.registry import Registry

CHUNK_ROWS = 50_000

ITEM_SCHEMA = pa.schema(
    {
        "item_id": pa.string(),
        "title": pa.string(),
        "categories": pa.list_(pa.string()),
        "brand": pa.string(),
        "description": pa.string(),
        "line": pa.int64(),
    }
)
INTERACTION_SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "position": pa.int64(),
        "timestamp": pa.timestamp("us"),
        "rating": pa.float32(),
        "line": pa.int64(),
    }
)

# Names of columns without case, underscores and what follows a colon (RecBole's types), the preferred first.
ITEM_NAMES = {
    "item_id": ("itemid", "parentasin", "asin", "movieid", "productid", "item"),
    "title": ("title", "name", "movietitle", "productname", "keyphrase"),
    "categories": ("categories", "category", "genres", "genre", "class"),
    "brand": ("brand", "store", "manufacturer"),
    "description": ("description",),
}
INTERACTION_NAMES = {
    "user_id": ("userid", "reviewerid", "user"),
    "item_id": ITEM_NAMES["item_id"],
    "position": ("position", "order"),
    "timestamp": ("timestamp", "unixreviewtime", "time", "datetime", "date", "sortingtimestamp"),
    "rating": ("rating", "overall", "stars"),
}
_NOTHING = {"", "unknown", "n/a", "na", "nan", "none", "null"}
_GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_LATEST = datetime(2200, 1, 1)  # noqa: DTZ001


Rows = Iterator[tuple[int, dict[str, Any]]]
"""The line of each row, from 1, and its values by the names of ITEM_SCHEMA or INTERACTION_SCHEMA.

Absent values are absent or None. Values are as the file has them: texts, numbers, times, lists; they are converted and
checked afterwards.
"""


class Format(NamedTuple):
    """How files are read: one function for items, one for interactions.

    Each gets the path of a file that is there and raises InputError, as by `curate.datasets.files.fail`, on a line that
    it cannot read and on a file that is not of its format.
    """

    items: Callable[[Path], Rows]
    interactions: Callable[[Path], Rows]


@dataclass(frozen=True, slots=True)
class _Layout:
    """A file without a header: its delimiter, encoding, and which field is what."""

    format: str
    delimiter: str
    fields: int
    columns: Mapping[str, int]
    encoding: str = "utf-8"


_INTERACTION_LAYOUTS = (
    _Layout("movielens", "\t", 4, {"user_id": 0, "item_id": 1, "rating": 2, "timestamp": 3}),
    _Layout("movielens", "::", 4, {"user_id": 0, "item_id": 1, "rating": 2, "timestamp": 3}),
    _Layout("amazon-2014", ",", 4, {"user_id": 0, "item_id": 1, "rating": 2, "timestamp": 3}),
)
_ITEM_LAYOUTS = (
    _Layout("movielens", "|", 24, {"item_id": 0, "title": 1, "categories": 5}, "latin-1"),
    _Layout("movielens", "::", 3, {"item_id": 0, "title": 1, "categories": 2}, "latin-1"),
)


def read_items(path: Path, format: str = "auto") -> Iterator[pa.Table]:  # noqa: A002
    """Items in chunks of ITEM_SCHEMA; empty texts are null, categories a path from general to specific.

    Raises InputError with file and line on whatever does not fit.
    """
    rows = _open(path, FORMATS.find(format).items)
    converters: dict[str, Callable[[Any], Any]] = {
        "item_id": _identifier,
        "title": _text,
        "categories": _categories,
        "brand": _text,
        "description": _text,
    }
    return _chunks(path, rows, ITEM_SCHEMA, converters)


def read_interactions(path: Path, format: str = "auto") -> Iterator[pa.Table]:  # noqa: A002
    """Interactions in chunks of INTERACTION_SCHEMA; `position` or `timestamp` (UTC) is null where the file has none.

    Raises InputError with file and line on whatever does not fit.
    """
    rows = _open(path, FORMATS.find(format).interactions)
    converters: dict[str, Callable[[Any], Any]] = {
        "user_id": _identifier,
        "item_id": _identifier,
        "position": _whole_number,
        "timestamp": _timestamp,
        "rating": _number,
    }
    return _chunks(path, _with_time(path, rows), INTERACTION_SCHEMA, converters)


def _open(path: Path, read: Callable[[Path], Rows]) -> Rows:
    """The rows of a file. Raises InputError where it is not there, is empty or a folder."""
    is_parquet(path)
    return read(path)


def _rows(
    path: Path,
    format: str,  # noqa: A002
    names: Mapping[str, Sequence[str]],
    layouts: Sequence[_Layout],
    required: Sequence[str],
) -> Rows:
    """Rows by our column names, with their lines; absent columns are absent."""
    if is_parquet(path):
        return _named_rows(path, read_parquet_rows(path), names, required)
    start = first_line(path, "latin-1").lstrip("\ufeffï»¿")
    if start.lstrip().startswith("{"):
        rows = _literal_rows(path) if _is_literal(start) and format in ("auto", "amazon-2014") else read_json_rows(path)
        return _named_rows(path, rows, names, required)
    if start.lstrip().startswith("["):
        fail(path, 1, "a JSON array; one object a line is wanted (jq -c '.[]' makes that)")
    delimiter = max("\t,|;", key=start.count)
    known = {name for synonyms in names.values() for name in synonyms}
    if start.count(delimiter) and any(_normal(name) in known for name in start.split(delimiter)):
        return _headed_rows(path, delimiter, names, required)
    for layout in layouts:
        # Amazon's ratings come in two orders of columns, so that layout is taken on the user's word alone.
        allowed = format == layout.format or (format == "auto" and layout.format == "movielens")
        if allowed and len(start.split(layout.delimiter)) == layout.fields:
            return _laid_out_rows(path, layout)
    return fail(
        path,
        1,
        f"the first line names no column that is known, such as {', '.join(required)}, and fits no format without a "
        f"header: {shorten(start)}; give the `format`, one of {', '.join(FORMATS.names()[1:])}, or add a header",
    )


def _built_in(format: str) -> Format:  # noqa: A002
    """gr2's own formats differ in what they take a file without a header for."""
    return Format(
        partial(_rows, format=format, names=ITEM_NAMES, layouts=_ITEM_LAYOUTS, required=("item_id",)),
        partial(
            _rows,
            format=format,
            names=INTERACTION_NAMES,
            layouts=_INTERACTION_LAYOUTS,
            required=("user_id", "item_id"),
        ),
    )


FORMATS: Registry[Format] = Registry(
    "format",
    "gr2.formats",
    {name: _built_in(name) for name in ("auto", "generic", "amazon-2014", "amazon-2023", "movielens")},
    Format,
)


def _named_rows(
    path: Path,
    rows: Rows,
    names: Mapping[str, Sequence[str]],
    required: Sequence[str],
) -> Rows:
    """Rows of objects, whose keys may differ from row to row."""
    ours: dict[str, tuple[str, int] | None] = {}
    for number, row in rows:
        found: dict[str, Any] = {}
        places: dict[str, int] = {}
        for key, value in row.items():
            if key not in ours:
                ours[key] = _find_name(key, names)
            match = ours[key]
            if match is None or value is None or value == "":
                continue
            column, place = match
            if place < places.get(column, 99):
                found[column], places[column] = value, place
        for column in required:
            if column not in found:
                fail(path, number, f"no {column}; its columns are {shorten(', '.join(map(str, row)))}")
        yield number, found


def _headed_rows(path: Path, delimiter: str, names: Mapping[str, Sequence[str]], required: Sequence[str]) -> Rows:
    """Rows under a header."""
    rows = read_delimited_rows(path, delimiter)
    _, header = next(rows)
    matches = [(match, index) for index, name in enumerate(header) if (match := _find_name(name, names))]
    columns = {column: index for (column, _), index in sorted(matches, key=lambda pair: -pair[0][1])}
    for column in required:
        if column not in columns:
            fail(path, 1, f"no column {column}; its columns are {', '.join(header)}")
    empty = True
    for number, fields in rows:
        empty = False
        yield number, {column: fields[index] for column, index in columns.items()}
    if empty:
        fail(path, 1, "nothing follows the header")


def _laid_out_rows(path: Path, layout: _Layout) -> Rows:
    for number, fields in read_delimited_rows(path, layout.delimiter, layout.encoding):
        row: dict[str, Any] = {column: fields[index] for column, index in layout.columns.items()}
        if layout.fields == 24:
            flags = fields[layout.columns["categories"] :]
            row["categories"] = [genre for genre, flag in zip(_GENRES[1:], flags[1:], strict=True) if flag == "1"]
        yield number, row


def _is_literal(line: str) -> bool:
    """Whether a line is one of Amazon's metadata of 2014: a Python dictionary in single quotes."""
    return line.lstrip("{ ").startswith("'")


def _literal_rows(path: Path) -> Rows:
    for number, line in read_lines(path):
        try:
            row = ast.literal_eval(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            row = None
        if not isinstance(row, dict):
            fail(path, number, f"this is no Python dictionary, as in Amazon's metadata of 2014: {shorten(line)}")
        yield number, row


def _with_time(path: Path, rows: Rows) -> Rows:
    for number, row in rows:
        if row.get("timestamp") is None and row.get("position") is None:
            fail(
                path, number, "neither timestamp nor position; one of them must tell the order of a user's interactions"
            )
        yield number, row


def _chunks(
    path: Path,
    rows: Rows,
    schema: pa.Schema,
    converters: Mapping[str, Callable[[Any], Any]],
) -> Iterator[pa.Table]:
    """Convert values and gather rows; an error names the column and the value."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}

    def gathered() -> pa.Table:
        try:
            return pa.table(columns, schema=schema)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            fail(
                path, columns["line"][0], f"a value in the {len(columns['line'])} lines from here is not text: {error}"
            )

    for number, row in rows:
        if unknown := row.keys() - converters.keys():
            fail(path, number, f"the format gives columns {sorted(unknown)}; known are {', '.join(converters)}")
        for column, convert in converters.items():
            try:
                columns[column].append(convert(row.get(column)))
            except (ValueError, TypeError, OverflowError) as error:
                fail(path, number, f"{column} is {shorten(row.get(column))}: {error}")
        columns["line"].append(number)
        if len(columns["line"]) == CHUNK_ROWS:
            yield gathered()
            columns = {name: [] for name in schema.names}
    if columns["line"]:
        yield gathered()


def _find_name(name: str, names: Mapping[str, Sequence[str]]) -> tuple[str, int] | None:
    """Our name for a column, and how well it fits: 0 is best."""
    normal = _normal(name)
    return next(((column, known.index(normal)) for column, known in names.items() if normal in known), None)


def _normal(name: str) -> str:
    return str(name).split(":", 1)[0].strip().strip('"').lower().replace("_", "").replace(" ", "")


def _identifier(value: Any) -> str:
    """Identifiers are texts; 5 and 5.0 are "5"."""
    if isinstance(value, str):
        text = value.strip()
    elif isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    elif isinstance(value, float) and value.is_integer():
        text = str(int(value))
    else:
        raise ValueError("it must be text or a whole number")
    if not text:
        raise ValueError("it must not be empty")
    return text


def _text(value: Any) -> str | None:
    """Text, lists of texts joined; None for what says that there is none."""
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    if value is None:
        return None
    if not isinstance(value, str | int | float):
        raise ValueError("it must be text")
    text = str(value).strip()
    return None if text.lower() in _NOTHING else text


def _categories(value: Any) -> list[str]:
    """A path: a list, the longest of several lists (Amazon 2014), `a > b > c`, or `a|b|c`."""
    if value is None:
        return []
    if isinstance(value, str):
        value = value.split(">" if ">" in value else "|")
    if not isinstance(value, list):
        raise ValueError("it must be a list or a text such as 'a > b > c'")
    if value and all(isinstance(path, list) for path in value):
        value = max(value, key=len)
    if not all(isinstance(part, str) for part in value):
        raise ValueError("each category must be text")
    return [part.strip() for part in value if part.strip().lower() not in _NOTHING]


def _whole_number(value: Any) -> int | None:
    if value is None or value == "":
        return None
    number = _number(value)
    if number is None or not number.is_integer() or abs(number) >= 2**62:
        raise ValueError("it must be a whole number")
    return int(number)


def _number(value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("it must be a number")
    try:
        return float(value)
    except ValueError:
        raise ValueError("it must be a number") from None


def _timestamp(value: Any) -> datetime | None:
    """UTC, from seconds, milliseconds or microseconds since 1970 (by size) or ISO 8601; naive times are UTC."""
    if value is None or value == "":
        return None
    if isinstance(value, datetime):
        moment = value
    else:
        try:
            seconds = _number(value)
        except ValueError:
            try:
                moment = datetime.fromisoformat(str(value))
            except ValueError:
                raise ValueError("it must be unix time or ISO 8601") from None
        else:
            if seconds is None or not 0 <= seconds < 1e17:
                raise ValueError("it must be unix time from 1970 on")
            while seconds > 1e11:
                seconds /= 1000
            moment = datetime(1970, 1, 1) + timedelta(seconds=seconds)  # noqa: DTZ001
    moment = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    if moment >= _LATEST:
        raise ValueError("it lies after the year 2200")
    return moment
