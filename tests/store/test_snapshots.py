from pathlib import Path

import polars as pl
import pytest

from store import InputError, SnapshotError
from store.snapshots import read_manifest, read_split, verify_snapshot, write_snapshot

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
    with pytest.raises(SnapshotError, match=r"README\.md is missing.*more\.parquet does not belong"):
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
