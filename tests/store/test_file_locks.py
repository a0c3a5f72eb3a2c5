import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

from store import Session, Store

LOCKED = "select current_setting('lock_configuration')"


def is_locked_down(session: Session) -> bool:
    return session.connection.execute(LOCKED).fetchone() == (True,)


def can_write(store: Store) -> bool:
    """Whether another process finds the store's file unlocked."""
    code = f"import duckdb; duckdb.connect({str(store.main_file)!r}).execute('create or replace table t (i int)')"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 or "Could not set lock" in done.stderr
    return done.returncode == 0


def test_whoever_reads_while_a_sandbox_is_open_comes_into_it(store: Store) -> None:
    with store.reading() as session:
        assert not is_locked_down(session)
    with store.sandbox() as first, store.sandbox() as second, store.reading() as reader:
        assert is_locked_down(first)
        assert is_locked_down(second)
        assert is_locked_down(reader)
        assert reader.rows("labels_have_schema_tables")
    with store.reading() as session:
        assert not is_locked_down(session)


def test_a_file_stays_locked_until_its_last_reader_is_gone(store: Store) -> None:
    for first in (store.reading(), store.sandbox()):
        with ExitStack() as rest:
            with first:
                session = rest.enter_context(store.reading())
            assert not can_write(store)
            assert session.connection.execute("select count(*) from runs").fetchone() == (0,)
        assert can_write(store)


def test_a_sandbox_waits_until_others_have_read_and_holds_up_those_who_come_later(store: Store) -> None:
    asked, came_into_it = threading.Event(), []

    def ask() -> None:
        with store.sandbox():
            asked.set()
            reading.join()

    def read() -> None:
        with store.reading() as session:
            came_into_it.append(is_locked_down(session))

    asking, reading = threading.Thread(target=ask), threading.Thread(target=read)
    with store.reading():
        asking.start()
        assert not asked.wait(0.3)
        reading.start()
        reading.join(0.3)
        assert came_into_it == []
    asking.join()
    assert came_into_it == [True]


def test_a_thread_that_reads_is_told_that_a_sandbox_would_wait_for_it(store: Store) -> None:
    with store.reading(), pytest.raises(RuntimeError, match="already reads the store"), store.sandbox():
        pass
    with store.sandbox():
        pass


def test_readers_sandboxes_and_writers_of_many_threads_all_get_their_turn(store: Store) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                with [store.reading, store.sandbox, store.writing, store.labelling][(number + turn) % 4]() as session:
                    assert session.connection.execute("select 1").fetchone() == (1,)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert can_write(store)
