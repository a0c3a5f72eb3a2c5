"""The store: schema, SQL, connections, journals and snapshots on disk.

It knows nothing of models, of prompts' wording, of networks or of screens.
"""

from store.database import Put, Session
from store.errors import Gr2Error, InputError, SnapshotError, StoreBusyError, StoreError, TeacherError
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
