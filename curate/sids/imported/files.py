"""Reads a user's own semantic IDs or item vectors from CSV, TSV, Parquet, JSON or NumPy's .npy.

A table names the item of each row. An .npy does not: its row i belongs to the item called i, or to line i of a text
file of items. This module knows neither the store nor how IDs are made.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.datasets.columns import ITEM_NAMES, Columns
from curate.datasets.compression import first_bytes
from curate.datasets.files import (
    fail,
    first_line,
    is_parquet,
    parquet_columns,
    read_delimited_rows,
    read_json_rows,
    read_lines,
    read_parquet_rows,
    shorten,
)
from curate.datasets.values import to_identifier
from prompts.semantic_ids import MAX_CODE
from store import InputError

# gr2 itself makes at most this many levels. More whole numbers in a row are a vector.
MAX_LEVELS = 8
_CODES = ("codes", "semanticid", "semanticids", "sid", "sids", "tokens", "indices")
# Column names of row numbers, which data frames write as a column.
_ROW_NUMBERS = {"", "index", "Unnamed: 0", "__index_level_0__"}
_VECTOR = ("embedding", "embeddings", "vector", "vectors", "emb", "features")
_NAMES = {"item_id": ITEM_NAMES["item_id"], "codes": _CODES, "vector": _VECTOR}
_NPY = b"\x93NUMPY"


class OwnRows(NamedTuple):
    """The contents of a file for a dataset's items, in their order: codes (N, L) or vectors (N, D).

    The other one is None.

    digest: the hash of the values and their items, which names versions. left_out: the number of items in the file that
    are not in the dataset.
    """

    codes_N_L: NDArray[np.int64] | None
    vectors_N_D: NDArray[np.float32] | None
    digest: str
    left_out: int


class _Row(NamedTuple):
    line: int | None
    item_id: str
    kind: str | None
    values_V: NDArray[Any]


def read_own_rows(path: Path, item_ids: Sequence[str], rows_file: Path | None = None) -> OwnRows:
    """Read the codes or vectors of all items of a dataset.

    At most 8 whole numbers are codes, and other numbers are a vector, unless the column names say otherwise. rows_file:
    a text file with the item of each row of an .npy, one per line; None means that row i belongs to the item called i.

    Raises InputError with file and line on items without a row, an item with two different rows, rows of unequal
    lengths, codes out of range, numbers that are not finite, and files that cannot be read.
    """
    is_npy = first_bytes(path).startswith(_NPY)
    if rows_file is not None and not is_npy:
        raise InputError(f"`item_ids` names the rows of an .npy, but {path} is not an .npy; leave `item_ids` out")
    distinct_ids = set(item_ids)
    by_item: dict[str, _Row] = {}
    first: _Row | None = None
    left_out = 0
    for row in _npy_rows(path, rows_file) if is_npy else _table_rows(path):
        first = first or row
        if len(row.values_V) != len(first.values_V) or not len(row.values_V):
            fail(
                path,
                row.line,
                f"item {row.item_id!r} has {len(row.values_V)} values, but the first row has {len(first.values_V)}; "
                "all rows must have the same number",
            )
        if not np.isfinite(row.values_V).all():
            fail(path, row.line, f"item {row.item_id!r} has a value that is not a finite number")
        known = by_item.setdefault(row.item_id, row)
        if not np.array_equal(known.values_V, row.values_V):
            fail(
                path,
                row.line,
                f"item {row.item_id!r} is repeated with other values, first at line {known.line}; keep one of them",
            )
        left_out += known is row and row.item_id not in distinct_ids
    missing = [item_id for item_id in item_ids if item_id not in by_item]
    if missing or first is None:
        fail(
            path,
            None,
            f"{len(missing):,} of {len(item_ids):,} items of the dataset have no row, the first "
            f"{', '.join(map(repr, missing[:1]))}; add them"
            + (", or name the item of each row with `item_ids`" if is_npy and rows_file is None else ""),
        )
    rows = [by_item[item_id] for item_id in item_ids]
    values_N_V = np.stack([row.values_V for row in rows])
    whole_N = (values_N_V == np.floor(values_N_V)).all(axis=1)
    digest = hashlib.sha256("\n".join(item_ids).encode() + np.ascontiguousarray(values_N_V).tobytes()).hexdigest()[:12]
    levels = values_N_V.shape[1]
    if first.kind != "codes" and (first.kind == "vector" or levels > MAX_LEVELS or not whole_N.all()):
        return OwnRows(None, values_N_V.astype(np.float32), digest, left_out)
    good_N = whole_N & (values_N_V >= 0).all(axis=1) & (values_N_V <= MAX_CODE).all(axis=1)
    if not good_N.all():
        bad = rows[int(good_N.argmin())]
        fail(
            path,
            bad.line,
            f"item {bad.item_id!r} has codes {shorten(bad.values_V.tolist())}; each must be a whole number from 0 to "
            f"{MAX_CODE:,}",
        )
    if levels > MAX_LEVELS:
        fail(path, first.line, f"the semantic IDs have {levels} codes; at most {MAX_LEVELS} are possible")
    return OwnRows(values_N_V.astype(np.int64), None, digest, left_out)


def _npy_rows(path: Path, rows_file: Path | None) -> Iterator[_Row]:
    try:
        matrix = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        fail(path, None, f"the .npy cannot be read: {error}")
    if matrix.ndim != 2 or matrix.dtype.kind not in "iuf":
        fail(path, None, f"expected an array (items, values) of numbers, got {matrix.shape} of {matrix.dtype}")
    names = (
        [line.strip() for _, line in read_lines(rows_file)] if rows_file else [str(row) for row in range(len(matrix))]
    )
    if len(names) != len(matrix):
        fail(path, None, f"the array has {len(matrix):,} rows, but {rows_file} names {len(names):,} items")
    for number, (name, values) in enumerate(zip(names, matrix, strict=True)):
        yield _Row(number, name, None, values)


def _table_rows(path: Path) -> Iterator[_Row]:
    """Yield rows with an item, and either a column of codes or of a vector, or numbers in all other columns."""
    for line, row in _rows_of_any_table(path):
        columns = Columns(_NAMES, ("item_id",)).choose(path, [*row])
        values = [*row.values()]
        try:
            item_id = to_identifier(values[columns["item_id"][0]])
        except ValueError as error:
            fail(path, line, f"item_id is {shorten(values[columns['item_id'][0]])}: {error}")
        kind = next((kind for kind in ("codes", "vector") if kind in columns), None)
        given = (
            values[columns[kind][0]]
            if kind
            else [
                value
                for place, (name, value) in enumerate(row.items())
                if place != columns["item_id"][0] and name not in _ROW_NUMBERS
            ]
        )
        yield _Row(line, item_id, kind, _numbers(path, line, item_id, given, kind))


def _rows_of_any_table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if is_parquet(path):
        parquet_columns(path)
        yield from read_parquet_rows(path)
        return
    start = first_line(path)
    if start.lstrip().startswith("{"):
        for line, row in read_json_rows(path):
            # LC-Rec's index: {"0": ["<a_57>", "<b_7>"], ...}
            if "item_id" not in row and row and all(isinstance(value, list) for value in row.values()):
                yield from ((line, {"item_id": item, "codes": codes}) for item, codes in row.items())
            else:
                yield line, row
        return
    rows = read_delimited_rows(path, max("\t,|;", key=start.count))
    _, header = next(rows)
    Columns(_NAMES, ("item_id",)).choose(path, header)
    if len(header) < 2:
        fail(path, 1, f"there must be a column besides the item; the columns are {', '.join(header)}")
    empty = True
    for line, fields in rows:
        empty = False
        yield line, dict(zip(header, fields, strict=True))
    if empty:
        fail(path, 1, "there are no rows after the header")


def _numbers(path: Path, line: int, item_id: str, given: Any, kind: str | None) -> NDArray[np.float64]:
    """Read the numbers of a list or a text. Codes may be written as tokens: <a_57><b_7> and 57-7 are 57 and 7."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if isinstance(given, str):
        given = re.findall(r"\d+", given) if kind == "codes" else re.split(r"[,;\s]+", given.strip("[]() \t\n"))
    elif isinstance(given, list) and kind == "codes":
        tokens = [re.findall(r"-?\d+", each) if isinstance(each, str) else [each] for each in given]
        given = [numbers[0] if len(numbers) == 1 else each for numbers, each in zip(tokens, given, strict=True)]
    try:
        return np.array([float(each) for each in given if each != ""], np.float64)
    except (ValueError, TypeError):
        fail(path, line, f"item {item_id!r} has {shorten(given)}; expected numbers")
