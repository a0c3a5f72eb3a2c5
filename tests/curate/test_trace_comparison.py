import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from curate import trace_comparison
from curate.browsing import load_trace
from curate.requests import SamplingSettings
from curate.sampling import sample
from curate.teachers.evidence import EvidenceTeacher
from curate.teachers.fake import FakeTeacher
from curate.teachers.protocol import RequestFailedError
from curate.trace_comparison import (
    ANY,
    ATTEMPTS,
    FIRST_ACCEPTED,
    MOST_TOKENS,
    RANK,
    SHARE,
    Arm,
    Attempt,
    Change,
    Side,
    compare_arms,
    diff_lines,
    diff_texts,
    kendall_taus,
    list_arms,
    load_attempts,
    load_pair,
    measure_arms,
    order_moves,
    order_text,
    pick_pair,
    rank_orders,
    read_text,
)
from store import InputError, Store
from store.labels import Label, put_label

ARM = Arm("rerank.v1", "rejection", "fake", "fake", 0.5)


@pytest.fixture(scope="module")
def tried_folder(built_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with two arms on the same 30 lists, and a third that answers nothing that can be parsed on one of them."""
    store = Store.open(shutil.copytree(built_shop, tmp_path_factory.mktemp("tried") / "store"))
    for template in ("rerank_evidence.v1", "rerank.v1"):
        sample(store, EvidenceTeacher(), SamplingSettings("shop", limit=30, template=template, temperature=0.5))
    sample(store, FakeTeacher(lambda _: "no idea <b>"), SamplingSettings("shop", limit=1, max_attempts=1))
    return store.folder


@pytest.fixture
def tried(tried_folder: Path, tmp_path: Path) -> Store:
    """Such a store of one's own."""
    return Store.open(shutil.copytree(tried_folder, tmp_path / "store"))


def rows(store: Store, query: str) -> list[tuple[object, ...]]:
    with store.reading() as session:
        return session.connection.execute(query).fetchall()


def attempt(name: str, **changes: object) -> Attempt:
    made = Attempt(
        name, f"trace-{name}", 1, ARM, 0, name[0] == "A", () if name[0] == "A" else ("target_first",), ("a", "b"), 2, 1,
        None, (),
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
    for trace_id, lost_at in rows(
        tried, "select trace_id, lost_at from trace_browser where lost_at is not null limit 9"
    ):
        found = next(one for one in load_attempts(tried, trace_id).attempts if one.trace_id == trace_id)
        assert found.failures[0] == lost_at


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
    with pytest.raises(InputError, match="nothing was tried on candidate list"):
        load_attempts(tried, untried)
    with pytest.raises(InputError, match="no trace 'nope'"):
        load_pair(tried, "nope", "nope")


# Orders


def test_ranks_leave_out_what_an_order_leaves_out() -> None:
    ranks = rank_orders(["a", "b", "c"], [["c", "a", "b"], None, ["b", "b", "x"]])
    expected = [[2, 3, 1], [np.nan, np.nan, np.nan], [np.nan, 1, np.nan]]
    np.testing.assert_array_equal(ranks, np.array(expected))


def test_an_order_reads_as_numbers_with_arrows() -> None:
    assert order_text(["a", "b", "c"], ["b", "a", "c", "x"]) == "2▲1 1▼1 3 ?"
    assert order_text(["a"], None) == ""


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
        attempt("R1", new_rank=5),
        attempt("R2", new_rank=9),
        attempt("R3", ranking=None, new_rank=None),
        attempt("R4", new_rank=10, group_id=3),
    ]
    assert [one.name for one in pick_pair(attempts) or ()] == ["A3", "R2"]
    assert [one.name for one in pick_pair(attempts, "trace-R1") or ()] == ["A3", "R1"]
    assert [one.name for one in pick_pair(attempts, "trace-A2") or ()] == ["A2", "R2"]
    assert [one.name for one in pick_pair(attempts, "trace-R3") or ()] == ["A3", "R3"]
    assert pick_pair(attempts, "unknown") == pick_pair(attempts)


def test_without_such_a_pair_it_is_the_best_and_the_worst() -> None:
    rejected = [attempt("R1", new_rank=3), attempt("R2", new_rank=2), attempt("R3", new_rank=7)]
    assert [one.name for one in pick_pair(rejected) or ()] == ["R2", "R3"]
    groups = [attempt("A1"), attempt("R1", group_id=2)]
    assert [one.name for one in pick_pair(groups) or ()] == ["A1", "R1"]
    assert pick_pair(rejected[:1]) is None
    assert pick_pair([]) is None


# Texts


def test_words_that_differ_are_marked() -> None:
    first = "The kettle fits. It was bought after ‹1·2 Green tea› 4 times. It is cheap."
    second = "The kettle fits. It was bought after ‹1·3 Black tea› 4 times. It is cheap."
    assert diff_texts(first, second) == [
        Change(Side.BOTH, "The kettle fits. It was bought after"),
        Change(Side.FIRST, " ‹1·2 Green tea›"),
        Change(Side.SECOND, " ‹1·3 Black tea›"),
        Change(Side.BOTH, " 4 times. It is cheap."),
    ]
    assert diff_lines(diff_texts(first, second)).splitlines() == [
        "  The kettle fits.",
        "  It was bought after",
        "- ‹1·2 Green tea›",
        "+ ‹1·3 Black tea›",
        "  4 times.",
        "  It is cheap.",
    ]


def test_a_word_or_two_in_common_do_not_cut_a_change_up() -> None:
    assert diff_texts("one two three four", "five two six four") == [
        Change(Side.FIRST, "one two three"),
        Change(Side.SECOND, "five two six"),
        Change(Side.BOTH, " four"),
    ]


def test_what_is_long_and_alike_is_folded() -> None:
    alike = "".join(f" Sentence {number}." for number in range(9))
    lines = diff_lines(diff_texts(f"Old.{alike} Old", f"New.{alike} New")).splitlines()
    assert lines[:4] == ["- Old.", "+ New.", "  Sentence 0.", "  Sentence 1."]
    assert "@@ 5 lines alike @@" in lines
    assert len(lines) == 2 + 2 + 1 + 2 + 2


def test_the_same_text_is_no_change_and_not_folded() -> None:
    text = "One. Two. Three. Four. Five. Six.\nSeven"
    assert diff_texts(text, text) == [Change(Side.BOTH, text)]
    assert len(diff_lines(diff_texts(text, text)).splitlines()) == 7
    assert diff_texts("", "") == []


texts = st.lists(
    st.sampled_from(["tea", " tea", " the", ". ", "\n", "‹1·2 Green tea›", "‹", "!", " 1,200.5", "\u202e", "<b>"])
    | st.text(max_size=3),
    max_size=25,
).map("".join)


@given(texts, texts)
def test_a_diff_is_both_texts_and_turns_round(first: str, second: str) -> None:
    changes = diff_texts(first, second)
    assert "".join(change.text for change in changes if change.side is not Side.SECOND) == first
    assert "".join(change.text for change in changes if change.side is not Side.FIRST) == second
    other = {Side.BOTH: Side.BOTH, Side.FIRST: Side.SECOND, Side.SECOND: Side.FIRST}
    turned = [Change(other[side], text) for side, text in diff_texts(second, first)]
    for side in Side:
        assert [one.text for one in changes if one.side is side] == [one.text for one in turned if one.side is side]
    assert (first == second) == all(change.side is Side.BOTH for change in changes)
    assert all(line[:2] in {"  ", "- ", "+ ", "@@"} for line in diff_lines(changes).split("\n") if line)


def read(store: Store, trace_id: str, **changes: object) -> trace_comparison.ReadText:
    view = load_trace(store, trace_id)
    return read_text(replace(view, trace=view.trace | changes))


def test_items_are_read_by_title_and_foreign_ids_by_their_codes(tried: Store) -> None:
    ((trace_id,),) = rows(tried, "select trace_id from traces where teacher = 'evidence' limit 1")
    shown = load_trace(tried, trace_id).listed.task.candidates[0].item
    reasoning = f"{shown.sid} and <|sid_begin|><s_a_60000><|sid_end|>."
    text = read(tried, trace_id, reasoning=reasoning).text
    assert shown.title is not None
    assert text.startswith("‹")
    assert text.endswith(f" {shown.title}› and ‹60000›.")


def test_without_a_reasoning_the_completion_is_read_or_the_error(tried: Store) -> None:
    ((trace_id,),) = rows(tried, "select trace_id from traces where teacher = 'fake'")
    assert read(tried, trace_id) == ("no idea <b>", "completion", False)
    assert read(tried, trace_id, completion=None, error="timed out") == ("timed out", "error", False)
    assert read(tried, trace_id, completion=None) == ("", "reasoning", False)


def test_what_steers_a_screen_is_spelled_out(tried: Store) -> None:
    ((trace_id,),) = rows(tried, "select trace_id from traces where teacher = 'fake'")
    text = read(tried, trace_id, reasoning="a\u202eb\x1b[31m\x00\r\nשלום 👨‍👩‍👧 <script>\u2028").text
    assert text == "a\\u202eb\\u001b[31m\\u0000\\u000d\nשלום 👨‍👩‍👧 <script>\\u2028"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A long story about soap. " * 42_000, "A long story about tea. " * 42_000),
        ("a" * 1_000_000, "b" * 1_000_000),
        ("‹" * 500_000, "<" * 500_000),
        ("".join(map(chr, range(0x2200, 0x22C8))) * 5_000, "".join(map(chr, range(0x22C7, 0x21FF, -1))) * 5_000),
        (" " * 1_000_000 + "x", "\n" * 1_000_000),
        ("<|sid_begin|>" * 80_000, "<|sid_begin|><s_a_1>" * 50_000),
    ],
)
def test_a_megabyte_is_cut_and_compared_in_no_time(tried: Store, first: str, second: str) -> None:
    ((trace_id,),) = rows(tried, "select trace_id from traces where teacher = 'fake'")
    started = time.perf_counter()
    left, right = (read(tried, trace_id, reasoning=text) for text in (first, second))
    assert left.cut
    assert right.cut
    assert len(diff_lines(diff_texts(left.text, right.text))) < 500_000
    assert time.perf_counter() - started < 10


def test_a_long_reasoning_is_cut_between_words(tried: Store) -> None:
    ((trace_id,),) = rows(tried, "select trace_id from traces where teacher = 'fake'")
    text = read(tried, trace_id, reasoning="word " * (MOST_TOKENS + 1))
    assert text == ("word " * (MOST_TOKENS - 1) + "word", "reasoning", True)


# Two arms


def lists(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame(
        columns, schema_overrides={"first_accepted": pl.Float64, "first_rank": pl.Float64, "target_rank": pl.Int32}
    )


def test_arms_are_compared_on_the_lists_that_both_tried() -> None:
    first = lists(
        list_id=["a", "b", "c", "d", "only"],
        target_rank=[4, 2, 3, None, 1],
        attempts=[1, 4, 2, 4, 1],
        accepted=[1, 1, 1, 0, 1],
        first_accepted=[1, 0, None, 0, 1],
        first_rank=[1, 3, None, None, 1],
    )
    second = lists(
        list_id=["d", "c", "b", "a"],
        target_rank=[None, 3, 2, 4],
        attempts=[2, 2, 1, 4],
        accepted=[0, 1, 1, 0],
        first_accepted=[0, 1, 1, 0],
        first_rank=[None, 2, 1, 5],
    )
    found = measure_arms(first, second)
    assert found.lists == 4
    means = {one.name: (one.first, one.second, one.difference.value, one.difference.n) for one in found.measures}
    assert means == {
        FIRST_ACCEPTED: pytest.approx((1 / 3, 1 / 3, 0, 3)),
        SHARE: pytest.approx((0.4375, 0.375, 0.0625, 4)),
        ANY: pytest.approx((0.75, 0.5, 0.25, 4)),
        ATTEMPTS: pytest.approx((2.75, 2.25, 0.5, 4)),
        RANK: pytest.approx((2, 3, -1, 2)),
    }
    assert all(one.difference.low <= one.difference.value <= one.difference.high for one in found.measures)
    assert found.rank_before == 3
    assert found.passed_2_2.tolist() == [[2, 1], [0, 1]]
    assert found.first_better.select("list_id", "gap", "rank_before", "rank", "rank_2").rows() == [("a", 1, 4, 1, 5)]
    assert found.second_better.select("list_id", "gap").rows() == [("b", -0.75)]


def test_an_arm_differs_from_itself_by_nothing_and_turned_round_by_the_opposite(tried: Store) -> None:
    one, other = list(list_arms(tried))[:2]
    same = compare_arms(tried, one, one)
    assert {measure.difference[1:4] for measure in same.measures} == {(0.0, 0.0, 0.0)}
    assert same.first_better.height == same.second_better.height == same.passed_2_2[0, 1] == 0
    there, back = compare_arms(tried, one, other), compare_arms(tried, other, one)
    assert there.lists == back.lists == 30
    assert [one.difference.value for one in there.measures] == pytest.approx(
        [-one.difference.value for one in back.measures]
    )
    assert there.passed_2_2.tolist() == back.passed_2_2.T.tolist()
    assert there.first_better["list_id"].equals(back.second_better["list_id"])
    assert compare_arms(tried, one, other, seed=0).measures == there.measures
    assert compare_arms(tried, one, other, seed=1).measures != there.measures


def test_figures_of_arms_are_those_of_the_store(tried: Store) -> None:
    arms = list_arms(tried)
    assert sum(arms.values()) == rows(tried, "select count(*) from traces")[0][0]
    one, other = list(arms)[:2]
    compared = {measure.name: measure for measure in compare_arms(tried, one, other).measures}
    stored = rows(
        tried,
        "with lists as (select list_id, avg(accepted::int) as share, max(accepted::int) as passed,"
        " max(new_rank) filter (sample_index = 0) as rank, count(*) as attempts from trace_browser"
        f" where template = '{one.template}' and teacher = 'evidence' group by list_id)"
        " select avg(share), avg(passed), avg(rank), avg(attempts) from lists",
    )
    assert [compared[name].first for name in (SHARE, ANY, RANK, ATTEMPTS)] == pytest.approx(stored[0])


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        wins = rng.binomial(1, 0.6, size=80)
        first, second = (
            lists(
                list_id=[str(place) for place in range(80)],
                target_rank=[1] * 80,
                attempts=[1] * 80,
                accepted=accepted.tolist(),
                first_accepted=accepted.tolist(),
                first_rank=[1] * 80,
            )
            for accepted in (wins, np.zeros(80, dtype=int))
        )
        low, high = measure_arms(first, second, seed=seed).measures[0].difference[2:4]
        held += low <= 0.6 <= high
    assert 88 <= held <= 99


def test_unknown_arms_and_no_list_in_common(tried: Store) -> None:
    one, *_ = list_arms(tried)
    with pytest.raises(InputError, match=r"no trace was made by rerank.v1 · fake/fake · T 0.5"):
        compare_arms(tried, one, ARM)
    sample(
        tried,
        FakeTeacher(lambda _: json.dumps({"explanation": "x", "recommendations": []}), "valid-only"),
        SamplingSettings("shop", split="valid", limit=2, max_attempts=1),
    )
    valid = next(arm for arm in list_arms(tried) if arm.teacher == "valid-only")
    apart = compare_arms(tried, one, valid)
    assert (apart.lists, apart.measures, apart.rank_before) == (0, (), None)
    assert apart.passed_2_2.tolist() == [[0, 0], [0, 0]]


def test_a_request_that_failed_is_no_attempt_of_an_arm_but_shown_on_its_list(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=2))
    sample(shop, FakeTeacher(lambda _: RequestFailedError("gave up")), SamplingSettings("shop", limit=1))
    ((trace_id,), *_) = rows(shop, "select trace_id from traces where error is not null")
    found = next(one for one in load_attempts(shop, trace_id).attempts if one.trace_id == trace_id)
    assert found.failures == ("not answered",)
    evidence, failed = sorted(list_arms(shop), key=lambda arm: arm.teacher)
    with pytest.raises(InputError, match="no trace was made by"):
        compare_arms(shop, evidence, failed)
