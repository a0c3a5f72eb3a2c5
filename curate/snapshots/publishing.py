"""Previews, publishes, finds, traces back, compares and rebuilds snapshots of a store.

`curate.snapshots` defines the rows of each kind of snapshot, and `store.snapshots` writes files and hashes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl

from curate.datasets.catalogue import find_dataset
from curate.datasets.provenance import code_commit, library_versions
from curate.sids.versions import SidVersion, load_settings
from curate.snapshots import KINDS, Counts, Kind, Selection, SnapshotSettings
from curate.snapshots.kind import SplitRow
from curate.traces.rulesets import find_ruleset, pin_rulesets, versions_in_force
from store import Gr2Error, InputError, Session, SnapshotError, Store
from store.names import check_name
from store.snapshots import (
    Snapshot,
    SplitRows,
    iterate_rows,
    read_manifest,
    spool_rows,
    verify_snapshot,
    write_snapshot,
)
from store.temporary import temporary_folder
from store.values import utc_now

SPLIT_NAMES = {"train": "train", "valid": "validation", "test": "test"}
PREVIEW_ROWS = 3


def publish(store: Store, name: str, settings: SnapshotSettings) -> Snapshot:
    """Write and record a snapshot of the selected rows. The same selection of the same store is the same version.

    Raises InputError if nothing is selected, and SnapshotError if a row contains a test target or leaks its target. In
    both cases nothing is written.
    """
    check_name("snapshot", name)
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


@dataclass(frozen=True, slots=True)
class Preview:
    """The result of publishing, without writing it.

    refusal: the reason why publishing would fail, or None. first: the first rows, each with its split in the store;
    empty if publishing would fail.
    """

    counts: Counts
    refusal: str | None
    first: list[SplitRow]


def preview(store: Store, settings: SnapshotSettings) -> Preview:
    """Check what `publish` would do, in the same way, but make only the first rows and write nothing.

    Raises InputError if the settings name something that does not exist, and SnapshotError if one of the first rows
    leaks its target although the rule passed it.
    """
    with store.reading() as session:
        _pin(session, settings)
        selected = KINDS.find(settings.kind).select(session, settings)
        refusal = _refusal(session, settings, selected)
        contents = None if refusal else selected.load(PREVIEW_ROWS)
    if contents and not (refusal := selected.check(store)):
        return Preview(selected.counts, None, list(contents.rows(store)))
    return Preview(selected.counts, str(refusal), [])


def rebuild(store: Store, snapshot: Snapshot) -> bool:
    """Make a snapshot again from the store, under the original versions of its rulesets.

    Returns whether every byte is the same. The card's text, the code's commit and the library versions are copied from
    the snapshot. They record what made it, and the question is whether the present code makes the same rows.
    """
    settings = SnapshotSettings.from_manifest(snapshot.manifest)
    with temporary_folder(store.folder) as folder:
        again = _write(store, folder, settings, snapshot.manifest["name"], snapshot, remade=snapshot)
        return again.version == snapshot.version


def find_snapshot(store: Store, reference: str) -> Snapshot:
    """The snapshot called NAME (its newest version) or NAME@VERSION (any unambiguous beginning of a version).

    Raises InputError if there is no such snapshot, and SnapshotError if its manifest was changed.
    """
    name, _, version = reference.partition("@")
    with store.reading() as session:
        versions = session.rows("snapshot_versions", name=name)
    matching = [(known, path) for known, path in versions if known.startswith(version)]
    if not matching:
        raise InputError(f"there is no snapshot {reference!r}; gr2 snapshot list shows all snapshots")
    if version and len(matching) > 1:
        raise InputError(f"{reference!r} matches {len(matching)} versions; give more digits of the version")
    known, place = matching[0]
    path = store.folder / place
    snapshot = Snapshot(path, read_manifest(path))
    if snapshot.version != known:
        raise SnapshotError(f"{path} was changed: its version is {snapshot.version}, but {known} was published there")
    return snapshot


def load_snapshots(store: Store) -> pl.DataFrame:
    """All snapshots, newest first: name, version, kind, rows, created_at, path."""
    with store.reading() as session:
        return session.frame("snapshots_newest_first")


class Options(NamedTuple):
    """The choices for a selection: names of datasets and of rulesets."""

    datasets: list[str]
    rulesets: list[str]


def load_options(store: Store) -> Options:
    """The names from which a user can choose a selection."""
    with store.reading() as session:
        return Options(*([name for (name,) in session.rows(names)] for names in ("dataset_names", "ruleset_names")))


@dataclass(frozen=True, slots=True)
class Lineage:
    """The origin and the uses of a snapshot, newest first.

    runs: the runs that made its traces, with numbers of rows. versions: the snapshot and its ancestors. trainings: the
    trainings that used it.
    """

    runs: pl.DataFrame
    versions: pl.DataFrame
    trainings: pl.DataFrame


def load_lineage(store: Store, snapshot: Snapshot) -> Lineage:
    """The lineage that the manifest does not contain. Raises SnapshotError if the snapshot's rows cannot be read."""
    name, version = snapshot.manifest["name"], snapshot.version
    traces: list[str] = []
    if KINDS.find(snapshot.manifest["kind"]).key == "trace_id":
        files = [snapshot.path / file for file in snapshot.manifest["files"] if file.endswith(".parquet")]
        try:
            traces = pl.read_parquet(files, columns=["trace_id"], glob=False)["trace_id"].to_list()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise SnapshotError(f"{snapshot.path} is damaged: its rows cannot be read ({error}); verify it") from error
    with store.reading() as session:
        return Lineage(
            runs=session.frame("snapshot_runs", trace_ids=traces),
            versions=session.frame("snapshot_ancestors", name=name, version=version),
            trainings=session.frame("snapshot_trainings", reference=f"{name}@{version}"),
        )


def _newest(store: Store, name: str) -> Snapshot | None:
    with store.reading() as session:
        versions = session.rows("snapshot_versions", name=name)
    return find_snapshot(store, name) if versions else None


@dataclass(frozen=True, slots=True)
class SnapshotDiff:
    """Keys of rows that only the newer snapshot has, that only the older has, and that differ between the two."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def diff(older: Snapshot, newer: Snapshot) -> SnapshotDiff:
    """Compare two verified snapshots row by row. Raises InputError if they are of different kinds."""
    kinds = {snapshot.manifest["kind"] for snapshot in (older, newer)}
    if len(kinds) > 1:
        raise InputError(f"snapshots of kinds {' and '.join(sorted(kinds))} have no rows in common to compare")
    key = KINDS.find(kinds.pop()).key

    def rows(snapshot: Snapshot) -> dict[str, bytes]:
        """Digests of the rows by key."""
        verify_snapshot(snapshot.path)
        return {
            row[key]: hashlib.sha256(orjson.dumps(row, option=orjson.OPT_SORT_KEYS)).digest()
            for row in iterate_rows(snapshot)
        }

    before, after = rows(older), rows(newer)
    return SnapshotDiff(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=sorted(row for row in before.keys() & after.keys() if before[row] != after[row]),
    )


def _pin(session: Session, settings: SnapshotSettings, recorded: Mapping[str, Any] | None = None) -> dict[str, int]:
    """The versions of the rulesets for the selection. The session uses these versions from now on.

    recorded: the selection of a manifest, whose versions are then used. Older manifests have no ruleset versions and
    mean version 1.
    """
    if recorded is not None:
        versions: dict[str, int] = recorded.get("ruleset_versions", dict.fromkeys(settings.rulesets, 1))
    else:
        chosen = find_ruleset(session, settings.ruleset)
        versions = versions_in_force(session, settings.rulesets)
        if chosen.name in versions:
            versions[chosen.name] = chosen.version
    pin_rulesets(session, versions)
    return versions


def _write(
    store: Store,
    folder: Path,
    settings: SnapshotSettings,
    name: str,
    latest: Snapshot | None,
    *,
    remade: Snapshot | None = None,
) -> Snapshot:
    """Select, check and write a snapshot.

    remade: the snapshot that is made again, whose manifest supplies the facts about its making.
    """
    kind = KINDS.find(settings.kind)
    with store.reading() as session:
        versions = _pin(session, settings, remade.manifest["selection"] if remade else None)
        dataset = find_dataset(session, settings.dataset)
        selected = kind.select(session, settings)
        if refusal := _refusal(session, settings, selected):
            raise refusal
        contents = selected.load(None)
        sizes = {
            version: load_settings(session, SidVersion(settings.dataset, version)) for version in contents.sid_versions
        }
    if refusal := selected.check(store):
        raise refusal
    body: dict[str, Any] = {
        "name": name,
        "kind": settings.kind,
        "selection": settings.to_selection()
        | contents.selection
        | ({"ruleset_versions": versions} if versions else {}),
        "lineage": {
            "dataset": settings.dataset,
            "dataset_fingerprint": dataset["fingerprint"],
            "dataset_settings": orjson.loads(dataset["settings"]),
            "semantic_ids": [
                {"sid_version": version, "levels": size["levels"], "codebook_size": size["codebook_size"]}
                for version, size in sizes.items()
            ],
            "code_commit": code_commit(),
            "libraries": library_versions(),
            **contents.lineage,
        },
    }
    if remade:
        original = remade.manifest
        body["selection"] = original["selection"] | {
            name: value for name, value in contents.selection.items() if name == "labels"
        }
        body["lineage"] |= {name: original["lineage"][name] for name in ("code_commit", "libraries")}
    with spool_rows(store.folder, kind.schema, contents.rows(store)) as spooled:
        splits = {SPLIT_NAMES[split]: spooled[split] for split in settings.splits if split in spooled}
        card = _read_card(remade) if remade else _card(name, kind, settings, splits)
        snapshot = write_snapshot(folder, splits, body, card, latest=latest)
        if remade and snapshot.version != remade.version and snapshot.manifest["splits"] == remade.manifest["splits"]:
            # The rows are the same, but the files differ: gr2 0.1 wrote each split into one file.
            whole = {split: rows.whole() for split, rows in splits.items()}
            snapshot = write_snapshot(folder, whole, body, card, latest=latest)
        return snapshot


def _refusal(session: Session, settings: SnapshotSettings, selected: Selection) -> Gr2Error | None:
    """The reason why a selection must not be published, or None."""
    taught = selected.targets
    if not isinstance(taught, pl.DataFrame):
        taught = pl.DataFrame(sorted(taught), schema={"user_id": pl.String, "position": pl.Int64}, orient="row")
    session.insert("create_taught", taught)
    forbidden = session.rows("test_targets", dataset=settings.dataset)
    if forbidden:
        return SnapshotError(
            f"the selection contains test targets, for example of user {forbidden[0][0]!r} at position "
            f"{forbidden[0][1]}, which a snapshot for training must not contain; leave split test out"
        )
    return selected.refusal


def _read_card(snapshot: Snapshot) -> str:
    try:
        return (snapshot.path / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SnapshotError(f"{snapshot.path} is damaged: its README.md cannot be read ({error}); verify it") from error


def _card(name: str, kind: Kind, settings: SnapshotSettings, splits: Mapping[str, SplitRows]) -> str:
    """A dataset card with YAML that makes `datasets.load_dataset(folder)` find the splits."""
    # `load_dataset` does not accept a colon in the name of a configuration.
    config_name = settings.kind.rpartition(":")[2]
    files = "\n".join(f"      - split: {split}\n        path: data/{split}-*.parquet" for split in splits)
    counts = "\n".join(f"| {split} | {rows.rows:,} |" for split, rows in splits.items())
    return f"""---
configs:
  - config_name: {config_name}
    default: true
    data_files:
{files}
tags:
  - gr2
  - re-ranking
  - reasoning
---
# {name}

{kind.about}

The source is the dataset `{settings.dataset}`. Items are written as semantic IDs. `manifest.json` contains the
selection, its lineage and the hash of each file.

| split | rows |
|---|---|
{counts}
"""
