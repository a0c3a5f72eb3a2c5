"""Opens files for reading and decompresses them. A file that is not text is refused, and the error says what it is.

The first bytes tell the kind of a file, never its name. Contents are streamed, so files may have any size.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from store import InputError

BUFFER_BYTES = 1 << 20
PARQUET = b"PAR1"
_ZIP = b"PK\x03\x04"
_UNPACKERS: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": lambda file: pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd"),
}
# Common kinds of file that are not text. The message names the kind and says what to do.
_OTHERS = {
    b"7z\xbc\xaf": "a 7-Zip archive; unpack it",
    b"Rar!": "a RAR archive; unpack it",
    b"PK\x05\x06": "an empty zip archive",
    b"\x04\x22\x4d\x18": "compressed with lz4; unpack it",
    b"\x1f\x9d": "compressed with compress (.Z); unpack it",
    b"ARROW1": "an Arrow or Feather file; save it as Parquet",
    b"FEA1": "a Feather file; save it as Parquet",
    b"ORC": "an ORC file; save it as Parquet",
    b"Obj\x01": "an Avro file; save it as Parquet",
    b"SQLite format": "an SQLite database; export its tables as CSV",
    b"\x89HDF": "an HDF5 file; save its tables as Parquet",
    b"\x93NUMPY": "a NumPy array; save it as Parquet, with names of columns",
    b"\x80\x03": "a Python pickle; save it as Parquet",
    b"\x80\x04": "a Python pickle; save it as Parquet",
    b"\x80\x05": "a Python pickle; save it as Parquet",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save its sheet as CSV",
    b"%PDF": "a PDF; save its table as CSV",
    b"\xff\xfe\x00\x00": "UTF-32 text; save it as UTF-8",
    b"\x00\x00\xfe\xff": "UTF-32 text; save it as UTF-8",
    b"<!DOCTYPE": "a web page; is it the answer of a download that failed?",
    b"<html": "a web page; is it the answer of a download that failed?",
}

DAMAGES = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, pa.ArrowException)
"""Errors that reading a damaged file may raise."""


def first_bytes(path: Path) -> bytes:
    """The first 16 bytes. Raises InputError if the file does not exist, is empty, is a folder or cannot be read."""
    try:
        with path.open("rb") as file:
            first = file.read(16)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: this is a folder; name the file in it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not first:
        raise InputError(f"{path}: the file is empty")
    return first


@contextmanager
def open_contents(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, decompressed if it is gzip, bzip2, xz, zstd, or a zip archive with a single file.

    Raises InputError on other archives and on files that are not text. Reading may raise one of DAMAGES.
    """
    first_bytes(path)
    with ExitStack() as opened:
        raw = opened.enter_context(path.open("rb", 0))
        file: io.BufferedReader[Any] = opened.enter_context(io.BufferedReader(raw, BUFFER_BYTES))
        if _starts(file) == _ZIP:
            file = opened.enter_context(_open_member(path, file))
        while unpack := next((unpack for start, unpack in _UNPACKERS.items() if file.peek(8).startswith(start)), None):
            file = opened.enter_context(io.BufferedReader(opened.enter_context(unpack(file)), BUFFER_BYTES))
            if _starts(file) == PARQUET:
                raise InputError(f"{path}: this is a Parquet file within another compression; unpack it")
        _refuse_others(path, file.peek(512)[:512])
        yield file


def _starts(file: io.BufferedReader) -> bytes:
    return file.peek(4)[:4]


@contextmanager
def _open_member(path: Path, file: BinaryIO) -> Iterator[io.BufferedReader]:
    """The only file of a zip archive. Files that macOS adds do not count."""
    with zipfile.ZipFile(file) as archive:
        members = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
        if "[Content_Types].xml" in members:
            raise InputError(f"{path}: this is an Excel workbook or another Office file; save its sheet as CSV")
        if len(members) != 1:
            names = ", ".join(members[:5]) + (", ..." if len(members) > 5 else "")
            raise InputError(
                f"{path}: the zip archive contains {len(members)} files ({names}); unpack it and name one file"
            )
        try:
            member = archive.open(members[0])
        except (RuntimeError, NotImplementedError) as error:
            raise InputError(f"{path}: {members[0]} in the zip archive cannot be unpacked: {error}") from error
        # Outside of the `try`, because an error in the caller's block is not the archive's fault.
        with member:
            yield io.BufferedReader(cast("io.RawIOBase", member), BUFFER_BYTES)


def _refuse_others(path: Path, start: bytes) -> None:
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            raise InputError(f"{path}: this is {what}")
    if start[257:262] == b"ustar":
        raise InputError(f"{path}: this is a tar archive; unpack it and name the file in it")
