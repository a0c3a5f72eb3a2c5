"""A run beside a store that is busy, and on a disk that is full."""

import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from curate.traces import sampling, writer
from curate.traces.planning import SamplingSettings
from curate.traces.recording import recover
from curate.traces.sampling import Progress, sample
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import TeacherRequest
from prompts.completion import render_completion
from store import Store, StoreBusyError, file_locks
from store.journals import read_journal

# Reads in a transaction of its own until its standard input ends.
HOLDER = """
import pathlib, sys
from store import Store
with Store(pathlib.Path(sys.argv[1])).reading():
    print("held", flush=True)
    sys.stdin.read()
"""


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def shuffled(request: TeacherRequest) -> str:
    sids = [candidate.item.sid for candidate in request.task.candidates]
    random.Random(request.seed).shuffle(sids)
    return render_completion(f"{sids[0]} fits.", sids)


class Holder:
    """Another process that reads the store while it is held."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._process: subprocess.Popen[str] | None = None

    def hold(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(self._store.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "held\n"

    def release(self) -> None:
        if self._process is not None:
            self._process.communicate()
            self._process = None


@pytest.fixture
def holder(shop: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(file_locks, "WAIT_S", 0.3)
    holder = Holder(shop)
    yield holder
    holder.release()


@pytest.mark.slow
@pytest.mark.parametrize("max_pending", [20_000, 7])
def test_a_run_outlasts_a_reader_that_holds_the_store_for_longer_than_its_patience(
    shop: Store, holder: Holder, monkeypatch: pytest.MonkeyPatch, max_pending: int
) -> None:
    monkeypatch.setattr(sampling, "COMMIT_SECONDS", 0.1)
    monkeypatch.setattr(sampling, "MAX_PENDING_TRACES", max_pending)
    asked: list[str] = []
    busy: list[int] = []

    def answer(request: TeacherRequest) -> str:
        if not asked:
            holder.hold()
        asked.append(request.trace_id)
        return shuffled(request)

    def watch(progress: Progress) -> None:
        if progress.busy:
            busy.append(progress.waiting)
            if len(busy) == 3:
                holder.release()

    settings = SamplingSettings("shop", limit=60, max_attempts=1)
    progress = sample(shop, FakeTeacher(answer), settings, concurrency=4, on_progress=watch)
    assert len(asked) == 60
    assert max(busy) > 7
    assert (progress.stored, progress.waiting, progress.busy) == (60, 0, False)
    assert fetch(shop, "select count(*), count(distinct trace_id), count(ranking) from traces") == [(60, 60, 60)]
    assert fetch(shop, "select status from runs where kind = 'trace'") == [("done",)]
    # The offset is behind all of it: nothing is left to recover.
    assert recover(shop) == []


def test_a_run_whose_store_stays_busy_leaves_its_answers_to_the_next_one(
    shop: Store, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "LAST_WAIT_S", 0.5)

    def answer(request: TeacherRequest) -> str:
        if request.trace_id == first.setdefault("id", request.trace_id):
            holder.hold()
        return shuffled(request)

    first: dict[str, str] = {}
    settings = SamplingSettings("shop", limit=20, max_attempts=1)
    with pytest.raises(StoreBusyError, match=r"20 answers wait in .*, and the next gr2 trace stores them"):
        sample(shop, FakeTeacher(answer), settings, concurrency=4)
    holder.release()
    again = FakeTeacher(shuffled)
    progress = sample(shop, again, settings)
    assert [(recovery.traces, recovery.unknown) for recovery in progress.recovered] == [(20, 0)]
    assert again.requests == []
    # It had not ended in the store, but its journal says how it ended.
    assert fetch(shop, "select status from runs where kind = 'trace'") == [("failed",)]


def test_prompts_that_wait_for_a_busy_store_do_not_end_the_run(
    shop: Store, holder: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "PROMPT_BATCH", 10)
    monkeypatch.setattr(sampling, "COMMIT_SECONDS", 0.1)
    busy: list[int] = []
    asked: list[str] = []

    def answer(request: TeacherRequest) -> str:
        if not asked:
            holder.hold()
        asked.append(request.trace_id)
        return shuffled(request)

    def watch(progress: Progress) -> None:
        busy.append(progress.busy)
        if sum(busy) == 3:
            holder.release()

    progress = sample(
        shop, FakeTeacher(answer), SamplingSettings("shop", limit=60, max_attempts=1), concurrency=4, on_progress=watch
    )
    assert progress.stored == progress.done == 60


SAMPLING = """
import pathlib, sys
from store.errors import Gr2Error
from curate.traces.settings import SamplingSettings
from curate.traces import sampling
from curate.traces.sampling import sample
from curate.traces.teachers.fake import FakeTeacher
from store import Store
import asyncio, os, resource

class Slow(FakeTeacher):
    async def complete(self, request):
        completion = await super().complete(request)
        await asyncio.sleep(0.01)
        return completion

store = Store(pathlib.Path(sys.argv[1]))
teacher = Slow(lambda request: os.urandom(4000).hex())
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    done = sample(store, teacher, SamplingSettings("shop", max_attempts=40), concurrency=16)
    print(len(teacher.requests), "all of them")
except Gr2Error as error:
    print(len(teacher.requests), error)
    sys.exit(error.exit_code)
"""


def received(store: Store) -> Counter[str]:
    """How often each request was answered, by the journals."""
    return Counter(
        record["trace_id"]
        for path in [*store.journals.glob("trace-*.jsonl"), *store.journals.glob("trace-*.jsonl.zst")]
        if ".rejected" not in path.name
        for record, _ in read_journal(path)
        if record["event"] == "received"
    )


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_one_line_and_keeps_what_was_paid_for(shop: Store, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(file.stat().st_size for file in shop.folder.rglob("*")) + 24 * 1024 * 1024
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        store = Store(Path(subprocess.run(["cp", "-r", shop.folder, disk], check=True) and disk / shop.folder.name))
        done = subprocess.run(
            [sys.executable, "-c", SAMPLING, str(store.folder)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        asked, message = done.stdout.split(maxsplit=1)
        assert (done.returncode, done.stderr) == (1, "")
        assert "No space left on device" in message
        assert message.count("\n") == 1
        # Whichever of the two found the disk full first.
        assert message.startswith((str(store.journals), str(store.main_file)))
        # All that was asked has its answer, in the journal or in the store.
        assert len(received(store)) == int(asked)
        # While the disk is full, the next run does not begin, and says so in one line as well.
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(64 * 1024))
        again = subprocess.run(
            [sys.executable, "-c", SAMPLING, str(store.folder)],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (again.returncode, again.stderr, again.stdout.count("\n")) == (1, "", 1)
        assert again.stdout.startswith("0 ")
        subprocess.run(["mount", "-o", f"remount,size={4 * size}", disk], check=True)
        recover(store)
        assert fetch(store, "select count(*), count(distinct trace_id) from traces") == [(int(asked), int(asked))]
        assert fetch(store, "select status from runs where kind = 'trace'") == [("failed",)]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_a_run_with_one_line(shop: Store) -> None:
    limit = shop.main_file.stat().st_size + 2_000_000
    done = subprocess.run(
        [sys.executable, "-c", SAMPLING, str(shop.folder), str(limit)], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.count("\n") == 1
    assert "File too large" in done.stdout
    before = received(shop)
    recover(shop)
    assert set(before) <= {trace_id for (trace_id,) in fetch(shop, "select trace_id from traces")}


@pytest.mark.slow
def test_kills_in_the_middle_of_runs_lose_no_answer_and_ask_for_none_twice(shop: Store) -> None:
    # Small commits and little memory, so that kills also meet commits and what is read again from the journal.
    code = SAMPLING.replace("4000", "40").replace(
        "try:", "sampling.COMMIT_SECONDS, sampling.COMMIT_TRACES, sampling.MAX_PENDING_TRACES = 0.1, 50, 20\ntry:"
    )
    chance = random.Random(1)
    asked = 0
    for _ in range(5):
        before = len(received(shop))
        process = subprocess.Popen([sys.executable, "-c", code, str(shop.folder)], stdout=subprocess.PIPE)
        until = before + chance.randint(1, 400)
        while len(received(shop)) < until:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.communicate()
        asked += len(received(shop)) - before
    recover(shop)
    assert len(received(shop)) == asked
    (counts,) = fetch(shop, "select count(*), count(distinct trace_id) from traces")
    assert counts == (asked, asked)
    # Neither answered twice nor stored twice.
    assert received(shop) == Counter(trace_id for (trace_id,) in fetch(shop, "select trace_id from traces"))
    assert fetch(shop, "select count(*) from runs where ended_at is null") == [(0,)]
