"""Names for shell completion, read from the store's folders: no database is opened, and no lock is waited for."""

from pathlib import Path

import typer


def complete_datasets(ctx: typer.Context) -> list[str]:
    """Datasets that have semantic IDs; those that have none yet are known to the database alone."""
    return _folders(ctx, "models/sids")


def complete_snapshots(ctx: typer.Context) -> list[str]:
    """Published snapshots."""
    return _folders(ctx, "snapshots")


def complete_students(ctx: typer.Context) -> list[str]:
    """Students of the store, finished or not."""
    return _folders(ctx, "models/students")


def _folders(ctx: typer.Context, part: str) -> list[str]:
    try:
        folder = Path(ctx.params["store"]) / part
        return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except (KeyError, OSError):
        return []
