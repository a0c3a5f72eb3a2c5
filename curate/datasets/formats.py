"""The formats of files of items and interactions.

Built-in formats read columns under many known names (`curate.datasets.columns`; JSON, CSV, TSV, Parquet), JSON
documents that map identifiers to properties, and a few layouts without a header: MovieLens 100K and 1M, and the
ratings-only CSV of Amazon 2014 and 2018. Users can register more formats in `FORMATS`. A format only says which column
is which. Rows are returned as Arrow tables in chunks, with the line number of each row.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from curate.datasets.columns import INTERACTION_NAMES, ITEM_NAMES, LOG_ITEM_NAMES, Columns, GivenColumns, Rows
from curate.datasets.files import (
    fail,
    first_line,
    is_json_array,
    is_parquet,
    read_delimited_rows,
    read_json_array,
    read_json_rows,
    read_lines,
    shorten,
)
from curate.datasets.times import parse_numeric_date, parse_time, read_numeric_date
from curate.datasets.values import to_categories, to_identifier, to_number, to_rating, to_text, to_whole_number
from store import InputError
from store.registry import Registry

CHUNK_ROWS = 50_000
# A document is read into memory as a whole.
MAX_DOCUMENT_CHARACTERS = 1 << 29

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
LOG_SCHEMA = pa.schema([*INTERACTION_SCHEMA, *(field for field in ITEM_SCHEMA if field.name in LOG_ITEM_NAMES)])
"""Interactions with the item columns of the same file."""

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

Converters = Mapping[str, Callable[[Any], Any]]
_ITEM_CONVERTERS: Converters = {
    "item_id": to_identifier,
    "title": to_text,
    "categories": to_categories,
    "brand": to_text,
    "description": to_text,
}
_INTERACTION_CONVERTERS: Converters = {
    "user_id": to_identifier,
    "item_id": to_identifier,
    "position": to_whole_number,
    "timestamp": parse_time,
    "rating": to_rating,
}


class Format(NamedTuple):
    """Two functions that read files of this format: one for items, one for interactions.

    Each gets the path of an existing file. It raises InputError, for example by `curate.datasets.files.fail`, on a line
    that it cannot read and on a file in another format.
    """

    items: Callable[[Path], Rows]
    interactions: Callable[[Path], Rows]


@dataclass(frozen=True, slots=True)
class _Layout:
    """A file without a header: its delimiter, its number of fields, and the index of each column.

    fallback: the encoding of lines that are not UTF-8.
    """

    format: str
    delimiter: str
    fields: int
    columns: Mapping[str, int]
    fallback: str | None = None


_INTERACTION_LAYOUTS = (
    _Layout("movielens", "\t", 4, {"user_id": 0, "item_id": 1, "rating": 2, "timestamp": 3}),
    _Layout("movielens", "::", 4, {"user_id": 0, "item_id": 1, "rating": 2, "timestamp": 3}),
    _Layout("amazon-2014", ",", 4, {"user_id": 0, "item_id": 1, "rating": 2, "timestamp": 3}),
    _Layout("amazon-2018", ",", 4, {"item_id": 0, "user_id": 1, "rating": 2, "timestamp": 3}),
)
_ITEM_LAYOUTS = (
    _Layout("movielens", "|", 24, {"item_id": 0, "title": 1, "categories": 5}, "latin-1"),
    _Layout("movielens", "::", 3, {"item_id": 0, "title": 1, "categories": 2}, "latin-1"),
)


class _Kind(NamedTuple):
    """Items or interactions: known column names, required columns, and layouts without a header."""

    names: Mapping[str, Sequence[str]]
    required: Sequence[str]
    layouts: Sequence[_Layout]


_ITEMS = _Kind(ITEM_NAMES, ("item_id",), _ITEM_LAYOUTS)
_INTERACTIONS = _Kind(INTERACTION_NAMES, ("user_id", "item_id"), _INTERACTION_LAYOUTS)
_LOG = _INTERACTIONS._replace(names={**INTERACTION_NAMES, **LOG_ITEM_NAMES})


def read_items(path: Path, format: str = "auto", given: GivenColumns | None = None) -> Iterator[pa.Table]:  # noqa: A002
    """Items in chunks of ITEM_SCHEMA. Empty texts are null, and categories are a path from general to specific.

    given: column names from the user. Raises InputError with file and line on invalid input.
    """
    return _chunks(path, _open(path, format, _ITEMS, given), ITEM_SCHEMA, _ITEM_CONVERTERS)


def read_interactions(
    path: Path,
    format: str = "auto",  # noqa: A002
    given: GivenColumns | None = None,
    *,
    items_too: bool = False,
    rating_counts: bool = False,
    date_order: str = "auto",
) -> Iterator[pa.Table]:
    """Interactions in chunks of INTERACTION_SCHEMA. `position` or `timestamp` (UTC) is null if the file has none.

    given: column names from the user. items_too: return chunks of LOG_SCHEMA, which include the item columns of the
    file. rating_counts: ratings are used, so NaN is an error and not a missing rating. date_order: one of DATE_ORDERS,
    for dates such as 03/04/2019. Raises InputError with file and line on invalid input.
    """
    rows = _with_time(path, _open(path, format, _LOG if items_too else _INTERACTIONS, given))
    times = _Times(lambda: _open(path, format, _INTERACTIONS, given), date_order)
    converters = {**_INTERACTION_CONVERTERS, "timestamp": times.parse}
    if rating_counts:
        converters["rating"] = to_number
    if items_too:
        converters |= {name: _ITEM_CONVERTERS[name] for name in LOG_ITEM_NAMES}
    return _chunks(path, rows, LOG_SCHEMA if items_too else INTERACTION_SCHEMA, converters)


class _Times:
    """Parses the times of a file. All its dates together show whether 03/04/2019 has the day first.

    open_rows: returns the rows of the file from the beginning. order: one of DATE_ORDERS.
    """

    def __init__(self, open_rows: Callable[[], Rows], order: str) -> None:
        self._open_rows = open_rows
        self._order = order

    def parse(self, value: Any) -> datetime | None:
        """A moment in UTC, without a time zone, or None for a missing value. Raises ValueError on anything else."""
        try:
            return parse_time(value)
        except ValueError:
            if read_numeric_date(value) is None:
                raise
        return parse_numeric_date(value, day_first=self._day_first)

    @cached_property
    def _day_first(self) -> bool:
        if self._order != "auto":
            return self._order == "day-first"
        # This reads the file a second time, but only if it has such dates.
        first = second = 0
        for _, row in self._open_rows():
            numbers = read_numeric_date(row.get("timestamp")) or (0, 0)
            first, second = max(first, numbers[0]), max(second, numbers[1])
        if (first > 12) == (second > 12):
            raise ValueError(
                f"the first numbers of the dates go up to {first} and the second numbers up to {second}, so day and "
                "month cannot be told apart; set `date_order` to day-first or month-first"
            )
        return first > 12


def _open(path: Path, format: str, kind: _Kind, given: GivenColumns | None) -> Rows:  # noqa: A002
    """The rows of a file. Raises InputError if the file does not exist, is empty, is a folder or cannot be read."""
    is_parquet(path)
    own = FORMATS.find(format)
    if format in _BUILT_IN:
        return _rows(path, format, kind, given)
    if given and given.pairs:
        raise InputError(f"`columns` works only with gr2's own formats, not with {format}; leave `columns` out")
    return own.items(path) if kind is _ITEMS else own.interactions(path)


def _rows(path: Path, format: str, kind: _Kind, given: GivenColumns | None = None) -> Rows:  # noqa: A002
    """Rows under gr2's column names, with line numbers. A row has only the columns that the file has."""
    columns = Columns(kind.names, kind.required, given)
    if is_parquet(path):
        return columns.rows_of_parquet(path)
    if is_json_array(path):
        first = next(read_json_array(path), (1, {}))[1]
        rows = read_json_array(path)
        return columns.rows_of_objects(path, _unnested(rows) if _is_nested(first, columns, kind) else rows)
    start = first_line(path)
    if start.lstrip().startswith("{"):
        return columns.rows_of_objects(path, _json_rows(path, start, columns, kind))
    delimiter = max("\t,|;", key=start.count)
    header = start.split(delimiter)
    if (len(header) > 1 or kind is _ITEMS) and any(columns.find(name) for name in header):
        return columns.rows_under_header(path, delimiter)
    for layout in kind.layouts:
        # Amazon's ratings come in two column orders, so their layout is used only if the user names the format.
        allowed = format == layout.format or (format == "auto" and layout.format == "movielens")
        if allowed and len(start.split(layout.delimiter)) == layout.fields:
            return _laid_out_rows(path, layout)
    return fail(
        path,
        1,
        f"the first line has no known column name, such as {', '.join(kind.required)}, and matches no format without a "
        f"header: {shorten(start, 400)}; name the columns with `columns`, such as {kind.required[0]}=THEIRS, set "
        f"`format` to one of {', '.join(FORMATS.names()[1:])}, or add a header",
    )


_BUILT_IN = ("auto", "generic", "amazon-2014", "amazon-2018", "amazon-2023", "movielens")
# The built-in formats differ only in the layouts that they accept for a file without a header.
FORMATS: Registry[Format] = Registry(
    "format",
    "gr2.formats",
    {
        name: Format(partial(_rows, format=name, kind=_ITEMS), partial(_rows, format=name, kind=_INTERACTIONS))
        for name in _BUILT_IN
    },
    Format,
)


def _json_rows(path: Path, start: str, columns: Columns, kind: _Kind) -> Rows:
    """Objects, one per line, or from a document that maps items to properties or users to items."""
    if start.strip() == "{":
        return _document_rows(path, kind)
    try:
        first = orjson.loads(start)
    except orjson.JSONDecodeError:
        return read_json_rows(path)
    if isinstance(first, dict) and first and not any(columns.find(key) for key in first):
        if all(isinstance(value, list | dict) for value in first.values()):
            return _document_rows(path, kind)
    elif _is_nested(first, columns, kind):
        return _unnested(read_json_rows(path))
    return read_json_rows(path)


def _is_nested(first: Any, columns: Columns, kind: _Kind) -> bool:
    """Whether the objects of a file hold lists of interactions. first: the first object of the file."""
    matches = [columns.find(key) for key in first]
    return kind is not _ITEMS and not any(match and match.column == "item_id" for match in matches)


def _document_rows(path: Path, kind: _Kind) -> Rows:
    """Rows of {"ITEM": {"title": ...}} or {"USER": ["ITEM", ...]}, as in LC-Rec's files.

    The line of a row is the number of its entry, from 1.
    """
    lines, size = [], 0
    for _, line in read_lines(path):
        lines.append(line)
        size += len(line)
        if size > MAX_DOCUMENT_CHARACTERS:
            fail(path, None, "this JSON document is longer than 512 MB; put one object on each line")
    text = "\n".join(lines)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            fail(path, None, f"this is not JSON ({error}); put one object on each line")
    for number, (key, value) in enumerate(document.items(), 1):
        if kind is _ITEMS:
            if not isinstance(value, dict | str):
                fail(path, number, f"expected the properties of item {key!r}, got {shorten(value)}")
            yield number, {"item_id": key, **(value if isinstance(value, dict) else {"title": value})}
        elif not isinstance(value, list):
            fail(path, number, f"expected a list of items for user {key!r}, got {shorten(value)}")
        else:
            for place, item in enumerate(value):
                properties = item if isinstance(item, dict) else {"item_id": item}
                yield number, {"user_id": key, "position": place, **properties}


def _unnested(rows: Rows) -> Rows:
    """One interaction for each object in the list of {"user_id": ..., "items": [{"item_id": ...}, ...]}."""
    for number, row in rows:
        lists = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
        if not lists:
            yield number, row
            continue
        user = {key: value for key, value in row.items() if key != lists[0]}
        for place, item in enumerate(row[lists[0]]):
            yield number, {**user, "position": place, **(item if isinstance(item, dict) else {})}


def _laid_out_rows(path: Path, layout: _Layout) -> Rows:
    for number, fields in read_delimited_rows(path, layout.delimiter, fallback=layout.fallback):
        row: dict[str, Any] = {column: fields[index] for column, index in layout.columns.items()}
        if layout.fields == 24:
            flags = fields[layout.columns["categories"] :]
            row["categories"] = [genre for genre, flag in zip(_GENRES[1:], flags[1:], strict=True) if flag == "1"]
        yield number, row


def _with_time(path: Path, rows: Rows) -> Rows:
    for number, row in rows:
        if row.get("timestamp") is None and row.get("position") is None:
            fail(
                path, number, "neither timestamp nor position; one of them must give the order of a user's interactions"
            )
        yield number, row


def _chunks(
    path: Path,
    rows: Rows,
    schema: pa.Schema,
    converters: Mapping[str, Callable[[Any], Any]],
) -> Iterator[pa.Table]:
    """Convert the values and collect the rows into tables. An error names the column and the value."""
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    known = converters.keys()
    number = None

    def gathered() -> pa.Table:
        try:
            return pa.table(columns, schema=schema)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError) as error:
            fail(
                path, columns["line"][0], f"a value in the {len(columns['line'])} lines from here is not text: {error}"
            )

    for number, row in rows:
        if not row.keys() <= known:
            unknown = sorted(row.keys() - known)
            fail(path, number, f"the format gives unknown columns {unknown}; known are {', '.join(converters)}")
        column = ""
        try:
            for column, convert in converters.items():
                columns[column].append(convert(row.get(column)))
        except (ValueError, TypeError, OverflowError) as error:
            fail(path, number, f"{column} is {shorten(row.get(column))}: {error}")
        lines = columns["line"]
        lines.append(number)
        if len(lines) == CHUNK_ROWS:
            yield gathered()
            columns = {name: [] for name in schema.names}
    if number is None:
        fail(path, None, "the file has no rows")
    if columns["line"]:
        yield gathered()
