"""Temporary folders next to their final place, which are removed even if their process is killed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store.errors import StoreError

PREFIX = ".temporary-"


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent`, which is created if needed. The folder is removed after the block.

    Folders that dead processes left in `parent` are removed too. Raises StoreError if the folder cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
    except OSError as error:
        raise StoreError(
            f"{parent} cannot be written: {error.strerror}; make it writable, or free some space"
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders and files that dead processes left in a folder."""
    for abandoned in parent.glob(f"{PREFIX}*"):
        # The name holds the process id.
        if _is_alive(abandoned.name.removeprefix(PREFIX).partition("-")[0]):
            continue
        if abandoned.is_dir():
            shutil.rmtree(abandoned, ignore_errors=True)
        else:
            abandoned.unlink(missing_ok=True)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        # The process exists, but belongs to another user.
        return True
    return True
