"""Loads snapshots as `datasets` for trainers, after the hash of every file was checked.

It needs only the snapshot's folder, and does not know how traces were made. Without gr2,
`datasets.load_dataset(folder)` reads the same rows.
"""

import glob
from pathlib import Path
from typing import Literal, overload

import datasets

from store.errors import SnapshotError
from store.snapshots import split_files, verify_snapshot


@overload
def load_snapshot(
    path: Path | str, *, kind: str = "sft", streaming: Literal[False] = False
) -> datasets.DatasetDict: ...


@overload
def load_snapshot(path: Path | str, *, kind: str = "sft", streaming: Literal[True]) -> datasets.IterableDatasetDict: ...


def load_snapshot(
    path: Path | str, *, kind: str = "sft", streaming: bool = False
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """The splits of a snapshot, verified first.

    kind: sft, dapo or midtrain. streaming: read rows on demand, instead of a map-style dataset.

    Raises SnapshotError if a file was changed or the snapshot is of another kind, and InputError if there is no
    snapshot.
    """
    snapshot = verify_snapshot(Path(path).absolute())
    if snapshot.manifest["kind"] != kind:
        raise SnapshotError(f"{path} is a snapshot of kind {snapshot.manifest['kind']!r}; expected kind {kind!r}")
    # `datasets` treats each name as a pattern.
    files = {
        split: [glob.escape(str(file)) for file in split_files(snapshot, split)]
        for split in snapshot.manifest["splits"]
    }
    loaded: datasets.DatasetDict | datasets.IterableDatasetDict = datasets.load_dataset(
        "parquet", data_files=files, streaming=streaming
    )
    return loaded
