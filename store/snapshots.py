"""Snapshots on disk: immutable folders of Parquet files, named by the hash of their contents.

    snapshots/<name>/<version>/
        manifest.json         the selection, its sources, and the sha256 of each file
        README.md             a dataset card, from which datasets.load_dataset(folder) learns the splits
        data/<split>-00000-of-00001.parquet

The version is the sha256 of the manifest. A snapshot contains no time and no machine name, so the same store gives the
same bytes. This module does not know how rows are selected; `curate.snapshots.publishing` does.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl

from store.errors import InputError, SnapshotError
from store.temporary import temporary_folder

FORMAT_VERSION = 1
VERSION_DIGITS = 16
ROW_GROUP_ROWS = 20_000


class Snapshot(NamedTuple):
    """A snapshot on disk: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def version(self) -> str:
        """The version, which is the name of the folder."""
        return self.path.name


def write_snapshot(
    folder: Path,
    splits: Mapping[str, pl.DataFrame],
    body: Mapping[str, Any],
    card: str,
    *,
    latest: Snapshot | None = None,
) -> Snapshot:
    """Write a snapshot below `folder`. If one with the same content exists, it is left as it is.

    splits: rows by split name, in the order to keep. body: facts about the selection and its lineage, in types that
    JSON can hold. card: text of README.md. latest: the newest snapshot of the same name, which becomes the parent if
    the content differs. The snapshot is written to a temporary folder, synced and renamed, so that a reader sees all of
    it or nothing.

    Raises SnapshotError if it cannot be written. Nothing is kept then.
    """
    try:
        return _write(folder, splits, body, card, latest)
    except OSError as error:
        raise SnapshotError(
            f"{folder}: the snapshot could not be written ({error.strerror}); nothing was kept"
        ) from error


def _write(
    folder: Path, splits: Mapping[str, pl.DataFrame], body: Mapping[str, Any], card: str, latest: Snapshot | None
) -> Snapshot:
    with temporary_folder(folder) as temporary:
        # A subfolder, because a temporary folder is readable only by its owner, and a snapshot should not be.
        staged = temporary / "snapshot"
        data = staged / "data"
        data.mkdir(parents=True)
        for split, frame in splits.items():
            # With fixed row groups and compression, the bytes depend on the rows alone.
            frame.write_parquet(
                data / f"{split}-00000-of-00001.parquet",
                compression="zstd",
                compression_level=3,
                row_group_size=ROW_GROUP_ROWS,
                statistics=True,
            )
        (staged / "README.md").write_text(card, "utf-8")
        files = {str(file.relative_to(staged)): _describe(file) for file in _files(staged)}
        manifest = {
            "format_version": FORMAT_VERSION,
            **body,
            "splits": {
                split: {"rows": frame.height, "rows_sha256": rows_sha256(frame)} for split, frame in splits.items()
            },
            "files": files,
        }
        # With the latest snapshot's own parent, the same content gives its very version. Only new content gets a new
        # parent.
        manifest["parent"] = latest.manifest["parent"] if latest else None
        version, text = _seal(manifest)
        if latest and version != latest.version:
            manifest["parent"] = latest.version
            version, text = _seal(manifest)
        target = folder / version
        (staged / "manifest.json").write_bytes(text)
        # Files, then folders, then the rename, then its folder: after a power failure no name refers to missing data.
        for file in _files(staged):
            _sync(file)
        _sync(data)
        _sync(staged)
        if target.exists():
            verify_snapshot(target)
        else:
            staged.rename(target)
            _sync(folder)
    return Snapshot(target, orjson.loads(text))


def _seal(manifest: dict[str, Any]) -> tuple[str, bytes]:
    """The version of a manifest and its bytes."""
    text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    return _version_of(text), text


def _version_of(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:VERSION_DIGITS]


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a snapshot folder, checked against the version in the folder's name.

    Raises InputError if there is no snapshot, and SnapshotError if the manifest was changed or is too new.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise InputError(f"{path} is not a snapshot: it has no manifest.json")
    text = file.read_bytes()
    version = _version_of(text)
    if version != path.name:
        raise SnapshotError(f"{file} was changed: its hash is {version}, but the folder is named {path.name}")
    manifest: dict[str, Any] = orjson.loads(text)
    if manifest["format_version"] > FORMAT_VERSION:
        raise SnapshotError(
            f"{file} has format {manifest['format_version']}, this gr2 reads up to {FORMAT_VERSION}; "
            "install a newer gr2"
        )
    return manifest


def verify_snapshot(path: Path) -> Snapshot:
    """Hash every file again. Raises SnapshotError with the name of each changed, missing or additional file."""
    manifest = read_manifest(path)
    expected = manifest["files"]
    present = {str(file.relative_to(path)) for file in _files(path)} - {"manifest.json"}
    problems = [f"{name} is missing" for name in sorted(expected.keys() - present)]
    problems += [f"{name} does not belong to it" for name in sorted(present - expected.keys())]
    problems += [
        f"{name} was changed" for name in sorted(expected.keys() & present) if _describe(path / name) != expected[name]
    ]
    if problems:
        raise SnapshotError(f"{path} is damaged: {'; '.join(problems)}")
    return Snapshot(path, manifest)


def read_split(path: Path, split: str) -> pl.DataFrame:
    """The rows of one split."""
    return pl.read_parquet(path / "data" / f"{split}-*.parquet")


def rows_sha256(frame: pl.DataFrame) -> str:
    """A hash of the rows' values and order, which does not depend on how Parquet stores them."""
    digest = hashlib.sha256()
    for row in frame.iter_rows(named=True):
        digest.update(orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))
    return digest.hexdigest()


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
