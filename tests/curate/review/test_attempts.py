from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from curate.review import attempts as trace_comparison
from curate.review.attempts import (
    Attempt,
    kendall_taus,
    load_attempts,
    load_pair,
    order_moves,
    order_text,
    pick_pair,
    rank_orders,
)
from curate.review.configurations import Configuration
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import RequestFailedError
from store import InputError, Store
from store.labels import Label, put_label

CONFIGURATION = Configuration("rerank.v1", "rejection", "fake", "fake", 0.5)


def rows(store: Store, query: str) -> list[tuple[object, ...]]:
    with store.reading() as session:
        return session.connection.execute(query).fetchall()


def attempt(name: str, **changes: object) -> Attempt:
    made = Attempt(
        name, f"trace-{name}", 1, CONFIGURATION, 0, name[0] == "A", () if name[0] == "A" else ("target_first",),
        ("a", "b"), 2, 1, None, (),
    )  # fmt: skip
    return replace(made, **changes)


# Attempts on one list


def test_all_attempts_on_a_list_come_with_what_was_said_of_them(tried: Store) -> None:
    ((list_id,),) = rows(tried, "select list_id from traces where teacher = 'fake'")
    ((trace_id, prompt_id),) = rows(tried, "select trace_id, prompt_id from traces where teacher = 'fake'")
    put_label(tried, trace_id, "ann", Label.BAD)
    put_label(tried, trace_id, "ben", Label.BAD)
    found = load_attempts(tried, list_id)
    stored = dict(rows(tried, f"select trace_id, accepted from trace_browser where list_id = '{list_id}'"))
    assert {one.trace_id: one.accepted for one in found.attempts} == stored
    assert (found.accepted, found.rejected) == (sum(stored.values()), len(stored) - sum(stored.values()))
    assert [one.accepted for one in found.attempts] == sorted((one.accepted for one in found.attempts), reverse=True)
    fake = next(one for one in found.attempts if one.trace_id == trace_id)
    assert fake.labels == ("bad", "bad")
    assert fake.failures == ("parsed",)
    assert fake.ranking is None
    assert fake.name.startswith("R")
    assert found == load_attempts(tried, trace_id) == load_attempts(tried, prompt_id)


def test_the_first_failed_rule_comes_first(tried: Store) -> None:
    for trace_id, first_failed_rule in rows(
        tried, "select trace_id, first_failed_rule from trace_browser where first_failed_rule is not null limit 9"
    ):
        found = next(one for one in load_attempts(tried, trace_id).attempts if one.trace_id == trace_id)
        assert found.failures[0] == first_failed_rule


def test_of_too_many_attempts_the_first_samples_are_shown_and_all_counted(
    tried: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((list_id, attempts),) = rows(
        tried, "select list_id, count(*) as n from traces group by list_id order by n desc limit 1"
    )
    monkeypatch.setattr(trace_comparison, "MOST_ATTEMPTS", 2)
    found = load_attempts(tried, list_id)
    assert {one.sample_index for one in found.attempts} == {0}
    assert len(found.attempts) == 2
    assert found.accepted + found.rejected == attempts > 2


def test_what_is_not_there_is_a_clear_error(tried: Store) -> None:
    with pytest.raises(InputError, match="no candidate list, prompt or trace 'nope'"):
        load_attempts(tried, "nope")
    ((untried,),) = rows(
        tried, "select list_id from candidate_lists where list_id not in (select list_id from prompts) limit 1"
    )
    with pytest.raises(InputError, match=r"candidate list .* has no traces yet"):
        load_attempts(tried, untried)
    with pytest.raises(InputError, match="no trace 'nope'"):
        load_pair(tried, "nope", "nope")


def test_a_request_that_failed_is_shown_on_its_list(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=2))
    sample(shop, FakeTeacher(lambda _: RequestFailedError("gave up")), SamplingSettings("shop", limit=1))
    ((trace_id,), *_) = rows(shop, "select trace_id from traces where error is not null")
    found = next(one for one in load_attempts(shop, trace_id).attempts if one.trace_id == trace_id)
    assert found.failures == ("not answered",)


# Orders


def test_ranks_leave_out_what_an_order_leaves_out() -> None:
    ranks = rank_orders(["a", "b", "c"], [["c", "a", "b"], None, ["b", "b", "x"]])
    expected = [[2, 3, 1], [np.nan, np.nan, np.nan], [np.nan, 1, np.nan]]
    np.testing.assert_array_equal(ranks, np.array(expected))


def test_an_order_reads_as_numbers_with_the_target_marked() -> None:
    assert order_text(["a", "b", "c"], ["b", "a", "c", "x"], "a") == "2, ★1, 3, ?"
    assert order_text(["a"], None, "a") == ""


@given(st.lists(st.permutations(range(6)), min_size=2, max_size=5))
def test_taus_are_those_of_scipy(orders: list[list[int]]) -> None:
    taus = kendall_taus(np.array(orders, dtype=float))
    for row, left in enumerate(orders):
        for column, right in enumerate(orders):
            assert taus[row, column] == pytest.approx(kendalltau(left, right).statistic)


def test_a_tau_is_over_what_both_orders_rank() -> None:
    taus = kendall_taus(rank_orders(["a", "b", "c"], [["a", "b", "c"], ["c", "a"], None]))
    assert taus[0, 1] == -1
    assert np.isnan(taus[:, 2]).all()


def test_moves_are_from_the_first_order_to_the_second(tried: Store) -> None:
    listed = load_attempts(tried, rows(tried, "select list_id from traces limit 1")[0][0]).listed
    ids = [candidate.item.item_id for candidate in listed.task.candidates]
    moves = order_moves(listed, ids, [ids[1], ids[0], *ids[3:]])
    assert moves.select("first", "second", "moved").rows()[:4] == [
        (1, 2, "▼1"),
        (2, 1, "▲1"),
        (3, None, ""),
        (4, 3, "▲1"),
    ]
    assert moves.filter(target="★").height == 1
    assert order_moves(listed, None, None)["first"].null_count() == len(ids)


# The pair


def test_the_pair_is_the_best_accepted_and_the_worst_rejected_of_a_group() -> None:
    attempts = [
        attempt("A1", group_id=2),
        attempt("A2", failures=("cites",)),
        attempt("A3"),
        attempt("R1", predicted_rank=5),
        attempt("R2", predicted_rank=9),
        attempt("R3", ranking=None, predicted_rank=None),
        attempt("R4", predicted_rank=10, group_id=3),
    ]
    assert [one.name for one in pick_pair(attempts) or ()] == ["A3", "R2"]
    assert [one.name for one in pick_pair(attempts, "trace-R1") or ()] == ["A3", "R1"]
    assert [one.name for one in pick_pair(attempts, "trace-A2") or ()] == ["A2", "R2"]
    assert [one.name for one in pick_pair(attempts, "trace-R3") or ()] == ["A3", "R3"]
    assert pick_pair(attempts, "unknown") == pick_pair(attempts)


def test_without_such_a_pair_it_is_the_best_and_the_worst() -> None:
    rejected = [attempt("R1", predicted_rank=3), attempt("R2", predicted_rank=2), attempt("R3", predicted_rank=7)]
    assert [one.name for one in pick_pair(rejected) or ()] == ["R2", "R3"]
    groups = [attempt("A1"), attempt("R1", group_id=2)]
    assert [one.name for one in pick_pair(groups) or ()] == ["A1", "R1"]
    assert pick_pair(rejected[:1]) is None
    assert pick_pair([]) is None
