import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import InputError, StoreError
from store.journals import (
    SYNC_S,
    JournalWriter,
    Rejection,
    compress_journal,
    is_live,
    read_journal,
    reject,
    rejected_file,
    restore_journal,
)


def test_records_come_back_in_order_with_offsets_to_go_on_from(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "run.jsonl")
    ends = [writer.append({"n": n, "text": "ünï\n"}) for n in range(3)]
    writer.close()
    entries = list(read_journal(tmp_path / "run.jsonl"))
    assert [entry.record["n"] for entry in entries] == [0, 1, 2]
    assert [entry.end for entry in entries] == ends
    assert [entry.record["n"] for entry in read_journal(tmp_path / "run.jsonl", ends[0])] == [1, 2]


def test_a_missing_journal_is_empty(tmp_path: Path) -> None:
    assert list(read_journal(tmp_path / "none.jsonl")) == []


def test_a_torn_last_line_is_skipped_and_closed_by_the_next_writer(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"n":0}\n{"n":1,"comple')
    assert [entry.record for entry in read_journal(path)] == [{"n": 0}]
    writer = JournalWriter(path)
    writer.append({"n": 2})
    writer.close()
    assert [entry.record["n"] for entry in read_journal(path)] == [0, 2]


@given(cut=st.integers(0, 60))
def test_a_cut_anywhere_loses_only_the_torn_line(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "run.jsonl"
    whole = b"".join(b'{"n":%d}\n' % n for n in range(7))
    path.write_bytes(whole[:cut])
    assert [entry.record["n"] for entry in read_journal(path)] == list(range(min(cut, len(whole)) // 8))


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "run.jsonl")
    with pytest.raises(InputError, match="another process"):
        JournalWriter(tmp_path / "run.jsonl")
    assert is_live(tmp_path / "run.jsonl")
    writer.close()
    assert not is_live(tmp_path / "run.jsonl")


def test_a_killed_writer_is_not_live_and_lost_no_appended_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    code = f"""
import os, signal
from pathlib import Path
from store.journals import JournalWriter
writer = JournalWriter(Path({str(path)!r}))
for n in range(100):
    writer.append({{"n": n}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not is_live(path)
    assert [entry.record["n"] for entry in read_journal(path)] == list(range(100))


def test_a_full_disk_is_a_clear_error_and_keeps_what_was_written(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the same error comes from the same write."""
    path = tmp_path / "run.jsonl"
    code = f"""
import resource, signal
from pathlib import Path
from store.errors import StoreError
from store.journals import JournalWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
writer = JournalWriter(Path({str(path)!r}))
try:
    for n in range(100):
        writer.append({{"n": n}})
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "free some space" in done.stdout
    kept = [entry.record["n"] for entry in read_journal(path)]
    assert kept == list(range(len(kept)))
    assert len(kept) >= 10


def test_the_error_of_a_failed_write_is_a_store_error(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path / "run.jsonl")
    writer.close()
    with pytest.raises(StoreError, match="cannot be written"):
        writer.append({"n": 1})


def test_what_is_appended_is_synced_to_disk_soon_and_by_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    folders: list[int] = []
    fdatasync, fsync = os.fdatasync, os.fsync

    def watch(file: int) -> None:
        size = os.fstat(file).st_size
        fdatasync(file)
        synced.append((size, threading.get_ident()))

    def watch_folder(file: int) -> None:
        folders.append(os.fstat(file).st_ino)
        fsync(file)

    monkeypatch.setattr("store.journals._sync_data", watch)
    monkeypatch.setattr("os.fsync", watch_folder)
    writer = JournalWriter(tmp_path / "run.jsonl")
    assert tmp_path.stat().st_ino in folders
    for n in range(3):
        end = writer.append({"n": n})
        until = time.monotonic() + 100 * SYNC_S
        while not any(size >= end for size, _ in synced):
            assert time.monotonic() < until
            time.sleep(0.01)
    assert threading.get_ident() not in {thread for _, thread in synced}
    # Without new lines there is nothing to do.
    before = len(synced)
    time.sleep(3 * SYNC_S)
    assert len(synced) == before
    writer.close()


def test_a_line_that_did_not_reach_the_disk_is_an_error_of_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("store.journals._sync_data", fail)
    writer = JournalWriter(tmp_path / "run.jsonl")
    writer.append({"n": 0})
    until = time.monotonic() + 100 * SYNC_S
    errors: list[str] = []
    while not errors and time.monotonic() < until:
        try:
            writer.append({"n": 1})
        except StoreError as error:
            errors.append(str(error))
        time.sleep(0.01)
    assert "Input/output error" in errors[0]
    writer.close()


@pytest.mark.slow
def test_a_new_journal_is_never_seen_without_its_lock(tmp_path: Path) -> None:
    """Another process looks at each journal as soon as its name is there."""
    code = """
import sys
from pathlib import Path
from store.journals import is_live
folder = Path(sys.argv[1])
print("ready", flush=True)
seen = set()
while not (folder / "stop").exists():
    for path in set(folder.glob("*.jsonl")) - seen:
        seen.add(path)
        if not is_live(path):
            print(path.name, flush=True)
"""
    watcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert watcher.stdout is not None
    assert watcher.stdout.readline() == "ready\n"
    writers = [JournalWriter(tmp_path / f"{number}.jsonl") for number in range(200)]
    time.sleep(0.2)
    (tmp_path / "stop").touch()
    assert watcher.communicate()[0] == ""
    for writer in writers:
        writer.close()


FULL = """
import resource, sys
from pathlib import Path
from store.errors import StoreError
from store.journals import JournalWriter
path = Path(sys.argv[1])
writer = JournalWriter(path)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
written = []
for n in range(30):
    if n == 10:
        # In the middle of the next line.
        resource.setrlimit(resource.RLIMIT_FSIZE, (writer.end + 50, hard))
    if n == 20:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    try:
        writer.append({"n": n, "text": "x" * 100})
    except StoreError as error:
        assert "File too large" in str(error)
        continue
    written.append(n)
writer.close()
print(written)
"""


def test_a_line_that_fits_only_in_part_is_not_glued_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout == f"{[*range(10), *range(20, 30)]}\n"
    assert [entry.record["n"] for entry in read_journal(path)] == [*range(10), *range(20, 30)]
    assert len(path.read_bytes().splitlines()) == 20


def test_a_run_holds_space_back_that_it_uses_when_the_disk_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        writer = JournalWriter(disk / "run.jsonl")
        count = 0
        while writer.full is None:
            writer.append({"n": count, "text": "x" * 1000})
            count += 1
        assert "No space left on device" in writer.full
        # What is under way when the disk is full: some thousand answers still fit.
        for _ in range(2_000):
            writer.append({"n": count, "text": "x" * 1000})
            count += 1
        writer.close()
        assert [entry.record["n"] for entry in read_journal(disk / "run.jsonl")] == list(range(count))
        assert [file.name for file in disk.iterdir()] == ["run.jsonl"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_compressed_journal_can_be_restored(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    content = b"".join(b'{"n":%d}\n' % n for n in range(1000)) + b'{"cut'
    path.write_bytes(content)
    compress_journal(path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.jsonl.zst"]
    assert len(list(read_journal(tmp_path / "run.jsonl.zst"))) == 1000
    assert restore_journal(path)
    assert path.read_bytes() == content
    assert not restore_journal(tmp_path / "other.jsonl")


def test_rejected_lines_are_kept_once_with_their_reasons(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    lines = [Rejection(b"a\xff\n", 3, "not JSON"), Rejection(b"[]\n", 6, "no record")]
    assert reject(journal, lines[:1]) == 1
    assert reject(journal, lines) == 1
    assert [entry.record for entry in read_journal(rejected_file(journal))] == [
        {"offset": 3, "reason": "not JSON", "line": "a\\xff"},
        {"offset": 6, "reason": "no record", "line": "[]"},
    ]
