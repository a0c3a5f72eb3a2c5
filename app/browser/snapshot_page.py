"""The page Snapshots: all snapshots, one of them in full, and publishing from the filter (`app.browser.publishing`).

This module only draws; `curate.snapshots.publishing` reads and writes. Names that people chose, cards and keys of rows
are shown as text, never as HTML or Markdown.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import polars as pl
import streamlit as st

from app.browser.filter_bar import choose_filter
from app.browser.pages import draw_error, draw_title, escape_markdown, to_page, to_traces
from app.browser.publishing import CHOSEN, draw_publishing, reference_of
from app.browser.trace_html import table_html
from curate.snapshots import KINDS
from curate.snapshots.publishing import Lineage, SnapshotDiff, diff, find_snapshot, load_lineage, load_snapshots
from curate.traces.filter import TraceFilter
from store import Gr2Error, SnapshotError, Store
from store.snapshots import Snapshot, verify_snapshot

PUBLISHED, PUBLISH = "Published", "Publish from the filter"
MANIFEST, LINEAGE, FILES, LOAD, COMPARE = "Manifest", "Lineage", "Files", "Load", "Compare"
SHOWN_KEYS = 500
SHOWN_DIGITS = 12
# The link parameter that finds the traces of a row, by the name of the row's key.
KEY_FIELDS = {"trace_id": "trace", "list_id": "list_id"}
LINK = st.column_config.LinkColumn(display_text="open", width="small")
NUMBER = st.column_config.NumberColumn(format="localized")
# The files are read by their names in the manifest. A pattern would read other files of the folder too.
READ_BY_POLARS = """\
import json
from pathlib import Path

import polars as pl

folder = Path({path!r})
names = json.loads((folder / "manifest.json").read_text())["files"]
train = [folder / name for name in names if name.startswith("data/train-")]
rows = pl.read_parquet(train, glob=False)
"""
FILE_SIZE = st.column_config.NumberColumn("size", format="bytes")


def draw_snapshots(store: Store) -> None:
    """Draw the page."""
    draw_title(
        "Snapshots",
        "Immutable training data, as Parquet. A version is the hash of its content, so the same selection is the same "
        "version.",
    )
    chosen = choose_filter(store)
    published, publishing = st.tabs([PUBLISHED, PUBLISH], key="snapshots", bind="query-params")
    if published.open:
        with published:
            draw_published(store)
    if publishing.open:
        with publishing:
            draw_publishing(store, chosen)


def draw_published(store: Store) -> None:
    """Draw all snapshots, and one of them in full: the one in the link, or the newest."""
    snapshots = load_snapshots(store)
    if snapshots.height == 0:
        st.info(
            f'There are no snapshots yet. Publish one under "{PUBLISH}", or run '
            "`gr2 snapshot publish NAME --kind sft --ruleset paper`."
        )
        return
    references = snapshots.select(pl.concat_str("name", "version", separator="@")).to_series().to_list()
    event = st.dataframe(
        snapshots.drop("path"),
        hide_index=True,
        height=min(6, snapshots.height + 1) * 35 + 3,
        on_select="rerun",
        selection_mode="single-row",
        key=f"snapshots-{len(references)}",
        column_config={
            "rows": NUMBER,
            "created_at": st.column_config.DatetimeColumn("published (UTC)", format="YYYY-MM-DD HH:mm:ss"),
        },
    )
    if event.selection.rows:
        st.query_params[CHOSEN] = references[event.selection.rows[0]]
    try:
        draw_snapshot(store, find_snapshot(store, st.query_params.get(CHOSEN, references[0])), references)
    except Gr2Error as error:
        draw_error("This snapshot cannot be shown.", error)


def draw_snapshot(store: Store, snapshot: Snapshot, references: list[str]) -> None:
    """Draw one snapshot."""
    name, manifest = reference_of(snapshot), snapshot.manifest
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        st.code(name, language=None, width="content")
        st.metric("Kind", escape_markdown(manifest["kind"]), width="content")
        for split, of_split in manifest["splits"].items():
            st.metric(f"Rows ({escape_markdown(split)})", f"{of_split['rows']:,}", width="content")
        verifying = st.button("Verify", key=f"verify-{name}", icon=":material/verified:", help="Hash every file again.")
    if verifying:
        draw_verification(snapshot)
    parts = st.tabs([MANIFEST, LINEAGE, FILES, LOAD, COMPARE], key="part", bind="query-params")
    draws = (
        partial(draw_manifest, manifest),
        partial(draw_lineage, store, snapshot),
        partial(draw_files, manifest),
        partial(draw_loading, snapshot),
        partial(draw_diff, store, name, references),
    )
    for part, draw in zip(parts, draws, strict=True):
        if part.open:
            with part:
                draw()


def draw_verification(snapshot: Snapshot) -> None:
    """Hash every file again and show the result."""
    try:
        with st.spinner("Hashing every file"):
            verified = verify_snapshot(snapshot.path)
    except SnapshotError as error:
        draw_error("The files differ from what was published.", error)
    else:
        st.success(f"All {len(verified.manifest['files']):,} files are as published.", icon=":material/check:")


def draw_manifest(manifest: Mapping[str, Any]) -> None:
    """Draw what was selected, and where it comes from."""
    for column, section in zip(st.columns([2, 3], gap="medium"), ("selection", "lineage"), strict=True):
        with column:
            st.markdown(f"##### {section.capitalize()}")
            facts = [{"field": field, "value": value} for field, value in list_facts(manifest[section])]
            st.html(table_html(pl.DataFrame(facts)))


def list_facts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield a section of a manifest as pairs of a field and its value.

    Nested names are joined by dots, null is left out.

    >>> list(list_facts({"ruleset": "paper", "teacher": None, "labels": {"events": 2}}))
    [('ruleset', 'paper'), ('labels.events', '2')]
    """
    if isinstance(value, Mapping):
        for key in value:
            yield from list_facts(value[key], f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        for part in value:
            yield name, ", ".join(f"{key} {of_key}" for key, of_key in part.items())
    elif isinstance(value, list):
        yield name, ", ".join(map(str, value))
    elif value is not None:
        yield name, str(value)


def draw_lineage(store: Store, snapshot: Snapshot) -> None:
    """Draw the lineage, from the dataset to the trainings."""
    st.dataframe(
        lineage_table(snapshot, load_lineage(store, snapshot)),
        hide_index=True,
        height="content",
        column_config={
            "step": st.column_config.TextColumn(width=110),
            "what": st.column_config.TextColumn("name", width=280),
            "details": st.column_config.TextColumn(width=400),
            "link": LINK,
        },
    )


def lineage_table(snapshot: Snapshot, lineage: Lineage) -> pl.DataFrame:
    """Return a row for each source and each use of a snapshot, in the order of the pipeline."""
    manifest = snapshot.manifest
    name, facts = manifest["name"], manifest["lineage"]
    dataset = facts["dataset"]
    lines = [
        ("dataset", dataset, f"fingerprint {facts['dataset_fingerprint']}", to_traces(TraceFilter(dataset).to_query()))
    ]
    lines += [
        (
            "semantic IDs",
            sids["sid_version"],
            f"{sids['levels']} levels of {sids['codebook_size']} codes",
            to_page("semantic-ids", {"sids": f"{dataset}@{sids['sid_version']}"}),
        )
        for sids in facts["semantic_ids"]
    ]
    lines += [("pre-ranker", facts["pre_ranker"], "", "")] if "pre_ranker" in facts else []
    lines += [
        (
            "template",
            template["template"],
            f"sha256 {template['sha256'][:SHOWN_DIGITS]}",
            to_traces(TraceFilter(dataset, template=template["template"]).to_query()),
        )
        for template in facts.get("templates", ())
    ]
    lines += [("teacher", teacher, "", "") for teacher in facts.get("teachers", ())]
    lines += [
        ("run", run["run_id"], f"{run['rows']:,} rows by {run['teacher']}/{run['model']}, {run['template']}",
         to_traces(TraceFilter(run_id=run["run_id"]).to_query()))
        for run in lineage.runs.iter_rows(named=True)
    ]  # fmt: skip
    lines += [
        (
            "version" if age else "this version",
            version["version"],
            f"{version['rows']:,} rows, published {_moment(version['created_at'])}",
            to_page("snapshots", {CHOSEN: f"{name}@{version['version']}"}),
        )
        for age, version in reversed(list(enumerate(lineage.versions.iter_rows(named=True))))
    ]
    lines += [
        (
            "training",
            training["name"] or training["run_id"],
            f"{training['kind']} of {training['student']}, {training['status']}, {_moment(training['started_at'])}",
            to_page("training"),
        )
        for training in lineage.trainings.iter_rows(named=True)
    ]
    return pl.DataFrame(lines, schema=["step", "what", "details", "link"], orient="row")


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M}"


def draw_files(manifest: Mapping[str, Any]) -> None:
    """Draw files and splits with their hashes."""
    st.dataframe(
        pl.DataFrame([{"file": file, **facts} for file, facts in manifest["files"].items()]),
        hide_index=True,
        column_config={
            "file": st.column_config.TextColumn(width=260),
            "bytes": FILE_SIZE,
            "sha256": st.column_config.TextColumn(width=520),
        },
    )
    st.dataframe(
        pl.DataFrame([{"split": split, **facts} for split, facts in manifest["splits"].items()]),
        hide_index=True,
        column_config={"rows": NUMBER},
    )


def draw_loading(snapshot: Snapshot) -> None:
    """Draw how to load the snapshot elsewhere, and its dataset card."""
    path = str(snapshot.path)
    st.code(
        f"import datasets\n\nrows = datasets.load_dataset({path!r}, {snapshot.manifest['kind']!r})\n", language="python"
    )
    st.code(READ_BY_POLARS.format(path=path), language="python", wrap_lines=True)
    st.markdown("##### Dataset card")
    card = snapshot.path / "README.md"
    st.code(card.read_text("utf-8") if card.is_file() else "(README.md is missing)", language=None, wrap_lines=True)


def draw_diff(store: Store, reference: str, references: list[str]) -> None:
    """Draw the difference between another version or snapshot and this one."""
    others = [other for other in references if other != reference]
    older = st.selectbox("Changes since", others, index=None, placeholder="another version or snapshot", key="compared")
    if older is None:
        return
    changes = find_changes(str(store.folder), older, reference)
    figures = st.columns(4)
    for figure, (change, keys) in zip(figures, changes_of(changes).items(), strict=False):
        figure.metric(f"Rows {change}", f"{len(keys):,}")
    table = change_table(changes, KINDS.find(find_snapshot(store, reference).manifest["kind"]).key)
    if table.height == 0:
        st.info("Both contain the same rows with the same values.")
        return
    st.dataframe(table, hide_index=True, column_config={"link": LINK})
    if any(len(keys) > SHOWN_KEYS for keys in changes_of(changes).values()):
        st.caption(f"Only the first {SHOWN_KEYS:,} rows of each kind of change are shown.")


@st.cache_data(max_entries=4, show_spinner="Comparing every row")
def find_changes(folder: str, older: str, newer: str) -> SnapshotDiff:
    """Return the difference of two snapshots. Both are immutable, so it never changes."""
    store = Store.open(folder)
    return diff(find_snapshot(store, older), find_snapshot(store, newer))


def changes_of(changes: SnapshotDiff) -> dict[str, list[str]]:
    """Return the keys of rows, by kind of change."""
    return {"added": changes.added, "removed": changes.removed, "changed": changes.changed}


def change_table(changes: SnapshotDiff, key: str) -> pl.DataFrame:
    """Return a row for each changed row, with a link to its traces if the key names them."""
    parameter = KEY_FIELDS.get(key)
    return pl.DataFrame(
        [
            (change, of_row, to_traces({parameter: of_row}) if parameter else "")
            for change, keys in changes_of(changes).items()
            for of_row in keys[:SHOWN_KEYS]
        ],
        schema={"change": pl.String, key: pl.String, "link": pl.String},
        orient="row",
    )
