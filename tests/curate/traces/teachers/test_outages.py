"""What a run does when requests fail: ask again, pause, go on, or stop."""

import json
from collections import Counter
from typing import Any

import pytest

from curate.traces.sampling import Progress, sample
from curate.traces.settings import SamplingSettings
from curate.traces.teachers import outages
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import Completion, FailureKind, RequestFailedError, TeacherRequest
from store import Store, TeacherError
from store.journals import read_journal


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "MAX_PAUSE_S", 0.01)


def run(store: Store, handler: Any, concurrency: int = 8, **options: Any) -> Progress:
    settings = SamplingSettings("shop", **{"limit": 30, "max_attempts": 1, "ruleset": "answered", **options})
    return sample(store, FakeTeacher(handler), settings, concurrency=concurrency)


def rows(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_a_failed_request_is_sent_again_within_the_run(shop: Store) -> None:
    asked: Counter[str] = Counter()

    def fail_at_first(request: TeacherRequest) -> Any:
        asked[request.trace_id] += 1
        return RequestFailedError("503") if asked[request.trace_id] == 1 else "an answer"

    progress = run(shop, fail_at_first)
    assert (progress.attempts, progress.failed, progress.done) == (30, 0, 30)
    assert rows(shop, "select count(*), count(error) from traces") == [(30, 0)]


def test_what_keeps_failing_is_given_up_for_this_run_and_uses_up_no_attempt(shop: Store) -> None:
    bad: set[str] = set()
    asked: Counter[str] = Counter()

    def fail_some(request: TeacherRequest) -> Any:
        content = request.messages[1]["content"]
        if len(bad) < 3:
            bad.add(content)
        asked[content] += content in bad
        return RequestFailedError("500") if content in bad else "an answer"

    progress = run(shop, fail_some, max_attempts=4, num_accepted=2)
    assert set(asked.values()) <= {0, outages.MAX_ASKED}
    assert (progress.failed, progress.done) == (3, 27)
    # One row each, of the first attempt: the others are still to be had.
    assert rows(shop, "select error_kind, sample_index, count(*) from traces where error is not null group by all") == [
        ("failed", 0, 3)
    ]
    assert run(shop, lambda _: "an answer", max_attempts=4, num_accepted=2).attempts == 6
    assert rows(shop, "select count(*), count(error) from traces") == [(60, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_an_outage_burns_no_attempts_and_the_run_goes_on_after_it(shop: Store, concurrency: int) -> None:
    sent = 0

    def down_for_a_while(_: TeacherRequest) -> Any:
        nonlocal sent
        sent += 1
        return RequestFailedError("Connection refused") if 10 < sent <= 10 + concurrency + 50 else "an answer"

    progress = run(shop, down_for_a_while, concurrency, limit=None)
    assert progress.failed == 0
    assert progress.done == progress.prompts
    assert rows(shop, "select status from runs where kind = 'trace'") == [("done",)]


def test_prompts_that_fail_for_ever_among_many_are_no_outage(shop: Store) -> None:
    progress = run(
        shop, lambda request: RequestFailedError("500") if request.seed % 4 == 0 else "an answer", limit=None
    )
    assert progress.failed > 50
    assert progress.done + progress.failed == progress.prompts


@pytest.mark.slow
@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_prompts_that_fail_for_ever_at_the_end_of_a_run_do_not_pause_it(
    shop: Store, concurrency: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outages, "MAX_OUTAGE_S", 10.0)
    seen: Counter[str] = Counter()

    def fail_the_last(request: TeacherRequest) -> Any:
        seen[request.trace_id] += 1
        return RequestFailedError("500") if list(seen).index(request.trace_id) >= 18 else "an answer"

    progress = run(shop, fail_the_last, concurrency)
    assert (progress.done, progress.failed) == (18, 12)
    assert rows(shop, "select status from runs where kind = 'trace'") == [("done",)]
    assert rows(shop, "select count(*), count(error) from traces") == [(30, 12)]
    # One of them may have been sent once more while it was not clear yet that there is no outage.
    assert outages.MAX_ASKED <= max(seen.values()) <= outages.MAX_ASKED + 1


def test_during_an_outage_one_request_at_a_time_goes_out(shop: Store) -> None:
    most = sent = 0

    def watch(progress: Progress) -> None:
        nonlocal most
        if sent > 10 + outages.OUTAGE_FAILURES + 4:
            most = max(most, progress.in_flight)

    def down(_: TeacherRequest) -> Any:
        nonlocal sent
        sent += 1
        return RequestFailedError("Connection refused") if 10 < sent < 60 else "an answer"

    settings = SamplingSettings("shop", limit=30, max_attempts=1, ruleset="answered")
    sample(shop, FakeTeacher(down), settings, concurrency=4, on_progress=watch)
    assert most <= 4


def test_an_outage_without_end_stops_the_run(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "MAX_OUTAGE_S", 0.2)
    sent = 0

    def go_away(_: TeacherRequest) -> Any:
        nonlocal sent
        sent += 1
        return RequestFailedError("Connection refused") if sent > 10 else "an answer"

    with pytest.raises(TeacherError, match=r"answered nothing for .* Connection refused"):
        run(shop, go_away, limit=None)
    assert rows(shop, "select count(completion) from traces") == [(10,)]
    assert rows(shop, "select count(*) < 20 from traces where error is not null") == [(True,)]
    assert rows(shop, "select status from runs where kind = 'trace'") == [("failed",)]


def test_a_teacher_that_never_answers_stops_the_run_soon(shop: Store) -> None:
    with pytest.raises(TeacherError, match="answered nothing so far; the last error: 503"):
        run(shop, lambda _: RequestFailedError("503"), limit=None)


def test_the_first_twenty_rejections_stop_the_run(shop: Store) -> None:
    sent = 0

    def reject(_: TeacherRequest) -> Any:
        nonlocal sent
        sent += 1
        return RequestFailedError(f"no stream, request {sent}", FailureKind.TOO_LONG)

    with pytest.raises(TeacherError, match=r"rejected the first 20 requests; it says: no stream, request 2\d"):
        run(shop, reject, concurrency=4, limit=None)
    assert sent < 25
    # Where nothing is ever answered, no prompt is at fault.
    assert rows(shop, "select distinct error_kind from traces") == [("rejected",)]


def test_twenty_rejections_among_answers_stop_nothing(shop: Store) -> None:
    first: list[str] = []

    def reject_most(request: TeacherRequest) -> Any:
        first.append(request.trace_id)
        return "an answer" if len(first) == 15 else RequestFailedError("no", FailureKind.MODERATED)

    progress = run(shop, reject_most)
    assert (progress.failed, progress.refused, progress.done) == (29, 29, 30)
    assert rows(shop, "select error_kind, count(*) from traces where error is not null group by all") == [
        ("moderated", 29)
    ]
    assert run(shop, lambda _: "an answer").prompts == 0
    assert run(shop, lambda _: "an answer", retry_refused=True).prompts == 29
    assert rows(shop, "select count(*), count(error_kind) from traces") == [(30, 0)]


def test_a_prompt_that_failed_before_may_be_refused_later(shop: Store) -> None:
    def teacher(kind: FailureKind) -> Any:
        asked: list[str] = []

        def answer(request: TeacherRequest) -> Any:
            asked.append(request.trace_id)
            return RequestFailedError("no", kind) if request.seed % 3 == 0 else "an answer"

        return answer

    failed = run(shop, teacher(FailureKind.REJECTED)).failed
    assert failed > 0
    assert run(shop, teacher(FailureKind.MODERATED), num_accepted=1).failed == failed
    # Only those are asked in the second run, so nothing is answered: it does not tell a prompt from a useless set-up.
    assert rows(shop, "select distinct error_kind from traces where error is not null") == [("rejected",)]
    run(shop, teacher(FailureKind.MODERATED), limit=60)
    assert rows(shop, "select distinct error_kind from traces where error is not null") == [("moderated",)]


def test_the_kind_of_an_error_is_in_the_journal(shop: Store) -> None:
    def refuse_one(request: TeacherRequest) -> Any:
        return RequestFailedError("no", FailureKind.MODERATED) if request.seed % 3 == 0 else "an answer"

    progress = run(shop, refuse_one)
    records = [entry.record for entry in read_journal(shop.journals / f"{progress.run_id}.jsonl")]
    kinds = Counter(record["error_kind"] for record in records if record["event"] == "received")
    assert kinds["moderated"] == progress.refused > 0
    json.dumps(records)


def test_whatever_a_teacher_counts_can_be_stored(shop: Store) -> None:
    odd: Any = [2**31, 2**80, -1, True, 1.5, "12"]
    run(
        shop,
        lambda request: Completion("x", "stop", odd[request.sample_index], 7, float("inf")),
        max_attempts=6,
        num_accepted=6,
    )
    assert rows(shop, "select count(*), count(prompt_tokens), count(cost_usd) from traces") == [(180, 0, 0)]
