import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.child_processes import ChildDiedError, ChildPool

CHILD = """
import os, signal, time
from store.child_processes import serve

def answer(request):
    if "sleep" in request:
        time.sleep(request["sleep"])
    if "signal" in request:
        os.kill(os.getpid(), request["signal"])
    if "print" in request:
        print(request["print"])
    size = len(bytearray(request.get("allocate", 0)))
    return {"pid": os.getpid(), "size": size, "last": request.get("last", False), "folder": os.getcwd()}

if __name__ == "__main__":
    serve(answer, data_bytes=300_000_000, niceness=1)
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ChildPool]:
    (tmp_path / "gr2_test_child.py").write_text(CHILD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool = ChildPool("gr2_test_child", 2)
    yield pool
    pool.close()


def test_a_process_answers_again_and_again(pool: ChildPool) -> None:
    pool.warm_up()
    answers = [pool.ask({"print": "no answer"}, None) for _ in range(3)]
    assert len({answer["pid"] for answer in answers}) == 1
    assert answers[0]["pid"] != os.getpid()
    # One that says that it was its last is asked no more.
    pool.ask({"last": True}, None)
    assert pool.ask({}, None)["pid"] != answers[0]["pid"]


def test_what_takes_too_long_is_ended_and_the_next_answers(pool: ChildPool) -> None:
    first = pool.ask({}, None)["pid"]
    with pytest.raises(TimeoutError):
        pool.ask({"sleep": 600}, time.monotonic() + 0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    assert pool.ask({}, None)["pid"] != first


def test_a_process_that_dies_says_of_what(pool: ChildPool) -> None:
    for number in (6, 11, 14):
        with pytest.raises(ChildDiedError) as caught:
            pool.ask({"signal": number}, None)
        assert caught.value.signal == number
    assert pool.ask({}, None)["size"] == 0


def test_a_process_has_no_more_memory_than_it_may(pool: ChildPool) -> None:
    assert pool.ask({"allocate": 50_000_000}, None)["size"] == 50_000_000
    with pytest.raises(ChildDiedError):
        pool.ask({"allocate": 500_000_000}, None)


def test_requests_at_the_same_time_have_processes_of_their_own_up_to_the_most(pool: ChildPool) -> None:
    pids: list[int] = []
    threads = [threading.Thread(target=lambda: pids.append(pool.ask({"sleep": 0.3}, None)["pid"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 4
    assert len(set(pids)) == 2


def test_a_module_of_the_folder_that_people_stand_in_is_not_imported(
    pool: ChildPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clashing = tmp_path / "clashing"
    clashing.mkdir()
    (clashing / "store.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(clashing)
    assert pool.ask({}, None)["folder"] == str(clashing)
