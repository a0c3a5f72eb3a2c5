import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from curate.review import labelling
from curate.review.labelling import (
    Order,
    Progress,
    QueueSettings,
    claim_next,
    find_queue,
    label_assigned,
    list_queues,
    make_queue,
    undo_last,
)
from curate.review.trace_pages import find_traces
from curate.traces.filter import TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import InputError, Store
from store.labels import Label, put_label
from store.values import utc_now


def sample_twice(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=30, max_attempts=2, ruleset="strict"))


@pytest.fixture
def traced(prepare: Callable[..., Store], built_shop: Path) -> Store:
    """A shop with 60 traces of 30 prompts."""
    return prepare(built_shop, sample_twice)


def events(store: Store) -> pl.DataFrame:
    with store.reading() as session:
        return session.connection.sql("from labels.label_events order by created_at").pl()


def places(store: Store, queue_id: str) -> list[str]:
    with store.reading() as session:
        rows = session.connection.execute(
            "select trace_id from labels.label_queue_traces where queue_id = $1 order by place", [queue_id]
        ).fetchall()
    return [trace_id for (trace_id,) in rows]


def test_a_queue_is_what_its_filter_lets_through_in_a_fixed_order(traced: Store) -> None:
    chosen = TraceFilter(split="train", fails="strict")
    fitting = find_traces(traced, chosen, limit=1_000).rows["trace_id"].to_list()
    orders = {}
    for order in Order:
        queue = make_queue(traced, QueueSettings("all", chosen, order, size=1_000), "ann")
        orders[order] = places(traced, queue.queue_id)
        assert sorted(orders[order]) == sorted(fitting)
    assert orders[Order.NEWEST] == fitting
    again = make_queue(traced, QueueSettings("again", chosen, size=10), "ben")
    assert places(traced, again.queue_id) == orders[Order.RANDOM][:10]
    other = make_queue(traced, QueueSettings("other", chosen, size=1_000, seed=1), "ben")
    assert places(traced, other.queue_id) != orders[Order.RANDOM]
    with traced.reading() as session:
        rates = dict(
            session.connection.execute(
                "select trace_id, pass_rate from traces join pass_rates using (group_id)"
            ).fetchall()
        )
    by_rate = [rates[trace_id] for trace_id in orders[Order.LOWEST_PASS_RATE]]
    assert by_rate == sorted(by_rate)


def test_what_judges_disagree_on_comes_first(traced: Store) -> None:
    everything = find_traces(traced, TraceFilter(), limit=1_000).rows
    refused = everything.filter(pl.col("failed_rules").list.contains("target_first"))["trace_id"].to_list()
    accepted = find_traces(traced, TraceFilter(passes="strict"), limit=1_000).rows["trace_id"].to_list()
    # Both rulesets refuse it, two people like it: two against two. One likes it: one against two.
    for annotator, trace_id in (("ann", refused[0]), ("ben", refused[0]), ("ann", refused[1])):
        put_label(traced, trace_id, annotator, Label.GOOD)
    put_label(traced, accepted[0], "ann", Label.GOOD)
    queue = make_queue(traced, QueueSettings("disputed", order=Order.DISPUTED, size=1_000), "ann")
    order = places(traced, queue.queue_id)
    assert order[0] == refused[0]
    one_against = {refused[1], *find_traces(traced, TraceFilter(passes="paper", fails="strict")).rows["trace_id"]}
    assert set(order[1 : 1 + len(one_against)]) == one_against
    assert order.index(accepted[0]) > len(one_against)


def test_settings_come_back_as_they_were_stored(traced: Store) -> None:
    settings = QueueSettings(
        "mine", TraceFilter(split="train", copied=False), Order.DISPUTED, 5, 7, 2, False, ("one", "two")
    )
    queue = make_queue(traced, settings, "ann")
    assert find_queue(traced, queue.queue_id) == queue
    assert queue.settings == settings
    ((name, traces, author),) = list_queues(traced, "ann").select("name", "traces", "author").rows()
    assert (name, traces, author) == ("mine", 5, "ann")


def test_each_trace_is_shown_once_and_the_queue_ends(traced: Store) -> None:
    queue = make_queue(traced, QueueSettings("short", size=5), "ann")
    assignment, progress = claim_next(traced, queue, "ann")
    assert progress == Progress(5, 0, 0, 5)
    shown = []
    while assignment is not None:
        shown.append(assignment)
        # Whoever reloads the page sees the same trace again.
        assert claim_next(traced, queue, "ann")[0] == assignment
        assignment, progress = label_assigned(
            traced, queue, "ann", assignment, Label.GOOD, tags=["generic"], note="so so", seconds=1.5
        )
    assert [(assignment.place, assignment.trace_id) for assignment in shown] == list(
        enumerate(places(traced, queue.queue_id), 1)
    )
    assert progress == Progress(5, 5, 5, 0)
    stored = events(traced)
    assert stored["trace_id"].to_list() == [assignment.trace_id for assignment in shown]
    assert stored.select("annotator", "label", "note", "seconds", "queue_id").unique().rows() == [
        ("ann", "good", "so so", 1.5, queue.queue_id)
    ]
    assert stored["shown"].to_list() == [f'{{"place": {place}, "blind": true}}' for place in range(1, 6)]


def test_undo_appends_and_goes_back_one_by_one(traced: Store) -> None:
    queue = make_queue(traced, QueueSettings("short", size=5), "ann")
    first, _ = claim_next(traced, queue, "ann")
    assert first is not None
    second, _ = label_assigned(traced, queue, "ann", first, Label.GOOD)
    assert second is not None
    third, _ = label_assigned(traced, queue, "ann", second, Label.BAD)
    assert undo_last(traced, queue, "ann") == (second, Progress(5, 1, 1, 4))
    assert undo_last(traced, queue, "ann")[0] == first
    assert undo_last(traced, queue, "ann")[0] is None
    assert events(traced)["label"].to_list() == ["good", "bad", "undo", "undo"]
    assert claim_next(traced, queue, "ann")[0] == first
    after, _ = label_assigned(traced, queue, "ann", first, Label.UNSURE)
    assert after == second
    assert third is not None


def test_people_at_work_at_once_see_different_traces_as_often_as_is_wanted(traced: Store) -> None:
    queue = make_queue(traced, QueueSettings("pairs", size=6, overlap=2), "ann")
    people = ("ann", "ben", "cem")
    assignments = {person: claim_next(traced, queue, person)[0] for person in people}
    assert [assignment and assignment.place for assignment in assignments.values()] == [1, 1, 2]
    done: list[tuple[str, str]] = []
    while any(assignments.values()):
        for person in people:
            assignment = assignments[person]
            if assignment is not None:
                done.append((person, assignment.trace_id))
                assignments[person], progress = label_assigned(traced, queue, person, assignment, Label.GOOD)
            elif progress.open:
                assignments[person], progress = claim_next(traced, queue, person)
    assert len(set(done)) == len(done) == 12
    assert progress.finished == 6


def test_a_skipped_trace_is_left_to_others(traced: Store) -> None:
    queue = make_queue(traced, QueueSettings("one", size=1), "ann")
    assignment, _ = claim_next(traced, queue, "ann")
    assert assignment is not None
    assert label_assigned(traced, queue, "ann", assignment, Label.SKIP) == (None, Progress(1, 0, 1, 0))
    assert claim_next(traced, queue, "ben")[0] == assignment


def test_a_assignment_that_was_left_is_free_again(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(traced, QueueSettings("one", size=1), "ann")
    assignment, _ = claim_next(traced, queue, "ann")
    assert claim_next(traced, queue, "ben") == (None, Progress(1, 0, 0, 1))
    monkeypatch.setattr(labelling, "ASSIGNMENT_TIMEOUT", -labelling.ASSIGNMENT_TIMEOUT)
    assert claim_next(traced, queue, "ben")[0] == assignment


def test_two_windows_of_one_person_give_one_judgement(traced: Store) -> None:
    queue = make_queue(traced, QueueSettings("windows", size=3), "ann")
    assignment, _ = claim_next(traced, queue, "ann")
    assert assignment is not None
    assert claim_next(traced, queue, "ann")[0] == assignment
    following, _ = label_assigned(traced, queue, "ann", assignment, Label.GOOD)
    assert label_assigned(traced, queue, "ann", assignment, Label.BAD) == (following, Progress(3, 1, 1, 2))
    assert events(traced)["label"].to_list() == ["good"]


def test_a_clock_that_was_set_back_leaves_the_order_of_events(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = make_queue(traced, QueueSettings("clock", size=3), "ann")
    assignment, _ = claim_next(traced, queue, "ann")
    assert assignment is not None
    label_assigned(traced, queue, "ann", assignment, Label.GOOD)
    undo_last(traced, queue, "ann")
    monkeypatch.setattr("store.labels.utc_now", lambda: utc_now() - timedelta(hours=1))
    following, progress = label_assigned(traced, queue, "ann", assignment, Label.BAD)
    assert (following != assignment, progress.mine) == (True, 1)
    assert events(traced)["label"].to_list() == ["good", "undo", "bad"]


def test_what_is_said_in_one_queue_stands_whatever_another_says(traced: Store) -> None:
    first, second = (make_queue(traced, QueueSettings(name, size=1), "ann") for name in ("first", "second"))
    for queue, label in ((first, Label.BAD), (second, Label.SKIP)):
        assignment, _ = claim_next(traced, queue, "ann")
        assert assignment is not None
        label_assigned(traced, queue, "ann", assignment, label)
    with traced.reading() as session:
        assert session.connection.execute("select label from labels_current").fetchall() == [("bad",)]
    undo_last(traced, second, "ann")
    with traced.reading() as session:
        assert session.connection.execute("select label from labels_current").fetchall() == [("bad",)]
    undo_last(traced, first, "ann")
    with traced.reading() as session:
        assert session.connection.execute("select label from labels_current").fetchall() == []


def test_many_people_at_once_lose_nothing(traced: Store) -> None:
    queue = make_queue(traced, QueueSettings("crowd", size=40), "ann")

    def work(person: str) -> None:
        assignment, _ = claim_next(traced, queue, person)
        while assignment is not None:
            assignment, _ = label_assigned(traced, queue, person, assignment, Label.GOOD)

    people = [threading.Thread(target=work, args=(f"person {number}",)) for number in range(4)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert sorted(events(traced)["trace_id"]) == sorted(places(traced, queue.queue_id))


def test_what_makes_no_queue_is_a_clear_error(traced: Store) -> None:
    with pytest.raises(InputError, match="no answered trace matches"):
        make_queue(traced, QueueSettings("none", TraceFilter(dataset="nope")), "ann")
    with pytest.raises(InputError, match="needs a name"):
        QueueSettings(" ")
    with pytest.raises(InputError, match="the size of a queue is 0"):
        QueueSettings("q", size=0)
    with pytest.raises(InputError, match="up to 9 different ones"):
        QueueSettings("q", tags=("a", "a"))
    with pytest.raises(InputError, match="cannot be an annotator's name"):
        make_queue(traced, QueueSettings("q"), "\u202e")
    with pytest.raises(InputError, match="no label queue 'nope'"):
        find_queue(traced, "nope")
