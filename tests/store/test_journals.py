import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import InputError, StoreError
from store.journals import JournalWriter, is_live, read_journal


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
