"""Names for shell completion.

They are read from the store's folders, without opening a database or waiting for a lock.
"""

from pathlib import Path

import typer


def complete_datasets(ctx: typer.Context) -> list[str]:
    """The datasets with semantic IDs. Datasets without any are only in the database."""
    return _folders(ctx, "models/sids")


def complete_snapshots(ctx: typer.Context) -> list[str]:
    """The published snapshots."""
    return _folders(ctx, "snapshots")


def complete_students(ctx: typer.Context) -> list[str]:
    """The students of the store, finished or not."""
    return _folders(ctx, "models/students")


def _folders(ctx: typer.Context, part: str) -> list[str]:
    try:
        folder = Path(ctx.params["store"]) / part
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except (KeyError, OSError):
        return []
