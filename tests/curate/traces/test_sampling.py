import asyncio
import json
import os
import random
import signal
import threading
import time
from datetime import timedelta
from typing import Any

import duckdb
import pytest

from curate.traces import sampling
from curate.traces.planning import SamplingSettings
from curate.traces.recording import TRACE_SCHEMA, JudgedTrace, commit_traces
from curate.traces.rules import Verdict
from curate.traces.sampling import Progress, sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import Completion, RequestFailedError, TeacherRequest
from prompts.completion import render_completion
from store import InputError, Put, Store, TeacherError
from store.journals import JournalWriter, read_journal


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def shuffled(request: TeacherRequest) -> str:
    sids = [candidate.item.sid for candidate in request.task.candidates]
    random.Random(request.seed).shuffle(sids)
    return render_completion(f"{sids[0]} fits.", sids)


def run(store: Store, handler: Any = shuffled, **options: Any) -> Progress:
    settings = SamplingSettings("shop", **{"limit": 30, **options})
    return sample(store, FakeTeacher(handler), settings, concurrency=8)


def test_each_prompt_is_sampled_until_enough_are_accepted_or_no_attempt_is_left(shop: Store) -> None:
    progress = run(shop, max_attempts=5, num_accepted=2)
    rows = fetch(shop, "select prompt_id, attempts, accepted from pass_rates")
    assert len(rows) == progress.prompts == 30
    assert all(attempts == 5 or accepted == 2 for _, attempts, accepted in rows)
    assert any(attempts < 5 for _, attempts, _ in rows)
    assert any(accepted < 2 for _, _, accepted in rows)
    assert progress.attempts == progress.stored == sum(attempts for _, attempts, _ in rows)
    assert progress.accepted == sum(accepted for _, _, accepted in rows)
    assert fetch(shop, "select count(*) from accepted_traces('paper')") == [(progress.accepted,)]


def test_every_attempt_is_kept_the_bad_ones_with_reasons(shop: Store) -> None:
    answers = {0: "no idea", 1: '{"explanation": "x", "recommendations": []}'}
    run(shop, lambda request: answers[request.sample_index], max_attempts=2)
    assert fetch(shop, "select count(*), count(completion), count(ranking) from traces") == [(60, 60, 30)]
    reasons = dict(fetch(shop, "select rule || ' ' || reason, count(*) from verdicts where not passed group by all"))
    assert reasons["parsed no_json"] == 30
    assert reasons["permutation not_a_permutation"] == 30


def test_the_same_run_again_asks_for_nothing(shop: Store) -> None:
    run(shop, max_attempts=3)
    before = fetch(shop, "select count(*) from traces")
    again = run(shop, max_attempts=3)
    assert (again.prompts, again.attempts) == (0, 0)
    assert fetch(shop, "select count(*) from traces") == before
    assert fetch(shop, "select count(*) from runs where kind = 'trace'") == [(1,)]


def test_more_attempts_top_up_what_is_there(shop: Store) -> None:
    run(shop, "x" and (lambda _: "no idea"), max_attempts=2)
    asked: list[int] = []

    def count(request: TeacherRequest) -> str:
        asked.append(request.sample_index)
        return "no idea"

    run(shop, count, max_attempts=3)
    assert asked == [2] * 30


def test_failed_requests_are_rows_and_are_asked_again(shop: Store) -> None:
    def fail_sometimes(request: TeacherRequest) -> Any:
        return RequestFailedError("503 overloaded") if request.seed % 2 else shuffled(request)

    first = run(shop, fail_sometimes, max_attempts=1)
    assert first.failed > 0
    assert fetch(shop, "select distinct error from traces where completion is null") == [("503 overloaded",)]
    second = run(shop, max_attempts=1)
    assert second.attempts == first.failed
    assert fetch(shop, "select count(*), count(distinct trace_id), count(error) from traces") == [(30, 30, 0)]


def test_a_teacher_that_cannot_work_stops_the_run_at_once_and_keeps_what_came(shop: Store) -> None:
    seen: list[str] = []

    def break_down(request: TeacherRequest) -> Any:
        seen.append(request.trace_id)
        return TeacherError("wrong key") if len(seen) > 10 else shuffled(request)

    with pytest.raises(TeacherError, match="wrong key"):
        run(shop, break_down, max_attempts=1)
    assert len(seen) < 30
    assert fetch(shop, "select count(*) from traces") == [(10,)]
    assert fetch(shop, "select status from runs where kind = 'trace'") == [("failed",)]


def test_no_request_of_a_rejection_run_holds_the_target(shop: Store) -> None:
    targets: list[object] = []
    run(shop, lambda request: targets.append(request.task.target) or shuffled(request), max_attempts=1)
    assert targets == [None] * 30


def test_targeted_requests_hold_the_target(shop: Store) -> None:
    settings = SamplingSettings("shop", strategy="targeted", limit=30, max_attempts=1)
    progress = sample(shop, EvidenceTeacher(), settings)
    assert progress.accepted == 30
    assert fetch(shop, "select distinct template, strategy from prompts") == [("rerank_targeted.v1", "targeted")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lists", "where"),
    [("with-target", "target_rank is not null"), ("without-target", "target_rank is null"), ("all", "true")],
)
def test_lists_are_chosen_by_whether_they_hold_their_target(shop: Store, lists: str, where: str) -> None:
    run(shop, lists=lists, limit=None, max_attempts=1, ruleset="answered")
    asked = fetch(shop, "select distinct list_id from traces order by list_id")
    assert asked == fetch(
        shop, f"select list_id from candidate_lists where split = 'train' and {where} order by list_id"
    )
    assert asked
    # A target that is none of the candidates can be none of the answer.
    accepted = "select count(*) from accepted_traces('paper') as t join candidate_lists as l using (list_id)"
    assert fetch(shop, f"{accepted} where l.target_rank is null") == [(0,)]


def test_a_targeted_prompt_needs_a_target(shop: Store) -> None:
    with pytest.raises(InputError, match=r"rerank_targeted\.v1 shows the target, so `lists` must be with-target"):
        run(shop, template="rerank_targeted.v1", lists="all")


def test_a_template_that_hides_evidence_hides_it_from_the_teacher_too(shop: Store) -> None:
    shown: list[bool] = []

    def look(request: TeacherRequest) -> str:
        shown.append(request.task.candidates[0].evidence is not None)
        return shuffled(request)

    run(shop, look, template="rerank.v1", max_attempts=1)
    run(shop, look, template="rerank_evidence.v1", max_attempts=1)
    assert shown == [False] * 30 + [True] * 30


def test_samples_differ_and_a_repeated_request_is_the_same(shop: Store) -> None:
    seen: dict[tuple[str, int], tuple[str, int]] = {}

    def note(request: TeacherRequest) -> str:
        seen[request.messages[1]["content"], request.sample_index] = (request.trace_id, request.seed)
        return "no idea"

    run(shop, note, max_attempts=3)
    first = dict(seen)
    assert len(set(first.values())) == len(first)
    with shop.writing() as session:
        session.connection.execute("delete from traces")
    run(shop, note, max_attempts=3)
    assert seen == first


def test_two_users_with_the_same_items_have_traces_of_their_own(shop: Store) -> None:
    with shop.writing() as session:
        session.connection.execute(
            "insert into candidate_lists select 'twin-' || list_id, * exclude (list_id) from candidate_lists"
            " where split = 'valid' and target_rank is not null"
        )
        session.connection.execute("insert into evidence select 'twin-' || list_id, * exclude (list_id) from evidence")
    progress = run(shop, split="valid", limit=None, max_attempts=1)
    assert fetch(shop, "select count(distinct trace_id) from traces") == [(progress.prompts,)]


def test_tokens_and_costs_add_up(shop: Store) -> None:
    progress = run(shop, lambda _: Completion("x", "stop", 100, 10, 0.5), max_attempts=1)
    assert (progress.prompt_tokens, progress.completion_tokens, progress.cost_usd) == (3000, 300, 15.0)
    assert fetch(shop, "select prompt_tokens, completion_tokens, cost_usd from acceptance_funnel") == [
        (3000, 300, 15.0)
    ]


@pytest.mark.slow
def test_concurrency_is_bounded(shop: Store) -> None:
    settings = SamplingSettings("shop", max_attempts=2)
    most = 0

    def watch(progress: Progress) -> None:
        nonlocal most
        most = max(most, progress.in_flight)

    sample(shop, EvidenceTeacher(), settings, concurrency=3, on_progress=watch)
    assert most <= 3


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_cleanly_and_the_same_command_goes_on(shop: Store, number: signal.Signals) -> None:
    count = 0

    def interrupt(request: TeacherRequest) -> str:
        nonlocal count
        count += 1
        if count == 20:
            os.kill(os.getpid(), number)
        return shuffled(request)

    progress = run(shop, interrupt, limit=None, max_attempts=1)
    assert progress.stopping
    assert progress.attempts < progress.prompts
    assert fetch(shop, "select count(*) from traces") == [(progress.attempts,)]
    assert fetch(shop, "select status from runs where kind = 'trace'") == [("interrupted",)]
    rest = run(shop, limit=None, max_attempts=1)
    assert rest.attempts == progress.prompts - progress.attempts


class SlowTeacher(FakeTeacher):
    """Answers ten requests at once and then takes an hour; interrupts the run twice meanwhile."""

    async def complete(self, request: TeacherRequest) -> Completion:
        answered = len(self.requests)
        completion = await super().complete(request)
        if answered == 10:
            loop = asyncio.get_running_loop()
            for delay in (0.2, 0.4):
                loop.call_later(delay, os.kill, os.getpid(), signal.SIGINT)
        if answered >= 10:
            await asyncio.sleep(3600)
        return completion


@pytest.mark.slow
def test_a_second_signal_leaves_what_is_under_way_and_keeps_what_came(shop: Store) -> None:
    progress = sample(shop, SlowTeacher(shuffled), SamplingSettings("shop", max_attempts=1), concurrency=8)
    assert progress.attempts == progress.stored == 10
    assert fetch(shop, "select status from runs where kind = 'trace'") == [("interrupted",)]
    again = run(shop, limit=None, max_attempts=1)
    assert again.attempts == progress.prompts - 10


def test_what_a_dead_run_left_in_its_journal_is_taken_over(shop: Store) -> None:
    run(shop, max_attempts=1)
    ((run_id,),) = fetch(shop, "select run_id from runs where kind = 'trace'")
    before = fetch(shop, "select * exclude (created_at) from traces order by trace_id")
    verdicts = fetch(shop, "from verdicts order by all")
    with shop.writing() as session:
        for table in ("traces", "verdicts", "journals"):
            session.connection.execute(f"delete from {table}")
        session.connection.execute("update runs set ended_at = null, status = 'running'")
    path = shop.journals / f"{run_id}.jsonl"
    with path.open("ab") as file:
        file.write(b'{"event":"sent","trace_id":"unanswered"}\n{"event":"received","trace_id":"to')
    progress = run(shop, max_attempts=1)
    assert [(recovery.traces, recovery.unknown) for recovery in progress.recovered] == [(30, 1)]
    assert progress.attempts == 0
    assert fetch(shop, "select * exclude (created_at) from traces order by trace_id") == before
    assert fetch(shop, "from verdicts order by all") == verdicts
    assert fetch(shop, "select status from runs where kind = 'trace'") == [("killed",)]


def test_the_journal_of_a_live_run_is_left_alone(shop: Store) -> None:
    run(shop, max_attempts=1)
    ((run_id,),) = fetch(shop, "select run_id from runs where kind = 'trace'")
    with shop.writing() as session:
        session.connection.execute("update runs set ended_at = null, status = 'running'")
    writer = JournalWriter(shop.journals / f"{run_id}.jsonl")
    try:
        assert run(shop, max_attempts=1).recovered == []
    finally:
        writer.close()


def test_two_processes_cannot_ask_for_the_same_samples(shop: Store) -> None:
    started, go_on = threading.Event(), threading.Event()

    def wait(request: TeacherRequest) -> str:
        started.set()
        go_on.wait(20)
        return shuffled(request)

    # Signal handlers want the main thread, so the second run is the one in a thread.
    refused: list[BaseException] = []

    def second() -> None:
        started.wait(20)
        try:
            run(shop, max_attempts=1)
        except InputError as error:
            refused.append(error)
        go_on.set()

    thread = threading.Thread(target=second)
    thread.start()
    run(shop, wait, max_attempts=1)
    thread.join()
    assert "is sampling shop with these settings already" in str(refused[0])


def test_generation_goes_on_while_another_process_holds_the_store(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "COMMIT_TRACES", 5)
    started, ended = threading.Event(), threading.Event()

    def hold() -> None:
        started.wait(20)
        with shop.writing():
            time.sleep(0.5)
        ended.set()

    during: list[bool] = []

    def note(request: TeacherRequest) -> str:
        started.set()
        during.append(not ended.is_set())
        return shuffled(request)

    thread = threading.Thread(target=hold)
    thread.start()
    progress = run(shop, note, max_attempts=4, num_accepted=4)
    thread.join()
    assert sum(during) > 5
    assert fetch(shop, "select count(*) from traces") == [(progress.attempts,)]


def test_hostile_completions_are_stored_as_text(shop: Store) -> None:
    texts = ["\x00\ud800<script>", "\u202e" * 1000, "{" * 100_000, "x" * 1_000_000]
    run(shop, lambda request: texts[request.sample_index], limit=2, max_attempts=4)
    stored = {text for (text,) in fetch(shop, "select completion from traces")}
    assert stored == {"\ufffd\ufffd<script>", *texts[1:]}


def test_the_journal_holds_a_line_before_each_request_and_one_after(shop: Store) -> None:
    run(shop, limit=5, max_attempts=1)
    (path,) = shop.journals.glob("trace-*.jsonl")
    events = [(record["event"], record["trace_id"]) for record, _ in read_journal(path)]
    for event, trace_id in events:
        if event == "received":
            assert events.index(("sent", trace_id)) < events.index((event, trace_id))
    assert sorted(event for event, _ in events) == ["received"] * 5 + ["sent"] * 5


def test_a_run_keeps_its_settings(shop: Store) -> None:
    run(shop, limit=5, max_attempts=1)
    ((settings,),) = fetch(shop, "select settings from runs where kind = 'trace'")
    assert json.loads(settings)["template"] == "rerank_evidence.v1"
    assert json.loads(settings)["limit"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "nope.v1"}, "no template"),
        ({"strategy": "targeted", "template": "rerank.v1"}, "is for strategy 'rejection'"),
        ({"sid_version": "nope"}, "no semantic-ID version fit for training is called 'nope'"),
        ({"pre_ranker": "nope"}, "no pre-ranker is called 'nope'"),
        ({"ruleset": "nope"}, "no ruleset is called 'nope'; there are: answered, paper, strict"),
        ({"max_attempts": 0}, "`max_attempts` is 0"),
        ({"num_accepted": 5}, "`num_accepted` is 5; it must not be more than `max_attempts`, 4"),
        ({"temperature": 3.0}, "`temperature` is 3.0"),
        ({"split": "tset"}, "`split` is 'tset'"),
        ({"limit": 0}, "`limit` is 0"),
    ],
)
def test_what_cannot_be_run_is_a_clear_error(shop: Store, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(shop, **options)
    assert fetch(shop, "select count(*) from runs where kind = 'trace'") == [(0,)]


def test_a_store_that_is_not_ready_names_the_next_command(store: Store) -> None:
    with pytest.raises(InputError, match="no dataset is called 'shop'; there are: none yet"):
        run(store)


def test_a_trace_whose_prompt_is_gone_is_refused_and_nothing_of_its_batch_is_stored(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=1, max_attempts=1))
    (row,) = shop_rows(shop)
    lost = JudgedTrace({**row, "trace_id": "lost", "prompt_id": "gone"}, [])
    kept = JudgedTrace({**row, "trace_id": "kept"}, [])
    with pytest.raises(duckdb.ConstraintException, match="NOT NULL"):
        commit_traces(shop, row["run_id"], [kept, lost], 10)
    assert [stored["trace_id"] for stored in shop_rows(shop)] == [row["trace_id"]]


def test_an_answer_counts_before_a_failed_attempt_of_the_same_batch(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=1, max_attempts=1))
    (row,) = shop_rows(shop)
    answer = JudgedTrace({**row, "trace_id": "twice"}, [])
    failure = JudgedTrace({**row, "trace_id": "twice", "completion": None, "error": "gave up"}, [])
    commit_traces(shop, row["run_id"], [answer, failure, answer], 10)
    assert [(stored["trace_id"], stored["error"]) for stored in shop_rows(shop) if stored["trace_id"] == "twice"] == [
        ("twice", None)
    ]


def test_a_trace_that_is_stored_stays_as_it_is_with_its_verdicts(shop: Store) -> None:
    """As when two runs of one command ask for the same attempt: the second to commit it finds it there."""
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=2, max_attempts=1))
    before, verdicts = shop_rows(shop), fetch(shop, "select * from verdicts order by all")
    later = {"created_at": before[0]["created_at"] + timedelta(days=1), "reasoning": "Another answer."}
    failed = [Verdict("parsed", 1, False, "no_json", "")]
    new = {**before[0], **later, "trace_id": "new"}
    put = commit_traces(
        shop,
        before[0]["run_id"],
        [JudgedTrace({**row, **later}, failed) for row in before] + [JudgedTrace(new, [])],
        10,
    )
    assert put == Put(inserted=1, existing=2)
    assert [row for row in shop_rows(shop) if row["trace_id"] != "new"] == before
    assert fetch(shop, "select * from verdicts order by all") == verdicts


def shop_rows(store: Store) -> list[dict[str, Any]]:
    """All traces, as they were committed."""
    with store.reading() as session:
        return session.connection.sql("from traces order by trace_id").pl().select(list(TRACE_SCHEMA)).to_dicts()
