"""Snapshots as `datasets`: what trainers read, after every file's hash was checked.

It knows nothing of how traces were made: a folder is all it needs. `datasets.load_dataset(folder)` reads the
same without anything of ours.
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
    """The splits of a snapshot of the given kind, verified first.

    kind: sft, dapo or midtrain. streaming: rows are read as they are asked for, in place of a map-style dataset.

    Raises SnapshotError where a file was changed, or the snapshot is of another kind; InputError where there is none.
    """
    snapshot = verify_snapshot(Path(path).absolute())
    if snapshot.manifest["kind"] != kind:
        raise SnapshotError(f"{path} is a snapshot of kind {snapshot.manifest['kind']!r}; {kind!r} is wanted")
    # `datasets` takes each name for a pattern.
    files = {
        split: [glob.escape(str(file)) for file in split_files(snapshot, split)]
        for split in snapshot.manifest["splits"]
    }
    loaded: datasets.DatasetDict | datasets.IterableDatasetDict = datasets.load_dataset(
        "parquet", data_files=files, streaming=streaming
    )
    return loaded
