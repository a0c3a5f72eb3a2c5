"""What dead runs leave in their journals: anything may stand there, and nothing of it may keep the rest away."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from curate.traces import sampling
from curate.traces.planning import SamplingSettings, plan_sampling
from curate.traces.recording import (
    Batch,
    Journalled,
    JudgedTrace,
    commit_batch,
    recover,
)
from curate.traces.records import TRACE_SCHEMA, created_at
from curate.traces.rulesets import add_ruleset
from curate.traces.sampling import Progress, sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import TeacherRequest
from prompts.completion import render_completion
from store import Store
from store.journals import JournalWriter, read_journal, rejected_file, rejected_lines

SETTINGS = SamplingSettings("shop", limit=20, max_attempts=1)
WriteModule = Callable[[str, str], Path]


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def forget(store: Store) -> Path:
    """Leave the store as if the only run had been killed before its first commit. Returns the run's journal."""
    ((run_id,),) = fetch(store, "select run_id from runs where kind = 'trace'")
    with store.writing() as session:
        for table in ("traces", "verdicts", "journals"):
            session.connection.execute(f"delete from {table}")
        session.connection.execute("update runs set ended_at = null, status = 'running'")
    return store.journals / f"{run_id}.jsonl"


def good_record(journal: Path) -> dict[str, Any]:
    return next(record for record, _ in read_journal(journal) if record["event"] == "received")


def altered(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    # The standard library also writes what orjson refuses to write: NaN, lone surrogates, integers of any size.
    return lambda record: json.dumps({**record, "trace_id": "odd", **fields}).encode()


def without(name: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda record: json.dumps({key: value for key, value in record.items() if key != name}).encode()


ODD_LINES: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "not JSON": lambda _: b"<html>502 Bad Gateway</html>",
    "empty": lambda _: b"",
    "zeros": lambda _: bytes(4096),
    "not UTF-8": lambda _: b'{"event": "sent", "trace_id": "\xff\xfe"}',
    "two lines glued together": lambda record: b'{"event":"recei' + orjson.dumps(record),
    "a list": lambda _: b"[1, 2]",
    "a number": lambda _: b"5",
    "null": lambda _: b"null",
    "no event": lambda _: b'{"hello": "world"}',
    "an unknown event": lambda _: b'{"event": "dreamt", "trace_id": "x"}',
    "an event that is a list": lambda _: b'{"event": []}',
    "nothing but an event": lambda _: b'{"event": "received"}',
    "sent without an id": lambda _: b'{"event": "sent"}',
    "sent with a list as id": lambda _: b'{"event": "sent", "trace_id": []}',
    "nested deep": lambda _: b'{"event":"received","trace_id":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested deep, cut off": lambda _: b'{"a":' * 100_000,
    "an unknown prompt": altered(prompt_id="gone"),
    "a prompt that is a list": altered(prompt_id=[]),
    "a prompt that is a dict": altered(prompt_id={}),
    "no prompt": without("prompt_id"),
    "no trace id": without("trace_id"),
    "an empty trace id": altered(trace_id=""),
    "another run": altered(run_id="trace-of-another-run"),
    "a completion that is a number": altered(completion=17),
    "a completion that is a list of parts": altered(completion=[{"type": "text", "text": "hi"}]),
    "neither completion nor error": altered(completion=None),
    "completion and error": altered(error="both"),
    "lone surrogate": altered(completion="a\ud800b"),
    "lone surrogate in the reason to finish": altered(finish_reason="\udfff"),
    "too many tokens": altered(prompt_tokens=2**31),
    "far too many tokens": altered(completion_tokens=10**30),
    "negative tokens": altered(completion_tokens=-1),
    "half a token": altered(prompt_tokens=0.5),
    "tokens that are text": altered(prompt_tokens="12"),
    "tokens that are true": altered(prompt_tokens=True),
    "a cost that is NaN": altered(cost_usd=float("nan")),
    "a latency that is infinite": altered(latency_ms=float("inf")),
    "a cost beyond all floats": lambda record: altered(cost_usd=12345)(record).replace(b"12345", b"1e999"),
    "a cost that is text": altered(cost_usd="0.01"),
    "an index that is negative": altered(sample_index=-1),
    "no index": without("sample_index"),
    "no temperature": altered(temperature=None),
    "a time that is none": altered(created_at="yesterday"),
    "a time that does not exist": altered(created_at="2026-02-30T00:00:00"),
    "a time before all times": altered(created_at="0001-01-01T00:00:00+14:00"),
    "a time that is a number": altered(created_at=1_700_000_000),
    "no time": without("created_at"),
    "a ruleset version that is text": altered(ruleset_version="one"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD_LINES)
def test_an_odd_line_is_set_aside_and_the_rest_is_taken_over(prepare: Any, built_shop: Path, kind: str) -> None:
    store = prepare(built_shop, sample_some)
    journal = forget(store)
    odd = ODD_LINES[kind](good_record(journal))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:11], odd + b"\n", *lines[11:]]))
    (recovery,) = recover(store)
    assert (recovery.traces, recovery.rejected, recovery.unknown) == (20, 1, 0)
    assert recovery.rejected_file == rejected_file(journal)
    ((rejected, _),) = read_journal(rejected_file(journal))
    assert rejected["reason"]
    assert rejected["line"] == odd.decode(errors="backslashreplace")
    assert fetch(store, "select count(*) from traces") == [(20,)]
    # Told once, and never in the way again.
    assert recover(store) == []
    assert rejected_lines(store.journals) == {rejected_file(journal): 1}


def sample_some(store: Store) -> None:
    sample(store, EvidenceTeacher(), SETTINGS)


def test_all_kinds_of_odd_lines_at_once_are_counted(prepare: Any, built_shop: Path) -> None:
    store = prepare(built_shop, sample_some)
    journal = forget(store)
    record = good_record(journal)
    lines = [*journal.read_bytes().splitlines(), *(odd(record) for odd in ODD_LINES.values())]
    random.Random(0).shuffle(lines)
    journal.write_bytes(b"\n".join(lines) + b'\n{"event":"received","trace_id":"cut o')
    (recovery,) = recover(store)
    assert (recovery.traces, recovery.rejected) == (20, len(ODD_LINES))


def test_a_time_with_a_zone_is_stored_in_utc(prepare: Any, built_shop: Path) -> None:
    store = prepare(built_shop, sample_some)
    journal = forget(store)
    with journal.open("ab") as file:
        file.write(altered(created_at="2026-05-01T12:00:00+02:00")(good_record(journal)) + b"\n")
    (recovery,) = recover(store)
    assert (recovery.traces, recovery.rejected) == (21, 0)
    assert fetch(store, "select created_at::varchar from traces where trace_id = 'odd'") == [("2026-05-01 10:00:00",)]


def test_a_recovery_that_is_repeated_rejects_no_line_twice(prepare: Any, built_shop: Path) -> None:
    store = prepare(built_shop, sample_some)
    journal = forget(store)
    whole = journal.read_bytes() + b"odd\n"
    journal.write_bytes(whole)
    assert [recovery.rejected for recovery in recover(store)] == [1]
    # As after a kill between the two: the line is set aside, and the offset is not committed.
    forget(store)
    assert [recovery.rejected for recovery in recover(store)] == [0]
    assert rejected_lines(store.journals) == {rejected_file(journal): 1}


def test_what_only_the_store_refuses_is_a_row_with_its_reason_and_costs_no_other_trace(
    prepare: Any, built_shop: Path
) -> None:
    store = prepare(built_shop, sample_some)
    journal = forget(store)
    record = good_record(journal)
    row = {name: record.get(name) for name in TRACE_SCHEMA} | {"created_at": created_at(record)}
    traces = [
        Journalled(JudgedTrace({**row, "trace_id": f"t{number}"}, []), {**record, "trace_id": f"t{number}"}, number + 1)
        for number in range(100)
    ]
    traces[37].trace.row["completion"] = "a\ud800b"
    traces[61].trace.row["prompt_tokens"] = 2**40
    traces[62].trace.row["prompt_id"] = "gone"
    stored = commit_batch(store, journal, Batch(1_000, traces))
    assert stored == (99, 3)
    assert fetch(
        store, "select trace_id, completion from traces where error like 'the store refuses this trace: %'"
    ) == [
        ("t37", None),
        ("t61", None),
    ]
    assert [entry.record["offset"] for entry in read_journal(rejected_file(journal))] == [38, 62, 63]
    assert fetch(store, "select committed_offset from journals") == [(1_000,)]


RULE = """
from curate.traces.rules import Failure, Rule

def _check(answer, completion):
    if answer.task.history[-1].item_id.endswith("3"):
        return Failure("odd", "a\\ud800b")
    return None

odd_detail = Rule(1, _check)
"""


@pytest.mark.slow
def test_a_run_goes_on_when_the_store_refuses_a_trace(shop: Store, write_module: WriteModule) -> None:
    write_module("own_odd", RULE)
    add_ruleset(shop, "odd", ["parsed", "own_odd:odd_detail"])
    progress = sample(shop, EvidenceTeacher(), SamplingSettings("shop", ruleset="odd", max_attempts=1))
    assert 0 < progress.rejected < progress.attempts
    assert fetch(shop, "select count(*) from traces") == [(progress.attempts,)]
    assert fetch(shop, "select count(*) from traces where error like 'the store refuses%'") == [(progress.rejected,)]
    assert list(rejected_lines(shop.journals).values()) == [progress.rejected]


FAILING_RULE = """
from curate.traces.rules import Rule

calls = []

def _check(answer, completion):
    calls.append(1)
    if len(calls) > 20:
        raise RuntimeError("this rule is broken")
    return None

broken = Rule(1, _check)
"""


def test_a_rule_that_fails_keeps_no_answer_of_a_dead_run_away(shop: Store, write_module: WriteModule) -> None:
    write_module("own_broken", FAILING_RULE)
    add_ruleset(shop, "odd", ["parsed", "own_broken:broken"])
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=20, ruleset="odd", max_attempts=1))
    forget(shop)
    (recovery,) = recover(shop)
    assert (recovery.traces, recovery.rejected) == (20, 0)


def shuffled(request: TeacherRequest) -> str:
    sids = [candidate.item.sid for candidate in request.task.candidates]
    random.Random(request.seed).shuffle(sids)
    return render_completion(f"{sids[0]} fits.", sids)


def run_again(store: Store) -> Progress:
    return sample(store, FakeTeacher(shuffled), SETTINGS)


def test_journals_of_finished_runs_are_compressed_by_the_next_run_and_can_be_read(shop: Store) -> None:
    run_again(shop)
    (journal,) = shop.journals.glob("*.jsonl")
    content = journal.read_bytes()
    assert run_again(shop).recovered == []
    (compressed,) = shop.journals.glob("trace-*")
    assert compressed.name == f"{journal.name}.zst"
    assert compressed.stat().st_size < len(content) / 2
    assert b"".join(orjson.dumps(record) + b"\n" for record, _ in read_journal(compressed)) == content


def test_a_compressed_journal_is_recovered_if_the_store_knows_nothing_of_it(shop: Store) -> None:
    run_again(shop)
    run_again(shop)
    forget(shop)
    (recovery,) = recover(shop)
    assert recovery.traces == 20
    assert [path.suffix for path in shop.journals.glob("trace-*")] == [".zst"]


def test_a_damaged_compressed_journal_stops_nothing(shop: Store) -> None:
    run_again(shop)
    run_again(shop)
    forget(shop)
    (compressed,) = shop.journals.glob("*.zst")
    compressed.write_bytes(compressed.read_bytes()[:100])
    assert recover(shop) == []
    assert run_again(shop).stored == 20


def test_a_live_journal_is_neither_recovered_nor_compressed(shop: Store) -> None:
    run_again(shop)
    (path,) = shop.journals.glob("*.jsonl")
    writer = JournalWriter(path)
    try:
        assert recover(shop) == []
        assert path.exists()
    finally:
        writer.close()


def test_answers_of_a_run_that_dies_while_another_waits_to_begin_are_not_asked_again(
    shop: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_again(shop)
    path = forget(shop)
    writer = JournalWriter(path)

    def plan_slowly(*arguments: Any) -> Any:
        # The other run was alive when its journal was looked at, and is dead when this one begins.
        writer.close()
        return plan_sampling(*arguments)

    monkeypatch.setattr(sampling, "plan_sampling", plan_slowly)
    teacher = FakeTeacher(shuffled)
    progress = sample(shop, teacher, SETTINGS)
    assert teacher.requests == []
    assert [recovery.traces for recovery in progress.recovered] == [20]


def test_what_is_left_of_dead_processes_is_removed(shop: Store) -> None:
    run_again(shop)
    (path,) = shop.journals.glob("*.jsonl")
    path.with_suffix(".reserve").write_bytes(b"x")
    (shop.journals / ".temporary-999999999-trace-x.jsonl").write_bytes(b"")
    recover(shop)
    assert [file.name for file in shop.journals.iterdir() if not file.name.endswith(".lock")] == [f"{path.name}.zst"]


def test_a_rule_that_fails_ends_the_run_and_loses_no_answer(shop: Store, write_module: WriteModule) -> None:
    write_module("own_failing", FAILING_RULE)
    add_ruleset(shop, "odd", ["parsed", "own_failing:broken"])
    teacher = FakeTeacher(shuffled)
    with pytest.raises(RuntimeError, match="this rule is broken"):
        sample(shop, teacher, SamplingSettings("shop", ruleset="odd", max_attempts=1), concurrency=8)
    assert len(teacher.requests) > 20
    assert fetch(shop, "select count(*) from traces") == [(len(teacher.requests),)]
    assert recover(shop) == []
