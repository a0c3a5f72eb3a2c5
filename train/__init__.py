"""Training: tokenizers of semantic IDs, students, and trainers that read snapshots and nothing else."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.snapshots import load_snapshot

__all__ = ["load_snapshot"]


def __getattr__(name: str) -> Any:
    """Import `datasets`, which is heavy and optional, only for who asks."""
    if name == "load_snapshot":
        from train.snapshots import load_snapshot  # noqa: PLC0415

        return load_snapshot
    raise AttributeError(f"module 'train' has no attribute {name!r}")
