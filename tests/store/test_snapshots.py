import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from store import Gr2Error, InputError, SnapshotError
from store.snapshots import (
    FILE_ROWS,
    ONE_FILE_ROWS,
    PART_ROWS,
    iterate_rows,
    read_manifest,
    read_split,
    rows_sha256,
    split_files,
    spool_rows,
    verify_snapshot,
    write_snapshot,
)

ROOT = Path(__file__).parents[2]

ROWS = pl.DataFrame({"trace_id": ["a", "b"], "ranking": [["x", "y"], ["y"]], "pass_rate": [0.5, 1.0]})


def test_the_same_content_is_the_same_version_and_the_same_bytes(tmp_path: Path) -> None:
    first = write_snapshot(tmp_path / "one", {"train": ROWS}, {"kind": "sft"}, "card")
    second = write_snapshot(tmp_path / "two", {"train": ROWS}, {"kind": "sft"}, "card")
    assert first.version == second.version
    names = [path.relative_to(first.path) for path in first.path.rglob("*") if path.is_file()]
    assert len(names) == 3
    for name in names:
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


def test_publishing_again_leaves_the_folder_as_it_is(tmp_path: Path) -> None:
    first = write_snapshot(tmp_path, {"train": ROWS}, {"kind": "sft"}, "card")
    again = write_snapshot(tmp_path, {"train": ROWS}, {"kind": "sft"}, "card", latest=first)
    assert again == first
    assert [path.name for path in tmp_path.iterdir()] == [first.version]


def test_other_content_is_another_version_with_the_older_as_parent(tmp_path: Path) -> None:
    first = write_snapshot(tmp_path, {"train": ROWS}, {"kind": "sft"}, "card")
    second = write_snapshot(tmp_path, {"train": ROWS[:1]}, {"kind": "sft"}, "card", latest=first)
    assert second.version != first.version
    assert second.manifest["parent"] == first.version
    assert first.manifest["parent"] is None


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path, {"train": ROWS}, {"kind": "sft"}, "card")
    for file in [path for path in snapshot.path.rglob("*") if path.is_file()]:
        whole = file.read_bytes()
        for at in (0, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(SnapshotError, match="changed"):
                verify_snapshot(snapshot.path)
        file.write_bytes(whole)
    assert verify_snapshot(snapshot.path) == snapshot


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path, {"train": ROWS}, {"kind": "sft"}, "card")
    (snapshot.path / "README.md").unlink()
    (snapshot.path / "data" / "more.parquet").write_bytes(b"")
    with pytest.raises(SnapshotError, match=r"README\.md is missing.*more\.parquet is not in its manifest"):
        verify_snapshot(snapshot.path)


def test_a_folder_without_manifest_is_no_snapshot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no manifest"):
        read_manifest(tmp_path)


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path, {"train": ROWS, "validation": ROWS[:1]}, {}, "")
    assert read_split(snapshot.path, "train").equals(ROWS)
    assert read_split(snapshot.path, "validation").equals(ROWS[:1])
    assert snapshot.manifest["splits"]["validation"]["rows"] == 1


def test_a_failed_write_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        write_snapshot(tmp_path, {"train": ROWS, "validation": None}, {}, "")  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run[1]", "x*y", "a?b", "[!x]"])
def test_files_are_read_by_their_names_and_never_as_patterns(tmp_path: Path, name: str) -> None:
    snapshot = write_snapshot(tmp_path / name, {"train": ROWS, "validation": ROWS[:1]}, {}, "")
    # What a pattern would find too.
    write_snapshot(tmp_path / "xAy", {"train": ROWS}, {}, "")
    write_snapshot(tmp_path / "run1", {"train": ROWS}, {}, "")
    assert read_split(snapshot.path, "train").equals(ROWS)
    assert list(iterate_rows(snapshot)) == [*ROWS.to_dicts(), *ROWS[:1].to_dicts()]
    with pytest.raises(InputError, match="has no split 'test'"):
        read_split(snapshot.path, "test")
    with pytest.raises(InputError, match=r"has no split 'tr\*n'"):
        read_split(snapshot.path, "tr*n")


def test_a_folder_under_another_name_is_the_same_version_and_still_checked(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "store", {"train": ROWS}, {"kind": "sft"}, "card")
    renamed = Path(shutil.copytree(snapshot.path, tmp_path / "for-the-cluster"))
    assert verify_snapshot(renamed).version == snapshot.version
    assert read_split(renamed, "train").equals(ROWS)
    (renamed / "README.md").write_text("another")
    with pytest.raises(SnapshotError, match=r"README\.md was changed"):
        verify_snapshot(renamed)
    other_version = Path(shutil.copytree(snapshot.path, tmp_path / ("0" * 16)))
    with pytest.raises(SnapshotError, match="was changed"):
        verify_snapshot(other_version)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"format_version": 1, "files": {}, "splits": {}}'])
def test_a_manifest_that_gr2_did_not_write_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(Gr2Error, match=r"manifest\.json") as refused:
        read_manifest(tmp_path)
    assert "\n" not in str(refused.value)


def test_links_and_foreign_entries_are_refused(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "x", {"train": ROWS}, {"kind": "sft"}, "card")
    file = next((snapshot.path / "data").iterdir())
    # A link to the very same bytes: they can change without the snapshot.
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    (snapshot.path / "more").symlink_to(tmp_path)
    (snapshot.path / "empty").mkdir()
    (snapshot.path / "data" / ".hidden").write_bytes(b"")
    with pytest.raises(SnapshotError) as refused:
        verify_snapshot(snapshot.path)
    for problem in (
        f"data/{file.name} is a link",
        "more is a link",
        "empty is not in its manifest",
        "data/.hidden is not in its manifest",
    ):
        assert problem in str(refused.value)


def test_a_folder_of_data_that_is_a_link_is_refused(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path / "x", {"train": ROWS}, {"kind": "sft"}, "card")
    (snapshot.path / "data").rename(tmp_path / "data")
    (snapshot.path / "data").symlink_to(tmp_path / "data")
    with pytest.raises(SnapshotError, match="data is a link"):
        verify_snapshot(snapshot.path)


class Row(dict[str, Any]):
    """A row whose end can be seen."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_rows_on_the_way_to_disk_are_not_all_in_memory(tmp_path: Path) -> None:
    alive: weakref.WeakSet[Row] = weakref.WeakSet()
    most = 0

    def rows() -> Iterator[tuple[str, Row]]:
        nonlocal most
        for number in range(5 * PART_ROWS):
            row = Row(trace_id=f"{number:06}", pass_rate=number / 7)
            alive.add(row)
            most = max(most, len(alive))
            yield ("train", "validation")[number % 4 == 0], row

    schema = {"trace_id": pl.String, "pass_rate": pl.Float64}
    with spool_rows(tmp_path, schema, rows()) as splits:
        snapshot = write_snapshot(tmp_path / "x", splits, {}, "")
    assert most <= 2 * PART_ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    whole = pl.DataFrame([{"trace_id": f"{n:06}", "pass_rate": n / 7} for n in range(5 * PART_ROWS)])
    of_split = {
        "train": whole.filter(pl.int_range(pl.len()) % 4 > 0),
        "validation": whole.filter(pl.int_range(pl.len()) % 4 == 0),
    }
    assert write_snapshot(tmp_path / "y", of_split, {}, "").version == snapshot.version


def test_many_rows_become_several_files_which_are_read_as_one(tmp_path: Path) -> None:
    schema = {"trace_id": pl.String, "pass_rate": pl.Float64}
    frame = pl.DataFrame(
        {"trace_id": [f"{n:06}" for n in range(ONE_FILE_ROWS + 10)]}, schema_overrides=schema
    ).with_columns(pass_rate=pl.int_range(pl.len()) / 7)
    rows = (("train", row) for row in frame.iter_rows(named=True))
    with spool_rows(tmp_path, schema, rows) as splits:
        snapshot = write_snapshot(tmp_path / "x", splits, {}, "")
    files = split_files(snapshot, "train")
    assert [file.name for file in files] == [f"train-0000{n}-of-00003.parquet" for n in range(3)]
    assert [pl.scan_parquet(file).select(pl.len()).collect().item() for file in files] == [FILE_ROWS, FILE_ROWS, 10]
    assert read_split(snapshot.path, "train").equals(frame)
    assert snapshot.manifest["splits"]["train"] == {"rows": frame.height, "rows_sha256": rows_sha256(frame)}
    assert [row["trace_id"] for row in iterate_rows(verify_snapshot(snapshot.path))] == frame["trace_id"].to_list()


def test_a_full_disk_is_one_line_and_keeps_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the same error comes from the same write."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.count("could not be written") == done.stdout.count("nothing was kept") == 2
    assert len(done.stdout.splitlines()) == 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import polars as pl
from store import SnapshotError
from store.snapshots import spool_rows, write_snapshot

folder = Path(sys.argv[1])
rows = [("train", {"text": f"{number ** 9}"}) for number in range(3_000)]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
try:
    with spool_rows(folder, {"text": pl.String}, rows):
        pass
except SnapshotError as error:
    print(error)
try:
    write_snapshot(folder, {"train": pl.DataFrame([row for _, row in rows])}, {}, "")
except SnapshotError as error:
    print(error)
"""
