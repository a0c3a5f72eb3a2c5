"""What each kind of snapshot holds: rows for mid-training, SFT and DAPO."""

from curate.snapshots.kind import KINDS, Counts, Kind, Selection, SnapshotSettings

__all__ = ["KINDS", "Counts", "Kind", "Selection", "SnapshotSettings"]
