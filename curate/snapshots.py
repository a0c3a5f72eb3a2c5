"""Which traces go into a snapshot, what a trainer gets of each, and what must never be published.

A row holds the prompt that a student will see, never the one that showed a teacher the target: a targeted trace is
paired with the prompt of its template's student. Files and hashes are `store.snapshots`' part.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from curate.data_sets import find_data_set
from curate.lineage import code_commit, library_versions
from curate.requests import render_list
from curate.rules import RULES, find_leak
from curate.tasks import ListedTask, load_tasks
from prompts.completion import NUMBERS, render_completion
from prompts.templates import Template, load_template, parse_template
from store import InputError, Session, SnapshotError, Store
from store.snapshots import Snapshot, read_manifest, read_split, verify_snapshot, write_snapshot
from store.temporary import temporary_folder
from store.values import utc_now

SPLIT_NAMES = {"train": "train", "valid": "validation", "test": "test"}
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
SFT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "trace_id": pl.String,
    "list_id": pl.String,
    "prompt": MESSAGES,
    "completion": MESSAGES,
    "reasoning": pl.String,
    "ranking": pl.List(pl.String),
    "candidates": pl.List(pl.String),
    "history": pl.List(pl.String),
    "target": pl.String,
    "target_rank": pl.Int32,
    "pass_rate": pl.Float64,
    "template": pl.String,
    "strategy": pl.String,
    "teacher": pl.String,
    "model": pl.String,
    "temperature": pl.Float64,
}


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """A selection. template and teacher: None means any. splits: of the candidate lists; test must not be published."""

    dataset: str
    policy: str = "paper"
    kind: str = "sft"
    splits: tuple[str, ...] = ("train", "valid")
    template: str | None = None
    teacher: str | None = None

    def __post_init__(self) -> None:
        if self.kind != "sft":
            raise InputError(f"--kind is {self.kind!r}; this gr2 publishes 'sft'")


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
    selection = dict(snapshot.manifest["selection"])
    settings = SnapshotSettings(
        dataset=snapshot.manifest["lineage"]["dataset"],
        kind=snapshot.manifest["kind"],
        policy=selection["policy"],
        splits=tuple(selection["splits"]),
        template=selection["template"],
        teacher=selection["teacher"],
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
    """Trace ids that only the newer holds, only the older holds, and that both hold with different rows."""

    added: list[str]
    removed: list[str]
    changed: list[str]


def diff(older: Snapshot, newer: Snapshot) -> SnapshotDiff:
    """Compare two verified snapshots row by row."""

    def rows(snapshot: Snapshot) -> dict[str, bytes]:
        verify_snapshot(snapshot.path)
        return {
            row["trace_id"]: orjson.dumps(row, option=orjson.OPT_SORT_KEYS)
            for split in snapshot.manifest["splits"]
            for row in read_split(snapshot.path, split).iter_rows(named=True)
        }

    before, after = rows(older), rows(newer)
    return SnapshotDiff(
        added=sorted(after.keys() - before.keys()),
        removed=sorted(before.keys() - after.keys()),
        changed=sorted(trace for trace in before.keys() & after.keys() if before[trace] != after[trace]),
    )


def _write(store: Store, folder: Path, settings: SnapshotSettings, name: str, latest: Snapshot | None) -> Snapshot:
    """Select, check, render and write."""
    selection = asdict(settings)
    del selection["kind"], selection["dataset"]
    with store.reading() as session:
        selected = session.frame("snapshot_rows", dataset=settings.dataset, **(selection | {"splits": settings.splits}))
        rules = session.rows("run_policy_rules", policy=settings.policy)
        data_set = find_data_set(session, settings.dataset)
        events, newest = session.rows("label_watermark", dataset=settings.dataset)[0]
        if selected.height == 0:
            raise InputError(
                f"no trace of {settings.dataset!r} is accepted under policy {settings.policy!r} with these filters; "
                "gr2 status shows the funnel"
            )
        keys = (selected["user_id"] + "\x1f" + selected["position"].cast(pl.String)).unique().to_list()
        forbidden = session.rows("test_targets", dataset=settings.dataset, keys=keys)
        if forbidden:
            raise SnapshotError(
                f"the selection holds test targets, of user {forbidden[0][0]!r} at position {forbidden[0][1]} for one; "
                "a snapshot for training must not: leave split test out"
            )
        tasks: dict[str, ListedTask] = {}
        for (sid_version,), group in selected.group_by("sid_version"):
            lists = group["list_id"].unique().to_list()
            tasks |= load_tasks(session, settings.dataset, str(sid_version), lists)
        templates = selected.select("template", "template_sha256").unique().sort("template", "template_sha256").rows()
        students = {sha256: _student(session, template, sha256) for template, sha256 in templates}
    rows = [
        (row["split"], _sft_row(row, tasks[row["list_id"]], students[row["template_sha256"]]))
        for row in selected.iter_rows(named=True)
    ]
    _refuse_leaks([row for _, row in rows])
    splits = {
        SPLIT_NAMES[split]: pl.DataFrame([row for of, row in rows if of == split], schema=SFT_SCHEMA)
        for split in settings.splits
        if any(of == split for of, _ in rows)
    }
    body = {
        "name": name,
        "kind": settings.kind,
        "selection": {
            **selection,
            "rules": [{"rule": rule, "version": RULES[rule].version if rule in RULES else 1} for rule in rules[0][0]],
            "labels": {"events": events, "newest": newest},
        },
        "lineage": {
            "dataset": settings.dataset,
            "dataset_fingerprint": data_set["fingerprint"],
            "dataset_settings": orjson.loads(data_set["settings"]),
            "sid_versions": sorted(selected["sid_version"].unique()),
            "templates": [{"template": template, "sha256": sha256} for template, sha256 in templates],
            "teachers": sorted({f"{teacher}/{model}" for teacher, model in selected.select("teacher", "model").rows()}),
            "code_commit": code_commit(),
            "libraries": library_versions(),
        },
    }
    return write_snapshot(folder, splits, body, _card(name, settings, splits), latest=latest)


def _student(session: Session, template: str, sha256: str) -> Template:
    """The template whose prompt goes with traces of a template, in the wording that they were made with."""
    ((text,),) = session.rows("template_text", template=template, sha256=sha256)
    teacher = parse_template(template, text)
    return teacher if teacher.student == template else load_template(teacher.student)


def _sft_row(row: dict[str, Any], listed: ListedTask, student: Template) -> dict[str, Any]:
    """What a trainer gets of one trace; every item is a semantic ID."""
    task, messages = render_list(student, listed, knowledge_priming=row["knowledge_priming"])
    sids = {candidate.item.item_id: candidate.item.sid for candidate in task.candidates}
    parsed = row["ranking"] is not None and all(item in sids for item in row["ranking"])
    ranking = [sids[item] for item in row["ranking"]] if parsed else None
    candidates = list(sids.values())
    completion = row["completion"]
    if ranking is not None:
        numbers = [candidates.index(sid) + 1 for sid in ranking]
        completion = render_completion(row["reasoning"], numbers if student.answer == NUMBERS else ranking)
    target = sids.get(listed.target_item_id)
    return {
        "trace_id": row["trace_id"],
        "list_id": row["list_id"],
        "prompt": list(messages),
        "completion": [{"role": "assistant", "content": completion}],
        "reasoning": row["reasoning"],
        "ranking": ranking,
        "candidates": candidates,
        "history": [item.sid for item in task.history],
        "target": target,
        "target_rank": candidates.index(target) + 1 if target else None,
        "pass_rate": row["pass_rate"],
        "template": student.name,
        "strategy": row["strategy"],
        "teacher": row["teacher"],
        "model": row["model"],
        "temperature": row["temperature"],
    }


def _refuse_leaks(rows: list[dict[str, Any]]) -> None:
    """Raises SnapshotError where a completion tells that its writer was shown the target."""
    leaks = [(row["trace_id"], leak) for row in rows if (leak := find_leak(row["completion"][0]["content"]))]
    if leaks:
        raise SnapshotError(
            f"{len(leaks)} of {len(rows)} traces leak the target, {leaks[0][0]} for one, by the words {leaks[0][1]!r}; "
            "nothing was published: use policy strict, or label them bad"
        )


def _card(name: str, settings: SnapshotSettings, splits: dict[str, pl.DataFrame]) -> str:
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

Reasoning traces for re-ranking, of data set `{settings.dataset}`, accepted under policy `{settings.policy}`.
`prompt` and `completion` are chat messages; items stand as semantic IDs. `manifest.json` says how it was made.

| split | rows |
|---|---|
{counts}
"""
