"""Bytes to lines and rows: compression, encoding and the errors that users' files bring. What columns mean is
`curate.datasets.formats`' part.

Compression is told by the first bytes, never by the name. Files are streamed, so their size does not matter. Whatever a
file holds, nothing but InputError comes out, with file and line.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from store import InputError

MAX_LINE_BYTES = 1 << 26
PARQUET_ROWS = 50_000
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_PARQUET = b"PAR1"
_BOM = b"\xef\xbb\xbf"

Row = tuple[int, Any]
"""A line's number, from 1, and what it holds."""


def fail(path: Path, line: int | None, what: str) -> NoReturn:
    """Raise InputError for a place in a file."""
    raise InputError(f"{path}:{line}: {what}" if line is not None else f"{path}: {what}")


def shorten(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_parquet(path: Path) -> bool:
    """Whether the file is Parquet. Raises InputError where there is no such file, or it is empty or a folder."""
    return _first_bytes(path) == _PARQUET


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            first = file.read(4)
    except FileNotFoundError:
        fail(path, None, "there is no such file")
    except IsADirectoryError:
        fail(path, None, "this is a folder; name the file in it")
    except OSError as error:
        fail(path, None, f"it cannot be read: {error.strerror}")
    if not first:
        fail(path, None, "the file is empty")
    return first


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    first = _first_bytes(path)
    with path.open("rb") as file:
        if first.startswith(_GZIP):
            with gzip.open(file) as unzipped:
                yield io.BufferedReader(unzipped, 1 << 20)
        elif first == _ZSTD:
            with pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd") as unzipped:
                yield io.BufferedReader(unzipped, 1 << 20)
        else:
            yield file


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers, blank ones left out, ends of line taken off.

    Raises InputError on bytes that are not in the encoding, damaged compression, or a line over 64 MB.
    """
    number = 0
    try:
        with _opened(path) as file:
            while raw := file.readline(MAX_LINE_BYTES):
                number += 1
                if number == 1 and raw.startswith(_BOM):
                    raw = raw[len(_BOM) :]
                if len(raw) == MAX_LINE_BYTES:
                    fail(
                        path, number, "the line has more than 64 MB; is this a JSON array? One object a line is wanted"
                    )
                try:
                    line = raw.decode(encoding).rstrip("\r\n")
                except UnicodeDecodeError as error:
                    fail(
                        path,
                        number,
                        f"byte {error.start + 1} of the line, 0x{raw[error.start]:02x}, is not {encoding.upper()}; "
                        "convert the file, for example with iconv",
                    )
                if line and not line.isspace():
                    yield number, line
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        fail(path, number + 1, f"the compressed file is damaged: {error}")


def first_line(path: Path, encoding: str = "utf-8") -> str:
    """The first line that is not blank. Raises InputError where there is none."""
    for _, line in read_lines(path, encoding):
        return line
    fail(path, None, "the file has no line that is not blank")


def read_json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """One object a line. Raises InputError at a line that is none."""
    for number, line in read_lines(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            fail(path, number, f"this is not JSON ({error}): {shorten(line)}")
        if not isinstance(row, dict):
            fail(path, number, f"a JSON object is wanted on each line, this is {shorten(row)}")
        yield number, row


def read_delimited_rows(path: Path, delimiter: str, encoding: str = "utf-8") -> Iterator[tuple[int, list[str]]]:
    """The fields of each row, the header's included; quotes are understood where the delimiter is one character.

    Raises InputError on a row with another number of fields than the first.
    """
    if len(delimiter) > 1:
        rows: Iterator[tuple[int, list[str]]] = (
            (number, line.split(delimiter)) for number, line in read_lines(path, encoding)
        )
    else:
        rows = _csv_rows(path, delimiter, encoding)
    width = 0
    for number, fields in rows:
        width = width or len(fields)
        if len(fields) != width:
            fail(
                path,
                number,
                f"{len(fields)} fields where the first line has {width}: {shorten(delimiter.join(fields))}",
            )
        yield number, fields


def _csv_rows(path: Path, delimiter: str, encoding: str) -> Iterator[tuple[int, list[str]]]:
    at = 0

    def lines() -> Iterator[str]:
        nonlocal at
        for number, line in read_lines(path, encoding):
            at = number
            yield line + "\n"

    # Fields of a megabyte are rare but legal; the module's own limit is 128 kB.
    before = csv.field_size_limit(MAX_LINE_BYTES)
    # Quotes are ordinary letters in tab- and pipe-separated dumps.
    reader = (
        csv.reader(lines(), delimiter=delimiter, strict=True)
        if delimiter in ",;"
        else csv.reader(lines(), delimiter=delimiter, quoting=csv.QUOTE_NONE)
    )
    try:
        for fields in reader:
            yield at, fields
    except csv.Error as error:
        fail(path, at, f"this is not CSV: {error}")
    finally:
        csv.field_size_limit(before)


def read_parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file, numbered from 1. Raises InputError where it is damaged."""
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pa.ArrowException, ValueError) as error:
        fail(path, number + 1, f"the Parquet file is damaged: {error}")
