"""The store: a folder with `store.duckdb`, `labels.duckdb`, `journals/`, `snapshots/`, `models/` and `embeddings/`."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from store import database, file_locks
from store.database import Session
from store.errors import InputError, StoreError
from store.file_locks import AccessMode, try_lock
from store.migrations import current_state, labels_state, migrate, schema_state


@dataclass(frozen=True, slots=True)
class Store:
    """An opened store. It holds no connection: each method opens one for a single transaction and closes it."""

    folder: Path

    @classmethod
    def open(cls, folder: Path | str, *, create: bool = False) -> "Store":
        """Open the store in `folder` and migrate an older schema. create: make the store if it does not exist.

        Raises InputError if there is no store, and StoreError if it cannot be read or was written by a newer gr2.
        """
        store = cls(Path(folder).absolute())
        if store.folder.exists() and not store.folder.is_dir():
            raise InputError(f"{store.folder} is not a folder; choose a folder as `store`")
        if not store.main_file.exists() and not create:
            raise InputError(
                f"there is no store in {store.folder}; make one with gr2 ingest or gr2 simulate, or choose another "
                "`store`"
            )
        store._prepare()
        return store

    @property
    def main_file(self) -> Path:
        """The database of everything except labels."""
        return self.folder / "store.duckdb"

    @property
    def labels_file(self) -> Path:
        """The database of label events."""
        return self.folder / "labels.duckdb"

    @property
    def journals(self) -> Path:
        """The folder of append-only files of teacher responses, one per run."""
        return self.folder / "journals"

    @property
    def snapshots(self) -> Path:
        """The folder of published snapshots, `<name>/<version>/`."""
        return self.folder / "snapshots"

    @property
    def models(self) -> Path:
        """The folder of fitted quantizers of semantic IDs, `sids/<dataset>/<sid_version>/`, and of trained models."""
        return self.folder / "models"

    @property
    def embeddings(self) -> Path:
        """The folder of cached text embeddings, `<embedder>/part-*.parquet`."""
        return self.folder / "embeddings"

    def reading(self) -> AbstractContextManager[Session]:
        """A read-only transaction for gr2's own queries. Labels are in `labels.label_events`.

        Keep it short, because writers wait for it.
        """
        return database.connect(self.main_file, AccessMode.READ, labels=self.labels_file)

    def writing(self, *, patient: bool = False) -> AbstractContextManager[Session]:
        """A transaction that may write everything except labels.

        patient: wait ten minutes instead of one while others use the store. It is for results that took long to
        compute.
        """
        wait_s = file_locks.PATIENT_WAIT_S if patient else None
        return database.connect(self.main_file, AccessMode.WRITE, wait_s=wait_s)

    def labelling(self) -> AbstractContextManager[Session]:
        """A transaction that may write labels only."""
        return database.connect(self.labels_file, AccessMode.WRITE)

    def scratch(self) -> AbstractContextManager[Session]:
        """An in-memory DuckDB for heavy work, which spills into the store's folder."""
        return database.scratch(self.folder)

    @contextmanager
    def claim(self, name: str, purpose: str, *, wait: bool = False) -> Iterator[None]:
        """Hold the lock `name` for the length of the block. The lock is released if the process dies.

        purpose: the current activity, such as "sampling shop", for the error message of others. wait: wait for another
        process that holds the lock; otherwise InputError is raised.
        """
        path = self.journals / f"{name}.lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}; make the folder writable") from error
        try:
            if not try_lock(file, path, wait=wait):
                holder = os.pread(file, 20, 0).decode().strip() or "?"
                raise InputError(f"process {holder} is {purpose} already; wait for it or end it, then try again")
            # Only for that message, so a full disk is no reason to stop.
            with suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(file)

    def _prepare(self) -> None:
        """Create folders and files, and migrate. No write lock is taken if the store is up to date."""
        try:
            for folder in (self.folder, self.journals, self.snapshots, self.models):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be created: {error.strerror}; choose another `store`") from error
        if self._is_up_to_date():
            return
        # Labels first, because views of the main file refer to them.
        for path, name in ((self.labels_file, "labels"), (self.main_file, "main")):
            labels = self.labels_file if name == "main" else None
            with database.connect(path, AccessMode.WRITE, labels=labels) as session:
                if current_state(session) != schema_state(name):
                    migrate(session, name)

    def _is_up_to_date(self) -> bool:
        """Whether both files have the schema of this version of gr2.

        One connection reads both. Opening and closing the labels separately would release the lock that other readers
        of this process hold on them.
        """
        if not (self.main_file.exists() and self.labels_file.exists()):
            return False
        with self.reading() as session:
            return current_state(session) == schema_state("main") and labels_state(session) == schema_state("labels")
