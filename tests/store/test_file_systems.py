"""File systems that cannot do what a store needs: one line, and never a traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from store import Store, StoreError
from store.file_locks import try_lock
from store.temporary import temporary_folder

ROOT = Path(__file__).parents[2]
# A file system without locks, as some network mounts are: every request for a lock fails in the same way.
WITHOUT_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>

static int pass_on(const char *name, int file, int command, void *argument) {
    if (command == F_SETLK || command == F_SETLKW || command == F_GETLK) { errno = ENOLCK; return -1; }
    int (*real)(int, int, void *) = (int (*)(int, int, void *))dlsym(RTLD_NEXT, name);
    return real(file, command, argument);
}
int fcntl(int file, int command, ...) {
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest);
    return pass_on("fcntl", file, command, argument);
}
int fcntl64(int file, int command, ...) {
    va_list rest; va_start(rest, command); void *argument = va_arg(rest, void *); va_end(rest);
    return pass_on("fcntl64", file, command, argument);
}
int flock(int file, int operation) { errno = ENOLCK; return -1; }
"""
CLAIM = """
import sys
from pathlib import Path
from store import Store, StoreError
try:
    with Store(Path(sys.argv[1])).claim("x", "testing"):
        pass
except StoreError as error:
    print(error)
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_file_system_without_locks_is_one_line_at_once(store: Store, tmp_path: Path) -> None:
    source, library = tmp_path / "locks.c", tmp_path / "locks.so"
    source.write_text(WITHOUT_LOCKS)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    status = subprocess.run(
        [sys.executable, "-m", "app.cli", "status", "--store", str(store.folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert status.returncode == 1
    assert status.stderr.count("\n") == 1
    assert "cannot be locked (No locks available): keep the store on a file system with locks" in status.stderr
    claim = subprocess.run(
        [sys.executable, "-c", CLAIM, str(store.folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert claim.stdout.count("\n") == 1
    assert "x.lock cannot be locked (No locks available)" in claim.stdout


def test_a_lock_that_another_holds_is_no_error(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as mine, (tmp_path / "x").open("w") as other:
        assert try_lock(mine.fileno(), tmp_path / "x")
        assert not try_lock(other.fileno(), tmp_path / "x")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    # A file in the place of the folder: permissions do not stop root.
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file cannot be written: ") as refused, temporary_folder(tmp_path / "file"):
        pass
    assert "\n" not in str(refused.value)


def test_a_claim_that_cannot_be_written_is_one_line(store: Store) -> None:
    (store.journals / "x.lock").mkdir()
    with pytest.raises(StoreError, match=r"x\.lock cannot be written: Is a directory"), store.claim("x", "testing"):
        pass
