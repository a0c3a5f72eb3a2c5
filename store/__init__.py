"""The store: schema, SQL, connections, journals and snapshots on disk.

It knows nothing of models, of prompts' wording, of networks or of screens.
"""

from typing import TYPE_CHECKING, Any

from store.errors import Gr2Error, InputError, SnapshotError, StoreBusyError, StoreError, TeacherError

if TYPE_CHECKING:
    from store.database import Put, Session
    from store.folder import Store

__all__ = [
    "Gr2Error",
    "InputError",
    "Put",
    "Session",
    "SnapshotError",
    "Store",
    "StoreBusyError",
    "StoreError",
    "TeacherError",
]


def __getattr__(name: str) -> Any:
    """Import DuckDB and Polars only for who opens a store: the command line knows errors and settings without them."""
    if name in ("Put", "Session", "Store"):
        from store import database, folder  # noqa: PLC0415

        return getattr(folder if name == "Store" else database, name)
    raise AttributeError(f"module 'store' has no attribute {name!r}")
