import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import duckdb
import pytest

from store import database_copies, file_locks
from store.database_copies import LockedError, copy_database, linked_database, remove_database

STATE = "select count(*), sum(hash(n, text))::varchar from t"
# Locks are between processes, so whoever writes is another one. It prints each state before others can see it.
WRITER = f"""
import duckdb, sys, time
number = 0
while True:
    number += 1
    try:
        connection = duckdb.connect(sys.argv[1])
    except duckdb.IOException:
        continue
    connection.execute(f"update t set text = text || 'x' where n % 400 = {{number % 400}}")
    connection.execute(f"delete from t where n % 977 = {{number}}")
    connection.execute(f"insert into t select range, 'new' from range({{number * 100}})")
    print(*connection.execute("{STATE}").fetchone(), flush=True)
    connection.close()
    time.sleep(0.02)
"""
HOLDER = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read()"

Run = Callable[[str, Path], "subprocess.Popen[str]"]


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A database of some tens of megabytes."""
    file = tmp_path / "store.duckdb"
    with closing(duckdb.connect(str(file))) as connection:
        connection.execute(
            "create table t as select range as n, md5(random()::varchar) || md5(random()::varchar) as text "
            "from range(300_000)"
        )
    assert file.stat().st_size > 10_000_000
    return file


def start(code: str, file: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def state_of(file: Path) -> str:
    with closing(duckdb.connect(str(file), read_only=True)) as connection:
        return "{} {}".format(*connection.execute(STATE).fetchone())


def test_a_copy_is_the_file(large: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.duckdb"
    copy_database(large, copy)
    assert copy.read_bytes() == large.read_bytes()


def test_a_copy_has_what_is_only_in_the_log(large: Path, tmp_path: Path) -> None:
    code = (
        "import duckdb, os, sys; c = duckdb.connect(sys.argv[1]); c.execute(\"insert into t values (-1, 'log')\"); "
        "print('written', flush=True); os._exit(0)"
    )
    start(code, large).communicate()
    assert Path(f"{large}.wal").exists()
    copy, link = tmp_path / "copy.duckdb", tmp_path / "link.duckdb"
    copy_database(large, copy)
    with linked_database(large, link):
        assert state_of(copy) == state_of(link)
        assert state_of(copy).startswith("300001 ")
    remove_database(copy)
    assert not list(tmp_path.glob("copy*"))
    assert Path(f"{large}.wal").exists()


@pytest.mark.slow
def test_a_copy_taken_while_others_write_is_a_state_that_was_committed(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So short that a copy takes many rounds, with others' changes between them.
    monkeypatch.setattr(database_copies, "ROUND_S", 0.003)
    first = state_of(large)
    writer = start(WRITER, large)
    copies = [tmp_path / f"copy-{place}.duckdb" for place in range(5)]
    for copy in copies:
        copy_database(large, copy)
    writer.terminate()
    printed, _ = writer.communicate()
    states = [state_of(copy) for copy in copies]
    # The first line was read when it started, so the first state may be missing.
    assert set(states[1:]) <= {first, *printed.splitlines()}
    assert len(set(states)) > 1


def test_writers_wait_for_a_link_and_not_for_a_copy(large: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.duckdb"
    write = f"import duckdb; duckdb.connect({str(large)!r}).execute('drop table t')"
    with linked_database(large, link):
        # DuckDB does this before it locks the file. A POSIX lock of this process would be lost.
        link.open("rb").close()
        done = subprocess.run([sys.executable, "-c", write], check=False, capture_output=True, text=True)
        assert "Could not set lock" in done.stderr
        # What is opened stays readable under no name at all.
        with closing(duckdb.connect(str(link), read_only=True)) as connection:
            remove_database(link)
            assert connection.execute("select count(*) from t").fetchone() == (300_000,)
    copy = tmp_path / "copy.duckdb"
    copy_database(large, copy)
    with closing(duckdb.connect(str(copy), read_only=True)) as connection:
        subprocess.run([sys.executable, "-c", write], check=True)
        assert connection.execute("select count(*) from t").fetchone() == (300_000,)


def test_whoever_waits_too_long_for_a_writer_is_told_which_file(
    large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = start(HOLDER, large)
    monkeypatch.setattr(file_locks, "WAIT_S", 0.2)
    for take in (copy_database, lambda file, link: linked_database(file, link).__enter__()):
        with pytest.raises(LockedError, match=r"store\.duckdb"):
            take(large, tmp_path / f"{time.monotonic()}.duckdb")
    holder.communicate()
    copy_database(large, tmp_path / "copy.duckdb")
