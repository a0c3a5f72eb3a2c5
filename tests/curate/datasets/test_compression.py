import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.datasets.files import is_parquet, read_lines
from store import InputError

TEXT = b"user_id,item_id\nu,\xc3\xa9\n"
LINES = [(1, "user_id,item_id"), (2, "u,é")]


def zipped(*members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in members:
            archive.writestr(name, TEXT)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("log.csv")
        member.size = len(TEXT)
        archive.addfile(member, io.BytesIO(TEXT))
    return buffer.getvalue()


def parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        bz2.compress(TEXT),
        lzma.compress(TEXT),
        zipped("log.csv"),
        zipped("folder/", "folder/log.csv", "__MACOSX/folder/._log.csv"),
        gzip.compress(bz2.compress(TEXT)),
        b"\xef\xbb\xbf" + TEXT,
        gzip.compress(b"\xef\xbb\xbf" + TEXT),
        TEXT.decode().encode("utf-16"),
        b"\xfe\xff" + TEXT.decode().encode("utf-16-be"),
        gzip.compress(TEXT.decode().encode("utf-16")),
        TEXT.replace(b"\n", b"\r\n"),
    ],
)
def test_contents_come_out_whatever_they_are_in(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    assert list(read_lines(tmp_path / "f")) == LINES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped("a.csv", "b.csv"), r"contains 2 files \(a.csv, b.csv\); unpack it and name one file"),
        (zipped(), "an empty zip archive"),
        (zipped("[Content_Types].xml", "xl/workbook.xml"), "Excel workbook"),
        (tarred(), "a tar archive"),
        (gzip.compress(tarred()), "a tar archive"),
        (gzip.compress(parquet()), "a Parquet file within another compression"),
        (b"7z\xbc\xaf\x27\x1c rest", "a 7-Zip archive"),
        (b"Rar!\x1a\x07 rest", "a RAR archive"),
        (b"\x89HDF\r\n rest", "an HDF5 file"),
        (b"\x80\x04\x95 rest", "a Python pickle"),
        (b"SQLite format 3\x00", "an SQLite database"),
        (TEXT.decode().encode("utf-32"), "UTF-32"),
        (b"\xff\xfe\x00", "not UTF-16"),
        (TEXT.decode().encode("utf-16-le"), "NUL bytes"),
        (b"a,b\r1,2\r", "carriage returns only"),
        (b"<!DOCTYPE html><p>Please sign in", "a web page"),
        (bz2.compress(TEXT * 999)[:-20], "damaged"),
        (lzma.compress(TEXT * 999)[:-20], "damaged"),
        (zipped("log.csv")[:-30], "damaged"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        list(read_lines(tmp_path / "f"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b""), lambda _: None])
def test_what_is_no_file_is_named(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "f")
    with pytest.raises(InputError, match=r"a folder|is empty|no such file"):
        is_parquet(tmp_path / "f")


def test_a_line_of_a_gigabyte_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.write(b"[")
        # A sparse file, of which nothing is on the disk.
        file.truncate(1 << 30)
    (tmp_path / "g").write_bytes(gzip.compress(b"x" * (1 << 26) + b"y"))
    for name, message in (("f", "NUL bytes"), ("g", "longer than 64 MB")):
        with pytest.raises(InputError, match=message):
            list(read_lines(tmp_path / name))
