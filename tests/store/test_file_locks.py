import subprocess
import sys
import threading
from contextlib import ExitStack

from store import Store


def can_write(store: Store) -> bool:
    """Whether another process finds the store's file unlocked."""
    code = f"import duckdb; duckdb.connect({str(store.main_file)!r}).execute('create or replace table t (i int)')"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0 or "Could not set lock" in done.stderr
    return done.returncode == 0


def test_a_file_stays_locked_until_its_last_reader_is_gone(store: Store) -> None:
    with ExitStack() as rest:
        with store.reading():
            session = rest.enter_context(store.reading())
        assert not can_write(store)
        assert session.connection.execute("select count(*) from runs").fetchone() == (0,)
    assert can_write(store)


def test_readers_and_writers_of_many_threads_all_get_their_turn(store: Store) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(6):
                with [store.reading, store.writing, store.labelling][(number + turn) % 3]() as session:
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
