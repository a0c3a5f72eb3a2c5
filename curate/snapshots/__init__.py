"""What each kind of snapshot holds: rows for mid-training, SFT and DAPO."""

from curate.snapshots.dapo import DAPO
from curate.snapshots.kind import Counts, Kind, Selection, SnapshotSettings
from curate.snapshots.midtrain import MIDTRAIN
from curate.snapshots.sft import SFT
from store import InputError

KINDS: dict[str, Kind] = {kind.name: kind for kind in (MIDTRAIN, SFT, DAPO)}

__all__ = ["KINDS", "Counts", "Kind", "Selection", "SnapshotSettings", "find_kind"]


def find_kind(name: str) -> Kind:
    """The kind of that name. Raises InputError."""
    if name not in KINDS:
        raise InputError(f"`kind` is {name!r}; it must be one of {', '.join(KINDS)}")
    return KINDS[name]
