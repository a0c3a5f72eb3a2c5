"""The kinds of snapshots, with the rows that each contains: for mid-training, SFT and DAPO."""

from curate.snapshots.kind import KINDS, Counts, Kind, Selection, SnapshotSettings

__all__ = ["KINDS", "Counts", "Kind", "Selection", "SnapshotSettings"]
