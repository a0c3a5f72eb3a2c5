"""Snapshots of a store: published, found, compared, and made again.

What a kind of snapshot holds is `curate.snapshot_kinds`' affair; files and hashes are `store.snapshots`'.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import orjson
import polars as pl

from curate.data_sets import find_data_set
from curate.lineage import code_commit, library_versions
from curate.sids.versions import SidVersion, load_settings
from curate.snapshot_kinds import Kind, SnapshotSettings, find_kind
from store import InputError, SnapshotError, Store
from store.snapshots import Snapshot, read_manifest, read_split, verify_snapshot, write_snapshot
from store.temporary import temporary_folder
from store.values import utc_now

SPLIT_NAMES = {"train": "train", "valid": "validation", "test": "test"}
# What stands elsewhere in the manifest.
_NOT_SELECTION = ("dataset", "kind")


def publish(store: Store, name: str, settings: SnapshotSettings) -> Snapshot:
    """Write a snapshot of the selected traces and record it; the same selection of the same store is the same version.

    Raises InputError where nothing is selected, SnapshotError where a row holds a test target or leaks the target.
    """
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"{name!r} cannot name a snapshot: use a plain file name")
    latest = _newest(store, name)
    snapshot = _write(store, store.snapshots / name, settings, name, latest)
    row = {
        "name": name,
        "version": snapshot.version,
        "kind": settings.kind,
        "rows": sum(split["rows"] for split in snapshot.manifest["splits"].values()),
        "path": str(snapshot.path.relative_to(store.folder)),
        "manifest": orjson.dumps(snapshot.manifest).decode(),
        "created_at": utc_now(),
    }
    with store.writing() as session:
        session.put("snapshots", pl.DataFrame([row]))
    return snapshot


def rebuild(store: Store, snapshot: Snapshot) -> bool:
    """Make a snapshot again from the store; whether every byte came out the same."""
    selection = {name: value for name, value in snapshot.manifest["selection"].items() if name in _selection_names()}
    settings = SnapshotSettings(
        dataset=snapshot.manifest["lineage"]["dataset"],
        kind=snapshot.manifest["kind"],
        **(selection | {"splits": tuple(selection["splits"])}),
    )
    with temporary_folder(store.folder) as folder:
        again = _write(store, folder, settings, snapshot.manifest["name"], snapshot)
        return again.version == snapshot.version


def find_snapshot(store: Store, reference: str) -> Snapshot:
    """The snapshot called NAME (its newest version) or NAME@VERSION (any unambiguous beginning of a version).

    Raises InputError where there is none, SnapshotError where its manifest was changed.
    """
    name, _, version = reference.partition("@")
    with store.reading() as session:
        versions = session.rows("snapshot_versions", name=name)
    matching = [path for known, path in versions if known.startswith(version)]
    if not matching:
        raise InputError(f"there is no snapshot {reference!r}; gr2 snapshot list shows those that there are")
    if version and len(matching) > 1:
        raise InputError(f"{reference!r} fits {len(matching)} versions; give more of its digits")
    path = store.folder / matching[0]
    return Snapshot(path, read_manifest(path))


def _newest(store: Store, name: str) -> Snapshot | None:
    with store.reading() as session:
        known = session.rows("snapshot_versions", name=name)
    return find_snapshot(store, name) if known else None


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """Keys of rows that only the newer holds, only the older holds, and that both hold with different values."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def diff(older: Snapshot, newer: Snapshot) -> SnapshotDiff:
    """Compare two verified snapshots row by row. Raises InputError where they are of different kinds."""
    kinds = {snapshot.manifest["kind"] for snapshot in (older, newer)}
    if len(kinds) > 1:
        raise InputError(f"snapshots of kinds {' and '.join(sorted(kinds))} have no rows in common to compare")
    key = find_kind(kinds.pop()).key

    def rows(snapshot: Snapshot) -> dict[str, bytes]:
        verify_snapshot(snapshot.path)
        return {
            row[key]: orjson.dumps(row, option=orjson.OPT_SORT_KEYS)
            for split in snapshot.manifest["splits"]
            for row in read_split(snapshot.path, split).iter_rows(named=True)
        }

    before, after = rows(older), rows(newer)
    return SnapshotDiff(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=sorted(row for row in before.keys() & after.keys() if before[row] != after[row]),
    )


def _write(store: Store, folder: Path, settings: SnapshotSettings, name: str, latest: Snapshot | None) -> Snapshot:
    """Select, check and write."""
    kind = find_kind(settings.kind)
    with store.reading() as session:
        data_set = find_data_set(session, settings.dataset)
        selected = kind.select(session, settings)
        if selected.targets:
            keys = sorted({f"{user_id}\x1f{position}" for user_id, position in selected.targets})
            forbidden = session.rows("test_targets", dataset=settings.dataset, keys=keys)
            if forbidden:
                raise SnapshotError(
                    f"the selection holds test targets, of user {forbidden[0][0]!r} at position {forbidden[0][1]} for "
                    "one; a snapshot for training must not: leave split test out"
                )
        sizes = {
            version: load_settings(session, SidVersion(settings.dataset, version)) for version in selected.sid_versions
        }
    rows = selected.render()
    splits = {
        SPLIT_NAMES[split]: pl.DataFrame([row for of, row in rows if of == split], schema=kind.schema)
        for split in settings.splits
        if any(of == split for of, _ in rows)
    }
    selection = {field: value for field, value in asdict(settings).items() if field not in _NOT_SELECTION}
    body = {
        "name": name,
        "kind": settings.kind,
        "selection": selection | selected.selection,
        "lineage": {
            "dataset": settings.dataset,
            "dataset_fingerprint": data_set["fingerprint"],
            "dataset_settings": orjson.loads(data_set["settings"]),
            "semantic_ids": [
                {"sid_version": version, "levels": size["levels"], "codebook_size": size["codebook_size"]}
                for version, size in sizes.items()
            ],
            "code_commit": code_commit(),
            "libraries": library_versions(),
            **selected.lineage,
        },
    }
    return write_snapshot(folder, splits, body, _card(name, kind, settings, splits), latest=latest)


def _selection_names() -> set[str]:
    """The fields of the settings that a manifest keeps as its selection."""
    return {field.name for field in fields(SnapshotSettings)} - set(_NOT_SELECTION)


def _card(name: str, kind: Kind, settings: SnapshotSettings, splits: dict[str, pl.DataFrame]) -> str:
    """A dataset card whose YAML makes `datasets.load_dataset(folder)` find the splits."""
    files = "\n".join(f"      - split: {split}\n        path: data/{split}-*.parquet" for split in splits)
    counts = "\n".join(f"| {split} | {frame.height:,} |" for split, frame in splits.items())
    return f"""---
configs:
  - config_name: {settings.kind}
    default: true
    data_files:
{files}
tags:
  - gr2
  - re-ranking
  - reasoning
---
# {name}

{kind.about} Of data set `{settings.dataset}`; items stand as semantic IDs. `manifest.json` says how it was made.

| split | rows |
|---|---|
{counts}
"""
