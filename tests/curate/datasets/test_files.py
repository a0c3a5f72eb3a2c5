import contextlib
import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curate.datasets.files import read_delimited_rows, read_json_rows, read_lines
from store import InputError


def zstd(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


PACKERS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gzip": gzip.compress, "zstd": zstd}


@pytest.mark.parametrize("packer", PACKERS)
def test_compression_is_told_by_content_whatever_the_name(tmp_path: Path, packer: str) -> None:
    path = tmp_path / "misleading.parquet"
    path.write_bytes(PACKERS[packer](b"one\n\ntwo\r\n   \nthree"))
    assert list(read_lines(path)) == [(1, "one"), (3, "two"), (5, "three")]


def test_several_gzip_members_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert [line for _, line in read_lines(tmp_path / "f")] == ["one", "two"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbfuser_id\n")
    assert list(read_lines(tmp_path / "f")) == [(1, "user_id")]


def test_missing_empty_and_folder_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for name, message in (("none", "no such file"), ("empty", "is empty"), ("", "is a folder")):
        with pytest.raises(InputError, match=message):
            list(read_lines(tmp_path / name))


def test_other_encodings_name_line_and_byte(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"f:2: byte 4 of the line, 0xe9, is not UTF-8"):
        list(read_lines(tmp_path / "f"))


@pytest.mark.parametrize("packer", ["gzip", "zstd"])
def test_a_cut_compressed_file_is_a_clear_error(tmp_path: Path, packer: str) -> None:
    whole = PACKERS[packer](b"".join(b"line %d\n" % (n * n) for n in range(50_000)))
    (tmp_path / "f").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        list(read_lines(tmp_path / "f"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}\n{"a": \n', "f:2: this is not JSON"),
        ('{"a": 1}\n[1, 2]\n', "f:2: expected a JSON object on each line, got "),
        ('{"a": 1}\nnull\n', "f:2: expected a JSON object"),
    ],
)
def test_bad_json_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(InputError, match=message):
        list(read_json_rows(tmp_path / "f"))


def test_quoted_fields_may_hold_delimiters_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('a,b\n"x, ""y""","two\nlines"\nz,w\n')
    assert list(read_delimited_rows(tmp_path / "f", ",")) == [
        (1, ["a", "b"]),
        (3, ['x, "y"', "two\nlines"]),
        (4, ["z", "w"]),
    ]


def test_a_row_with_another_number_of_fields_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(InputError, match="f:3: the line has 3 fields, but the first line has 2"):
        list(read_delimited_rows(tmp_path / "f", ","))


def test_an_open_quote_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('a,b\n"1,2\n')
    with pytest.raises(InputError, match="not CSV"):
        list(read_delimited_rows(tmp_path / "f", ","))


def test_the_csv_modules_own_limit_is_left_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    (tmp_path / "f").write_text("a,b\n" + "x" * 200_000 + ",1\n")
    assert len(list(read_delimited_rows(tmp_path / "f", ","))[1][1][0]) == 200_000
    assert csv.field_size_limit() == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=200), packer=st.sampled_from(sorted(PACKERS)), cut=st.integers(0, 40))
def test_no_bytes_bring_out_another_error(tmp_path: Path, data: bytes, packer: str, cut: int) -> None:
    packed = PACKERS[packer](data)
    (tmp_path / "f").write_bytes(packed[: max(1, len(packed) - cut)])
    for read in (read_lines, read_json_rows, lambda path: read_delimited_rows(path, ",")):
        with contextlib.suppress(InputError):
            list(read(tmp_path / "f"))
