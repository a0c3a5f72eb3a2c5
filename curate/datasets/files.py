"""Reads files as lines and rows, and reports errors with file and line.

Columns are recognised in `curate.datasets.columns`, and files are decompressed in `curate.datasets.compression`. Files
are streamed, so they may have any size. Whatever a file contains, only InputError is raised.
"""

import ast
import csv
import io
import json
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from curate.datasets.compression import DAMAGES, PARQUET, first_bytes, open_contents
from store import InputError

MAX_LINE_BYTES = 1 << 26
# The number of characters of a JSON array that are read at a time.
ARRAY_CHARACTERS = 1 << 16
_BLANKS = "\ufeff \t\r\n"
PARQUET_ROWS = 50_000
# The maximum number of lines of a quoted field in a tab-separated file.
MAX_QUOTED_LINES = 100
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

Row = tuple[int, Any]
"""A line number, from 1, and the content of the line."""


def fail(path: Path, line: int | None, what: str) -> NoReturn:
    """Raise InputError for a line of a file. line: None for the file as a whole."""
    raise InputError(f"{path}:{line}: {what}" if line is not None else f"{path}: {what}")


def shorten(value: object, most: int = 80) -> str:
    """A value as error messages show it, in at most `most` characters."""
    # Without the cut, repr would copy a text of megabytes.
    text = repr(value[: most + 1] if isinstance(value, str) else value)
    return text if len(text) <= most else text[: most - 3] + "..."


def is_parquet(path: Path) -> bool:
    """Whether the file is Parquet. Raises the errors of `first_bytes`."""
    return first_bytes(path).startswith(PARQUET)


def read_lines(path: Path, *, fallback: str | None = None, blank: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, from 1, without line ends.

    The text is UTF-8, or UTF-16 if it begins with a UTF-16 byte order mark. fallback: the encoding of lines that are
    not UTF-8; None refuses them. blank: include blank lines.

    Raises InputError on bytes outside the encoding, damaged compression, or a line over 64 MB.
    """
    number = 0
    try:
        with _open_lines(path) as lines:
            for number, raw in enumerate(lines, 1):
                if number == 1:
                    raw = raw.removeprefix(_BOM)  # noqa: PLW2901
                    _check_first(path, raw)
                if len(raw) >= MAX_LINE_BYTES:
                    fail(
                        path,
                        number,
                        "the line is longer than 64 MB; is this a JSON array? Put one object on each line",
                    )
                try:
                    line = raw.decode().rstrip("\r\n")
                except UnicodeDecodeError as error:
                    if fallback is None:
                        fail(
                            path,
                            number,
                            f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not UTF-8; "
                            "convert the file, for example with iconv",
                        )
                    line = raw.decode(fallback).rstrip("\r\n")
                if blank or (line and not line.isspace()):
                    yield number, line
    except DAMAGES as error:
        fail(path, number + 1, f"the compressed file is damaged: {error}")
    except UnicodeError as error:
        fail(path, number + 1, f"the text is not UTF-16, although it begins like UTF-16: {error}")


@contextmanager
def _open_lines(path: Path) -> Iterator[Iterator[bytes]]:
    """Lines as UTF-8 bytes. A longer line is cut at MAX_LINE_BYTES."""
    with open_contents(path) as file:
        if file.peek(2)[:2] not in _UTF_16:
            yield iter(partial(file.readline, MAX_LINE_BYTES), b"")
            return
        text = io.TextIOWrapper(file, "utf-16", newline="\n")
        try:
            yield (line.encode() for line in iter(partial(text.readline, MAX_LINE_BYTES), ""))
        finally:
            # Without this, the wrapper would close `file`, which `open_contents` closes.
            text.detach()


def _check_first(path: Path, raw: bytes) -> None:
    """Refuse a file without lines of text here, because later errors would show only the symptoms."""
    if b"\x00" in raw[:1000]:
        fail(path, 1, "the line contains NUL bytes; save the file as UTF-8 text or as Parquet")
    if not raw.endswith(b"\n") and b"\r" in raw.rstrip(b"\r"):
        fail(path, 1, "lines end in carriage returns only; convert them, for example with tr '\\r' '\\n'")


def first_line(path: Path) -> str:
    """The first line that is not blank, read as Latin-1 if it is not UTF-8. Raises InputError if there is none."""
    for _, line in read_lines(path, fallback="latin-1"):
        return line
    fail(path, None, "the file has only blank lines")


def read_json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file with one object per line, with line numbers.

    A line is JSON, which may contain NaN, or a Python dictionary, as in Amazon's metadata of 2014. Raises InputError on
    any other line.
    """
    for number, line in read_lines(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            row = _read_loosely(line)
            if row is None:
                fail(path, number, f"this is not JSON ({error}): {shorten(line)}")
        if not isinstance(row, dict):
            fail(path, number, f"expected a JSON object on each line, got {shorten(row)}")
        yield number, row


def is_json_array(path: Path) -> bool:
    """Whether the text of a file begins like a JSON array. Raises the errors of `read_json_array`."""
    # This is also called on files that are in another encoding.
    with _opened_text(path, errors="replace") as text:
        return text.read(1000).lstrip(_BLANKS).startswith("[")


def read_json_array(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSON array, numbered from 1. Only one is in memory at a time, so the file may have any size.

    Commas may be missing or repeated. Raises InputError if the text is not a JSON array of objects, ends too early, or
    contains an object over 64 MB.
    """
    number, line, rest = 0, 1, ""
    decoder = json.JSONDecoder()
    with _opened_text(path) as text:

        def more() -> bool:
            nonlocal rest
            # Read as much again as is left, so that a long object is not parsed from its start for each small piece.
            piece = text.read(max(ARRAY_CHARACTERS, len(rest)))
            rest += piece
            return bool(piece)

        def skip(signs: str) -> str:
            """Go to the next character that is not in `signs`, and return it, or "" at the end of the file."""
            nonlocal line, rest
            while True:
                left = rest.lstrip(signs)
                line += rest.count("\n", 0, len(rest) - len(left))
                rest = left
                if rest or not more():
                    return rest[:1]

        skip(_BLANKS)
        rest = rest[1:]
        while skip(_BLANKS + ",") != "]":
            number += 1
            while True:
                try:
                    row, end = decoder.raw_decode(rest)
                    break
                except json.JSONDecodeError as error:
                    # Reading more does not resolve an error in the middle of the text.
                    at_end = error.pos >= len(rest) - 20 or "Unterminated" in error.msg
                    if not at_end or not more():
                        problem = (
                            f"the JSON array ends before the end of entry {number}; is the file cut off?"
                            if at_end
                            else f"this is not JSON, at entry {number} of an array: {shorten(rest[error.pos :])}"
                        )
                        fail(path, line + rest.count("\n", 0, error.pos), problem)
                except RecursionError:
                    fail(path, line, f"entry {number} of the JSON array is nested too deep")
                if len(rest) > MAX_LINE_BYTES:
                    fail(path, line, f"entry {number} of the JSON array is longer than 64 MB")
            if not isinstance(row, dict):
                fail(path, line, f"expected a JSON object for each entry of the array, got {shorten(row)}")
            yield number, row
            line += rest.count("\n", 0, end)
            rest = rest[end:]
        rest = rest[1:]
        if skip(_BLANKS):
            fail(path, line, f"there is text after the end of the JSON array: {shorten(rest)}")


@contextmanager
def _opened_text(path: Path, errors: str = "strict") -> Iterator[io.TextIOWrapper]:
    """The text of a file: UTF-8, or UTF-16 if it begins with a UTF-16 byte order mark."""
    try:
        with open_contents(path) as file:
            text = io.TextIOWrapper(file, "utf-16" if file.peek(2)[:2] in _UTF_16 else "utf-8", errors)
            try:
                yield text
            finally:
                # Without this, the wrapper would close `file`, which `open_contents` closes.
                text.detach()
    except DAMAGES as error:
        fail(path, None, f"the compressed file is damaged: {error}")
    except UnicodeError as error:
        fail(path, None, f"the text is not UTF-8; convert the file, for example with iconv ({error})")


def _read_loosely(line: str) -> Any:
    """Parse a line that is not strict JSON: with NaN or Infinity, or a Python dictionary. None for any other line.

    Here NaN is accepted as a float in every column, so that it does no harm in a column that is not used.
    """
    try:
        if line.lstrip().startswith(("{'", "{u'", '{u"')):
            with warnings.catch_warnings(action="ignore"):
                return ast.literal_eval(line.strip())
        return json.loads(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def read_delimited_rows(path: Path, delimiter: str, *, fallback: str | None = None) -> Iterator[tuple[int, list[str]]]:
    """The fields of each row, including the header. Quotes are recognised if the delimiter is a single character.

    fallback: as for `read_lines`. Raises InputError if a row has another number of fields than the first one.
    """
    if len(delimiter) > 1:
        rows: Iterator[tuple[int, list[str]]] = (
            (number, line.split(delimiter)) for number, line in read_lines(path, fallback=fallback)
        )
    elif delimiter in ",;":
        rows = _csv_rows(path, delimiter, fallback)
    else:
        rows = _tabbed_rows(path, delimiter, fallback)
    width = 0
    for number, fields in rows:
        width = width or len(fields)
        if len(fields) != width:
            fail(
                path,
                number,
                f"the line has {len(fields)} fields, but the first line has {width}: {shorten(delimiter.join(fields))}",
            )
        yield number, fields


@contextmanager
def _long_fields() -> Iterator[None]:
    """Allow fields of a megabyte, which are rare but legal. The csv module's own limit is 128 kB."""
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_rows(path: Path, delimiter: str, fallback: str | None) -> Iterator[tuple[int, list[str]]]:
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        # Blank lines are kept, because they may be part of a quoted field.
        for number, line in read_lines(path, fallback=fallback, blank=True):
            at = number
            yield line + "\n"

    reader = csv.reader(lines(), delimiter=delimiter, strict=True)
    with _long_fields():
        try:
            for fields in reader:
                if len(fields) > 1 or (fields and fields[0].strip()):
                    yield at, fields
        except csv.Error as error:
            fail(path, at, f"this is not CSV: {error}")


def _tabbed_rows(path: Path, delimiter: str, fallback: str | None) -> Iterator[tuple[int, list[str]]]:
    """Rows of tab- and pipe-separated files. Some quote like CSV; in others quotes are characters: "Weird Al" Live.

    Quotes are read as CSV quotes if the line is then valid CSV with the first line's number of fields. Otherwise they
    are characters.
    """
    lines = read_lines(path, fallback=fallback, blank=True)
    ahead: deque[tuple[int, str]] = deque()
    width = 0
    while (row := ahead.popleft() if ahead else next(lines, None)) is not None:
        number, line = row
        if not line or line.isspace():
            continue
        fields = line.split(delimiter)
        if '"' in line and any(field.startswith('"') for field in fields):
            quoted, taken = _split_quoted(line, delimiter), 0
            while (
                quoted is None
                and taken < MAX_QUOTED_LINES
                and (taken > 0 or line.count('"') % 2)
                and (taken < len(ahead) or _look_ahead(lines, ahead))
                # A line that is itself a complete row does not continue a quoted field.
                and ('"' in ahead[taken][1] or not width or ahead[taken][1].count(delimiter) != width - 1)
            ):
                line += "\n" + ahead[taken][1]
                taken += 1
                if ahead[taken - 1][1].count('"'):
                    quoted = _split_quoted(line, delimiter)
                    quoted = quoted if quoted and len(quoted) == (width or len(quoted)) else None
            if quoted and (len(quoted) == width or not width or len(fields) != width):
                for _ in range(taken):
                    number, _ = ahead.popleft()
                fields = quoted
        width = width or len(fields)
        yield number, fields


def _look_ahead(lines: Iterator[tuple[int, str]], ahead: deque[tuple[int, str]]) -> bool:
    """Read one more line. Returns False at the end of the file."""
    following = next(lines, None)
    if following is None:
        return False
    ahead.append(following)
    return True


def _split_quoted(line: str, delimiter: str) -> list[str] | None:
    """The fields of a row with CSV quotes, or None if it is not valid CSV."""
    try:
        with _long_fields():
            (fields,) = csv.reader([line], delimiter=delimiter, strict=True)
    except (csv.Error, ValueError):
        return None
    return fields


def parquet_columns(path: Path) -> list[str]:
    """The column names of a Parquet file. Raises InputError if the file is damaged or repeats a name."""
    try:
        names: list[str] = pq.read_schema(path).names
    except (OSError, pa.ArrowException, ValueError) as error:
        fail(path, None, f"the Parquet file is damaged: {error}")
    for name in names:
        if names.count(name) > 1:
            fail(path, None, f"there are {names.count(name)} columns {name!r}; rename or leave out all but one")
    return names


def read_parquet_rows(path: Path, columns: list[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file, numbered from 1. columns: read only these columns; None reads all.

    Raises InputError if the file is damaged.
    """
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS, columns=columns):
                for row in pa.table({name: _without_ns(batch.column(name)) for name in batch.schema.names}).to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        fail(path, number + 1, f"the Parquet file is damaged, or contains a value out of range: {error}")


def _without_ns(column: pa.Array) -> pa.Array:
    """A column whose times are in microseconds at most, because Python's times have no nanoseconds."""
    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return column.cast(pa.timestamp("us", kind.tz), safe=False)
    return column
