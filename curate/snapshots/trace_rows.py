"""Reads traces from the store in short parts, and returns them with their prompts in the order of their ids.

Traces are stored by time, a snapshot orders them by id, and one prompt is used by many traces. So texts and prompts are
distributed to buckets on disk. Each bucket contains the traces of consecutive ids and their prompts. The buckets are
joined and sorted in memory, one after the other. The list of traces and their pass rates are fixed at the start: later
traces are not included, and a removed trace is an error.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from curate.snapshots.kind import MESSAGES
from curate.traces.tasks import ListedTask, load_tasks, locate_lists, places_of, render_list
from prompts.templates import Template
from store import SnapshotError, Store
from store.temporary import temporary_folder

TEXT_BATCH = 5_000
PROMPT_BATCH = 1_000
# Rows that are joined and sorted in memory at the same time, of some 15 KB each.
BUCKET_ROWS = 4_000
# Each bucket is an open file.
MOST_BUCKETS = 400

_PROMPT_SCHEMA: dict[str, Any] = {
    "list_id": pl.String,
    "wording": pl.Int32,
    "prompt": MESSAGES,
    "item_ids": pl.List(pl.String),
    "candidates": pl.List(pl.String),
    "history": pl.List(pl.String),
    "target": pl.String,
}


class Wording(NamedTuple):
    """The way in which prompts show their lists to a student."""

    sid_version: str
    student: Template
    knowledge_priming: bool


def read_texts(store: Store, chosen: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The texts of chosen traces (trace_id, created_at, and further columns) in order of time, part by part.

    Raises SnapshotError if one of the traces is no longer in the store.
    """
    for part in chosen.sort("created_at", "trace_id").iter_slices(TEXT_BATCH):
        with store.reading() as session:
            session.insert("create_part", part)
            texts = session.frame("snapshot_texts", first_time=part["created_at"][0], last_time=part["created_at"][-1])
        if texts.height < part.height:
            raise SnapshotError(
                f"{part.height - texts.height} selected traces were removed from the store while they were read; "
                "nothing was published: publish again"
            )
        yield texts


def iterate_traces(
    store: Store, dataset: str, chosen: pl.DataFrame, wordings: Mapping[int, Wording]
) -> Iterator[dict[str, Any]]:
    """Chosen traces with their texts and prompts, ordered by trace_id.

    wordings: by the number in the column `wording`.
    """
    rows = max(BUCKET_ROWS, -(-chosen.height // MOST_BUCKETS))
    chosen = chosen.with_columns(bucket=(pl.col("trace_id").rank("ordinal") - 1) // rows)
    with temporary_folder(store.folder) as folder:
        traces, prompts = _Buckets(folder / "traces"), _Buckets(folder / "prompts")
        needed = []
        for texts in read_texts(store, chosen):
            traces.append(texts)
            places = texts.select("wording", "list_id", "bucket").unique()
            # Copied, because a part of a frame keeps all texts of the frame in memory.
            needed.append(pl.DataFrame(places.rows(), schema=places.schema, orient="row"))
        lists = pl.concat(needed).group_by("wording", "list_id").agg(pl.col("bucket").unique())
        needed.clear()
        for rendered in _render_prompts(store, dataset, lists, wordings):
            prompts.append(rendered)
        for bucket in range(-(-chosen.height // rows)):
            joined = traces.read(bucket).join(prompts.read(bucket), on=["list_id", "wording"])
            yield from joined.sort("trace_id").iter_rows(named=True)


def _render_prompts(
    store: Store, dataset: str, lists: pl.DataFrame, wordings: Mapping[int, Wording]
) -> Iterator[pl.DataFrame]:
    """Prompts for each bucket that needs them. Each prompt is rendered once, even if many traces answer it."""
    with store.reading() as session:
        lists = locate_lists(session, lists)
    for number, wording in wordings.items():
        for part in lists.filter(wording=number).iter_slices(PROMPT_BATCH):
            with store.reading() as session:
                tasks = load_tasks(
                    session, dataset, wording.sid_version, part["list_id"].to_list(), within=places_of(part)
                )
            prompts = pl.DataFrame(
                [_render_prompt(number, wording, listed) for listed in tasks.values()], schema=_PROMPT_SCHEMA
            )
            for few in prompts.join(part.select("list_id", "wording", "bucket"), on=["list_id", "wording"]).iter_slices(
                PROMPT_BATCH // 10
            ):
                yield few.explode("bucket")


def _render_prompt(number: int, wording: Wording, listed: ListedTask) -> dict[str, Any]:
    task, messages = render_list(wording.student, listed, knowledge_priming=wording.knowledge_priming)
    sids = {candidate.item.item_id: candidate.item.sid for candidate in task.candidates}
    return {
        "list_id": listed.list_id,
        "wording": number,
        "prompt": list(messages),
        "item_ids": list(sids),
        "candidates": list(sids.values()),
        "history": [item.sid for item in task.history],
        "target": sids.get(listed.target_item_id),
    }


class _Buckets:
    """Frames on disk, distributed by their column `bucket`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}

    def append(self, frame: pl.DataFrame) -> None:
        for (bucket,), part in frame.partition_by("bucket", as_dict=True, include_key=False).items():
            table = part.to_arrow(compat_level=pl.CompatLevel.oldest())
            if bucket not in self._writers:
                self._writers[bucket] = pa.ipc.new_stream(
                    self._folder / f"{bucket}", table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
                )
            self._writers[bucket].write_table(table)

    def read(self, bucket: int) -> pl.DataFrame:
        """The whole content of a bucket. Nothing can be added to it afterwards."""
        self._writers.pop(bucket).close()
        file = self._folder / f"{bucket}"
        with pa.OSFile(str(file)) as opened, pa.ipc.open_stream(opened) as stream:
            frame = pl.DataFrame(stream.read_all())
        file.unlink()
        return frame
