"""Snapshots as `datasets`: what trainers read, after every file's hash was checked.

It knows nothing of how traces were made: a folder is all it needs. `datasets.load_dataset(folder)` reads the
same without anything of ours.
"""

from pathlib import Path

import datasets

from store.errors import SnapshotError
from store.snapshots import verify_snapshot


def load_snapshot(path: Path | str, *, kind: str = "sft") -> datasets.DatasetDict:
    """The splits of a snapshot of the given kind, verified first.

    Raises SnapshotError where a file was changed, or the snapshot is of another kind; InputError where there is none.
    """
    snapshot = verify_snapshot(Path(path).absolute())
    if snapshot.manifest["kind"] != kind:
        raise SnapshotError(f"{path} is a snapshot of kind {snapshot.manifest['kind']!r}; {kind!r} is wanted")
    files = {split: str(snapshot.path / "data" / f"{split}-*.parquet") for split in snapshot.manifest["splits"]}
    loaded = datasets.load_dataset("parquet", data_files=files)
    assert isinstance(loaded, datasets.DatasetDict)
    return loaded
