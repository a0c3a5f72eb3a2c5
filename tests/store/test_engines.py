import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import duckdb
import pytest

from store import Store, StoreError
from store.engines import SandboxLimits, engine_of, sandbox

INSERT = (
    "insert into runs by name select $run_id as run_id, 'trace' as kind, '{}' as settings, 'x' as status, "
    "now() as started_at"
)


def runs_of(store: Store) -> list[str]:
    with store.reading() as session:
        return [run_id for (run_id,) in session.connection.execute("select run_id from runs order by all").fetchall()]


def put_run(store: Store, run_id: str) -> None:
    with store.writing() as session:
        session.connection.execute(INSERT, {"run_id": run_id})


def test_an_engine_serves_a_folder_again_and_again_and_leaves_no_file_behind(store: Store) -> None:
    put_run(store, "a")
    engine = engine_of(store.folder)
    put_run(store, "b")
    assert runs_of(store) == ["a", "b"]
    assert engine_of(store.folder) is engine
    assert sorted(path.name for path in store.folder.iterdir() if path.is_file()) == [
        "labels.duckdb",
        "store.duckdb",
    ]


@pytest.mark.slow
def test_stores_that_are_open_at_the_same_time_are_told_apart(tmp_path: Path) -> None:
    stores = [Store.open(tmp_path / f"it's {number}", create=True) for number in range(7)]
    for number, store in enumerate(stores):
        put_run(store, f"run {number}")
    with ExitStack() as stack:
        sessions = [stack.enter_context(store.reading()) for store in stores]
        # More than engines are kept: the first is still that of its readers.
        assert runs_of(stores[0]) == ["run 0"]
        for number, session in enumerate(sessions):
            assert session.connection.execute("select run_id from runs").fetchall() == [(f"run {number}",)]
    for number, store in enumerate(stores):
        assert runs_of(store) == [f"run {number}"]


def test_one_session_knows_nothing_of_the_next(store: Store) -> None:
    with store.writing() as session:
        session.connection.execute("create temp table of_mine as select 1 as one")
        session.connection.execute("set timezone = 'Asia/Tokyo'")
    with store.writing() as session:
        assert session.connection.execute("select current_setting('timezone')").fetchone() == ("UTC",)
        with pytest.raises(duckdb.CatalogException):
            session.connection.execute("from of_mine")


def test_what_is_read_may_not_take_all_memory(store: Store) -> None:
    limit = "select current_setting('memory_limit')"
    with store.reading() as session:
        assert session.connection.execute(limit).fetchone() == ("1.8 GiB",)
    with store.writing() as session:
        assert session.connection.execute(limit).fetchone() != ("1.8 GiB",)


def test_after_an_internal_error_there_is_a_new_engine(store: Store) -> None:
    for error in (duckdb.FatalException, duckdb.InternalException):
        engine = engine_of(store.folder)
        with pytest.raises((StoreError, duckdb.InternalException)), store.writing():
            raise error("as DuckDB does where it has found itself at fault")
        assert engine_of(store.folder) is not engine
        assert runs_of(store) == []


def test_an_engine_that_cannot_detach_its_files_is_replaced(store: Store) -> None:
    engine = engine_of(store.folder)
    with pytest.raises(duckdb.BinderException, match="labels"), store.reading() as session:
        session.connection.execute("rollback; detach labels; begin")
    assert engine_of(store.folder) is not engine
    put_run(store, "a")
    assert runs_of(store) == ["a"]


@pytest.mark.slow
def test_a_process_that_forks_uses_the_store_on_both_sides(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from store import Store
folder = Path({str(tmp_path)!r})
Store.open(folder / "before", create=True)
child = os.fork()
for number in range(6):
    Store.open(folder / f"{{child == 0}}-{{number}}", create=True)
with Store.open(folder / "before").reading() as session:
    assert session.rows("has_schema_tables")
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_a_clear_error_and_loses_nothing_that_was_stored(store: Store) -> None:
    """A limit on the size of files stands in for the full disk: the same error comes from the same write."""
    code = f"""
import resource, signal
from store import Store, StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store.open({str(store.folder)!r})
size = store.main_file.stat().st_size
def write(rows, limit):
    try:
        with store.writing() as session:
            session.connection.execute({INSERT!r} + " from range($rows)", {{"run_id": str(rows), "rows": rows}})
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    except StoreError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
write(2, size)  # room for the log, not for the checkpoint at the end
write(100_000, size)
write(3, -1)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.count("store.duckdb could not be written, and nothing was stored: ") == 1
    assert runs_of(store) == ["2"] * 2 + ["3"] * 3


@pytest.mark.parametrize(
    "statement",
    [
        "copy runs to 'out.csv'",
        "attach 'other.duckdb'",
        "select * from read_csv('/etc/hostname')",
        "select * from read_text('/etc/hostname')",
        "install httpfs",
        "load httpfs",
        "set threads = 1",
        "set enable_external_access = true",
        "insert into runs by name (select 'x' as run_id)",
        "delete from runs",
        "drop table runs",
        "create table t as select 1",
        "commit; attach 'other.duckdb'",
        "detach labels; attach 'other.duckdb'",
        "export database 'out'",
    ],
)
def test_sql_of_people_can_neither_write_nor_reach_files(store: Store, tmp_path: Path, statement: str) -> None:
    main, labels = (Path(shutil.copy(file, tmp_path)) for file in (store.main_file, store.labels_file))
    with sandbox(main, labels, tmp_path / "spill", SandboxLimits("100MB", "100MB", 1)) as connection:
        assert connection.execute("select count(*) from labels.label_events").fetchone() == (0,)
        with pytest.raises(duckdb.Error):
            connection.execute(statement)


def test_a_sandbox_reads_not_even_the_files_that_it_has_open(store: Store, tmp_path: Path) -> None:
    main, labels = (Path(shutil.copy(file, tmp_path)) for file in (store.main_file, store.labels_file))
    with sandbox(main, labels, tmp_path / "spill", SandboxLimits("100MB", "100MB", 1)) as connection:
        paths = [path for (path,) in connection.execute("select path from duckdb_databases()").fetchall() if path]
        assert sorted(paths) == sorted([str(main), str(labels)])
        for path in (*paths, *(f"{path}.wal" for path in paths), str(store.main_file), f"{store.folder}/*"):
            for function in ("read_blob", "read_text", "glob", "read_csv"):
                found: list[object] = []
                with suppress(duckdb.Error):
                    found = connection.execute(f"from {function}('{path}')").fetchall()
                assert found == []
