import fcntl
import subprocess
import sys
import threading
import time
from pathlib import Path

import duckdb
import polars as pl
import pytest

from store import InputError, Store, StoreBusyError, StoreError, file_locks
from store.database import _NAMES_LABELS
from store.labels import Label, put_label


def run_row(run_id: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"run_id": [run_id], "kind": ["trace"], "settings": ["{}"], "status": ["running"]}
    ).with_columns(
        pl.lit(None, pl.Datetime("us")).alias("ended_at"), pl.lit("2026-01-01").str.to_datetime().alias("started_at")
    )


def run_ids(store: Store) -> list[str]:
    with store.reading() as session:
        return sorted(row[0] for row in session.connection.execute("select run_id from runs").fetchall())


def test_a_put_counts_what_went_in_and_what_was_there(store: Store) -> None:
    with store.writing() as session:
        assert session.put("runs", run_row("a")) == (1, 0)
        assert session.put("runs", pl.concat([run_row("a"), run_row("b")])) == (1, 1)
        assert session.put("runs", run_row("a").clear()) == (0, 0)
    assert run_ids(store) == ["a", "b"]


def test_a_transaction_that_raises_leaves_nothing(store: Store) -> None:
    class FailError(Exception):
        pass

    def fail() -> None:
        with store.writing() as session:
            session.put("runs", run_row("a"))
            raise FailError

    with pytest.raises(FailError):
        fail()
    assert run_ids(store) == []


def test_reading_cannot_write(store: Store) -> None:
    with pytest.raises(duckdb.InvalidInputException), store.reading() as session:
        session.put("runs", run_row("a"))


def test_a_reader_waits_for_a_writer_of_another_process(store: Store) -> None:
    holder = hold(store.main_file, seconds=0.5)
    assert run_ids(store) == []
    holder.wait()


def test_a_lock_held_too_long_names_its_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_locks, "WAIT_S", 0.2)
    holder = hold(store.main_file, seconds=30)
    try:
        with pytest.raises(StoreBusyError, match=str(holder.pid)), store.writing():
            pass
    finally:
        holder.kill()
        holder.wait()


def hold(path: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that holds a database open for writing; returns once it does."""
    code = f"import duckdb, time; c = duckdb.connect({str(path)!r}); print('held', flush=True); time.sleep({seconds})"
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.stdout.close()
    return holder


def test_readers_and_writers_in_threads_of_one_process_take_turns(store: Store) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                with store.writing() as session:
                    session.put("runs", run_row(f"{number}-{turn}"))
                run_ids(store)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(run_ids(store)) == 20


def test_labelling_does_not_wait_for_a_long_write_of_the_store(store: Store) -> None:
    with store.writing() as writer, store.labelling() as session:
        writer.put("runs", run_row("a"))
        assert session.rows("has_schema_tables")


def test_a_file_that_is_no_database_is_a_clear_error(store: Store) -> None:
    store.main_file.write_bytes(b"not a database at all" * 1000)
    with pytest.raises(StoreError, match=r"store\.duckdb cannot be opened"):
        run_ids(store)


def test_a_missing_store_tells_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gr2 ingest"):
        Store.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_store_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        Store.open(tmp_path / "file", create=True)


def test_what_a_killed_writer_committed_stays_and_the_rest_goes(store: Store) -> None:
    code = f"""
import os, signal, duckdb
c = duckdb.connect({str(store.main_file)!r})
c.execute("insert into runs by name (select 'kept' as run_id, 'trace' as kind, '{{}}' as settings, 'x' as status,"
          " current_localtimestamp() as started_at)")
c.begin()
c.execute("insert into runs by name (select 'lost' as run_id, 'trace' as kind, '{{}}' as settings, 'x' as status,"
          " current_localtimestamp() as started_at)")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert run_ids(store) == ["kept"]


def test_claims_are_exclusive_between_processes_and_free_themselves(store: Store) -> None:
    code = f"""
import time
from store import Store
with Store.open({str(store.folder)!r}).claim("x", "testing"):
    print("held", flush=True)
    time.sleep(30)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.stdout.close()
    with pytest.raises(InputError, match=f"process {holder.pid} is testing already"), store.claim("x", "testing"):
        pass
    holder.kill()
    holder.wait()
    with store.claim("x", "testing"):
        pass


def test_waiting_ends_with_the_holder_not_with_the_limit(store: Store) -> None:
    holder = hold(store.main_file, seconds=0.3)
    started = time.monotonic()
    run_ids(store)
    assert time.monotonic() - started < file_locks.WAIT_S / 2
    holder.wait()


def test_readers_who_come_one_after_the_other_let_a_writer_in(store: Store) -> None:
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            with store.reading() as session:
                session.connection.execute("select sum(i) from range(200_000) r(i)").fetchall()

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(5):
            with store.labelling() as session:
                session.connection.execute("select 1")
    finally:
        ended.set()
        for reader in readers:
            reader.join()


def test_a_thread_that_reads_may_read_again_while_another_waits_to_write(store: Store) -> None:
    written = threading.Event()

    def write() -> None:
        with store.writing():
            written.set()

    writer = threading.Thread(target=write)
    with store.reading():
        writer.start()
        assert not written.wait(0.3)
        with store.reading() as session:
            assert session.connection.execute("select 1").fetchone() == (1,)
    writer.join()
    assert written.is_set()


def test_labels_are_attached_for_readers_that_name_them_alone(store: Store) -> None:
    put_label(store, "trace", "ann", Label.GOOD)
    attached = "select database_name from duckdb_databases() where database_name = 'labels'"
    with store.reading() as session:
        session.rows("dataset_names")
        assert session._connection.execute(attached).fetchall() == []
        # Whoever labels does not wait for this reader.
        put_label(store, "other", "ann", Label.BAD)
        assert session.frame("browse_labels", trace_id="other")["label"].to_list() == ["bad"]
        assert session._connection.execute(attached).fetchall() == [("labels",)]
        session.rows("dataset_names")
        # A second reader, who leaves first, takes them from nobody.
        with store.reading() as second:
            assert second.connection.execute("select count(*) from labels_current").fetchone() == (2,)
        assert session.connection.execute("select count(*) from labels_current").fetchone() == (2,)
    put_label(store, "third", "ann", Label.BAD)


def test_a_reader_that_fails_gives_the_labels_back(store: Store) -> None:
    with pytest.raises(duckdb.ConversionException), store.reading() as session:
        session.connection.execute("select label::int from labels_current union all select 'x'::int")
    put_label(store, "trace", "ann", Label.GOOD)
    with store.reading() as session:
        assert session.connection.execute("select count(*) from labels_current").fetchone() == (1,)


def test_every_view_of_labels_is_known_as_one(store: Store) -> None:
    with store.reading() as session:
        made = session.connection.execute(
            "select view_name, sql from duckdb_views() where not internal and database_name = 'store' "
            "union all select function_name, macro_definition from duckdb_functions() where not internal "
            "and database_name = 'store'"
        ).fetchall()
    views = {name for name, text in made if text and _NAMES_LABELS.search(text.partition(" AS ")[2] or text)}
    assert views
    assert all(_NAMES_LABELS.search(name) for name in views)


READER_IN_A_LOOP = """
import sys, time
from store import Store
store = Store(__import__("pathlib").Path(sys.argv[1]))
print("ready", flush=True)
while True:
    with store.reading() as session:
        session.connection.execute("select count(*) from runs").fetchall()
        time.sleep(0.4)
"""


def start(code: str, store: Store) -> subprocess.Popen[str]:
    """Another process that runs `code` with the store's folder as its argument; returns once it has printed a line."""
    process = subprocess.Popen([sys.executable, "-c", code, str(store.folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    return process


def wait_for_writer(store: Store) -> None:
    """Return once a process has announced that it wants to write."""
    with store.journals.joinpath("store.duckdb.lock").open() as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(0.01)


@pytest.mark.slow
def test_a_writer_waits_only_for_readers_of_other_processes_that_were_there_before(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four readers that overlap leave no moment without one.
    monkeypatch.setattr(file_locks, "WAIT_S", 15)
    readers = [start(READER_IN_A_LOOP, store) for _ in range(4)]
    try:
        for number in range(5):
            with store.writing() as session:
                session.put("runs", run_row(str(number)))
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    assert run_ids(store) == ["0", "1", "2", "3", "4"]


@pytest.mark.slow
def test_a_reader_is_held_up_by_a_waiting_writer_only_for_a_part_of_its_patience(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_locks, "WAIT_S", 4)
    holder = start(READER_IN_A_LOOP.replace("0.4", "60"), store)
    writer = start(
        "import sys, pathlib; from store import Store, file_locks; file_locks.WAIT_S = 6; print('ready', flush=True)\n"
        "with Store(pathlib.Path(sys.argv[1])).writing(): pass",
        store,
    )
    try:
        wait_for_writer(store)
        for _ in range(3):
            assert run_ids(store) == []
    finally:
        holder.kill()
        holder.wait()
        writer.wait()
    assert writer.returncode == 0


def test_a_thread_that_reads_may_read_again_while_another_process_waits_to_write(store: Store) -> None:
    with store.reading():
        writer = start(
            "import sys, pathlib; from store import Store; print('ready', flush=True)\n"
            "with Store(pathlib.Path(sys.argv[1])).writing(): pass",
            store,
        )
        wait_for_writer(store)
        started = time.monotonic()
        with store.reading() as session:
            assert session.connection.execute("select 1").fetchone() == (1,)
        assert time.monotonic() - started < file_locks.WAIT_S / 4
    assert writer.wait() == 0


def test_a_store_in_a_folder_that_cannot_be_written_can_be_read(store: Store) -> None:
    with store.writing() as session:
        session.put("runs", run_row("a"))
    store.folder.chmod(0o555)
    try:
        assert run_ids(store) == ["a"]
    finally:
        store.folder.chmod(0o755)


def test_results_that_took_long_to_compute_wait_longer_for_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_locks, "WAIT_S", 0.2)
    holder = hold(store.main_file, seconds=2)
    with pytest.raises(StoreBusyError), store.writing():
        pass
    with store.writing(patient=True) as session:
        session.put("runs", run_row("a"))
    assert run_ids(store) == ["a"]
    holder.wait()
