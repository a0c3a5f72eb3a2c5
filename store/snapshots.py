"""Snapshots on disk: immutable folders of Parquet files, named by the hash of their contents.

    snapshots/<name>/<version>/
        manifest.json         the selection, its sources, and the sha256 of each file
        README.md             a dataset card, from which datasets.load_dataset(folder) learns the splits
        data/<split>-00000-of-00003.parquet

The version is the sha256 of the manifest. A snapshot contains no time and no machine name, so the same store gives the
same bytes. Rows pass through on disk, and a long split has several files, so that a snapshot may be larger than the
memory. This module does not know how rows are selected; `curate.snapshots.publishing` does.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl
import pyarrow.parquet as pq

from store.errors import InputError, SnapshotError
from store.temporary import temporary_folder

FORMAT_VERSION = 1
VERSION_DIGITS = 16
# A split of up to this many rows is one file with one row group.
ONE_FILE_ROWS = 20_000
# The files of a longer split have this many rows. A file that is being written takes some 25 KB of memory for each row.
FILE_ROWS = 10_000
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_DIGITS}}}")
_KEYS = {"format_version", "files", "splits"}
# The number of rows that are Python objects at the same time, of some 40 KB each.
PART_ROWS = 1_000


class Snapshot(NamedTuple):
    """A snapshot on disk: its folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def version(self) -> str:
        """The version, computed from the manifest and not from the folder's name."""
        return _seal(self.manifest)[0]


class SplitRows(NamedTuple):
    """The rows of one split on disk, in their final order.

    parts: IPC files of PART_ROWS rows. rows: the number of rows. sha256: the hash that `rows_sha256` returns for them.
    """

    parts: list[Path]
    schema: Mapping[str, Any]
    rows: int
    sha256: str

    def files(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Yield the rows of each file, with the end of its name."""
        step = (ONE_FILE_ROWS if self.rows <= ONE_FILE_ROWS else FILE_ROWS) // PART_ROWS
        starts = range(0, len(self.parts), step)
        for number, start in enumerate(starts):
            yield _file_ending(number, len(starts)), pl.scan_ipc(self.parts[start : start + step], glob=False).collect()

    def whole(self) -> pl.DataFrame:
        """All rows in memory."""
        frames = (pl.scan_ipc(part, glob=False).collect() for part in self.parts)
        return pl.DataFrame([row for frame in frames for row in frame.iter_rows(named=True)], schema=dict(self.schema))


@contextmanager
def spool_rows(
    folder: Path, schema: Mapping[str, Any], rows: Iterable[tuple[str, Mapping[str, Any]]]
) -> Iterator[dict[str, SplitRows]]:
    """Write rows to files below `folder`, one at a time, and keep the files for the length of the block.

    rows: pairs of split and row. Yields the rows by split. Raises SnapshotError if they cannot be written.
    """
    with temporary_folder(folder) as temporary:
        spools: dict[str, _Spool] = {}
        for split, row in rows:
            if split not in spools:
                spools[split] = _Spool(temporary / f"{len(spools)}", schema)
            spools[split].append(row)
        yield {split: spool.finish() for split, spool in spools.items()}


class _Spool:
    """Files of PART_ROWS rows each, and the digest of the rows so far."""

    def __init__(self, folder: Path, schema: Mapping[str, Any]) -> None:
        self._folder, self._schema = folder, schema
        self._waiting: list[Mapping[str, Any]] = []
        self._parts: list[Path] = []
        self._rows = 0
        self._digest = hashlib.sha256()

    def append(self, row: Mapping[str, Any]) -> None:
        self._waiting.append(row)
        if len(self._waiting) == PART_ROWS:
            self._flush()

    def finish(self) -> SplitRows:
        self._flush()
        return SplitRows(self._parts, self._schema, self._rows, self._digest.hexdigest())

    def _flush(self) -> None:
        if not self._waiting:
            return
        frame = pl.DataFrame(self._waiting, schema=self._schema)
        part = self._folder / f"{len(self._parts):06}.arrow"
        with _writing(self._folder):
            self._folder.mkdir(exist_ok=True)
            frame.write_ipc(part, compression="lz4")
        _digest_rows(self._digest, frame)
        self._parts.append(part)
        self._rows += frame.height
        self._waiting = []


def write_snapshot(
    folder: Path,
    splits: Mapping[str, pl.DataFrame | SplitRows],
    body: Mapping[str, Any],
    card: str,
    *,
    latest: Snapshot | None = None,
) -> Snapshot:
    """Write a snapshot below `folder`. If one with the same content exists, it is left as it is.

    splits: rows by split name, in their final order, from `spool_rows`, or as a frame, which becomes one file. body:
    facts about the selection and its lineage, in types that JSON supports. card: text of README.md. latest: the newest
    snapshot of the same name, which becomes the parent if the content differs. The snapshot is written to a temporary
    folder, synced and renamed, so that a reader sees all of it or nothing.

    Raises SnapshotError if it cannot be written. In that case nothing is kept.
    """
    with _writing(folder):
        return _write(folder, splits, body, card, latest)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors such as a full disk or a read-only folder into a SnapshotError of one line."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n", 1)[0]
        raise SnapshotError(f"{folder}: the snapshot could not be written ({reason}); nothing was kept") from error


def _write(
    folder: Path,
    splits: Mapping[str, pl.DataFrame | SplitRows],
    body: Mapping[str, Any],
    card: str,
    latest: Snapshot | None,
) -> Snapshot:
    with temporary_folder(folder) as temporary:
        # A subfolder, because a temporary folder is readable only by its owner, and a snapshot should not be.
        staged = temporary / "snapshot"
        data = staged / "data"
        data.mkdir(parents=True)
        for split, rows in splits.items():
            for ending, frame in rows.files() if isinstance(rows, SplitRows) else [(_file_ending(0, 1), rows)]:
                # With fixed row groups and compression, the bytes depend only on the rows.
                frame.lazy().sink_parquet(
                    data / f"{split}-{ending}",
                    compression="zstd",
                    compression_level=3,
                    row_group_size=ONE_FILE_ROWS,
                    statistics=True,
                )
        (staged / "README.md").write_text(card, "utf-8")
        files = {str(file.relative_to(staged)): _describe(file) for file in _files(staged)}
        manifest = {
            "format_version": FORMAT_VERSION,
            **body,
            "splits": {split: _count(rows) for split, rows in splits.items()},
            "files": files,
        }
        # With the parent of the latest snapshot, the same content gives the same version. Only new content gets a new
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


def _file_ending(number: int, count: int) -> str:
    """The end of the name of one of a split's files, as the libraries of the Hugging Face hub write it."""
    return f"{number:05}-of-{count:05}.parquet"


def _seal(manifest: dict[str, Any]) -> tuple[str, bytes]:
    """The version of a manifest and its bytes."""
    text = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    return _version_of(text), text


def _version_of(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:VERSION_DIGITS]


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a snapshot folder, checked against the version in the folder's name.

    If the folder's name is not a version, because it was renamed, the version is the hash of the manifest.

    Raises InputError if there is no snapshot, and SnapshotError if the manifest was changed or is too new.
    """
    file = path / "manifest.json"
    if not file.is_file():
        raise InputError(f"{path} is not a snapshot: it has no manifest.json")
    try:
        text = file.read_bytes()
    except OSError as error:
        raise SnapshotError(f"{file} cannot be read: {error.strerror}") from error
    version = _version_of(text)
    if _VERSION.fullmatch(path.name) and version != path.name:
        raise SnapshotError(f"{file} was changed: its hash is {version}, but the folder is named {path.name}")
    try:
        manifest = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise SnapshotError(f"{file} was changed: it is not JSON ({error})") from error
    if not isinstance(manifest, dict) or _KEYS - manifest.keys():
        raise InputError(f"{path} is not a snapshot: its manifest.json lacks some of {', '.join(sorted(_KEYS))}")
    if manifest["format_version"] > FORMAT_VERSION:
        raise SnapshotError(
            f"{file} has format {manifest['format_version']}, but this gr2 reads formats up to {FORMAT_VERSION}; "
            "install a newer gr2"
        )
    if _seal(manifest)[1] != text:
        raise SnapshotError(f"{file} was changed: gr2 would write it differently; publish the snapshot again")
    return manifest


def verify_snapshot(path: Path) -> Snapshot:
    """Hash every file again. Raises SnapshotError with the name of each changed, missing or additional file.

    The folder must contain only the files of the manifest. Links are errors, because they may lead to other contents
    later, and so are empty folders.
    """
    manifest = read_manifest(path)
    expected = manifest["files"]
    try:
        present, links = _contents(path)
        problems = [f"{name} is a link" for name in links]
        problems += [f"{name} is missing" for name in sorted(expected.keys() - present - set(links))]
        problems += [f"{name} is not in its manifest" for name in sorted(present - expected.keys() - {"manifest.json"})]
        problems += [
            f"{name} was changed"
            for name in sorted(expected.keys() & present)
            if _describe(path / name) != expected[name]
        ]
    except OSError as error:
        raise SnapshotError(f"{path} cannot be verified: {error.filename}: {error.strerror}") from error
    if problems:
        raise SnapshotError(f"{path} is damaged: {'; '.join(problems)}")
    return Snapshot(path, manifest)


def _contents(folder: Path) -> tuple[set[str], list[str]]:
    """The names of all files and empty folders in a folder, and the names of its links."""
    present: set[str] = set()
    links = []
    for parent, folders, files in os.walk(folder, onerror=_fail):
        for name in [*folders, *files]:
            entry = Path(parent, name)
            relative = entry.relative_to(folder).as_posix()
            mode = entry.lstat().st_mode
            if stat.S_ISLNK(mode):
                links.append(relative)
            elif not stat.S_ISDIR(mode) or not any(entry.iterdir()):
                present.add(relative)
    return present, sorted(links)


def _fail(error: OSError) -> None:
    raise error


def split_files(snapshot: Snapshot, split: str) -> list[Path]:
    """The data files of one split, by their names in the manifest. Names are not treated as patterns."""
    pattern = re.compile(rf"data/{re.escape(split)}-\d{{5}}-of-\d{{5}}\.parquet")
    return [snapshot.path / name for name in sorted(snapshot.manifest["files"]) if pattern.fullmatch(name)]


def read_split(path: Path, split: str) -> pl.DataFrame:
    """The rows of one split. Raises InputError if the snapshot has no such split."""
    files = split_files(Snapshot(path, read_manifest(path)), split)
    if not files:
        raise InputError(f"{path} has no split {split!r}")
    return pl.read_parquet(files, glob=False)


def iterate_rows(snapshot: Snapshot) -> Iterator[dict[str, Any]]:
    """The rows of all splits, read in parts to save memory. Raises SnapshotError if a file cannot be read."""
    for split in snapshot.manifest["splits"]:
        for file in split_files(snapshot, split):
            try:
                with pq.ParquetFile(file) as opened:
                    for batch in opened.iter_batches(PART_ROWS):
                        yield from batch.to_pylist()
            except (OSError, ValueError) as error:
                raise SnapshotError(f"{file} cannot be read ({error}); verify the snapshot") from error


def rows_sha256(frame: pl.DataFrame) -> str:
    """A hash of the rows' values and order, which does not depend on how Parquet stores them."""
    digest = hashlib.sha256()
    _digest_rows(digest, frame)
    return digest.hexdigest()


def _digest_rows(digest: "hashlib._Hash", frame: pl.DataFrame) -> None:
    for row in frame.iter_rows(named=True):
        digest.update(orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))


def _count(rows: pl.DataFrame | SplitRows) -> dict[str, Any]:
    """The manifest's entry for a split."""
    if isinstance(rows, SplitRows):
        return {"rows": rows.rows, "rows_sha256": rows.sha256}
    return {"rows": rows.height, "rows_sha256": rows_sha256(rows)}


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
