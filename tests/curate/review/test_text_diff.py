import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.review.text_diff import MOST_TOKENS, Change, ReadText, Side, diff_lines, diff_texts, read_text
from curate.review.trace_pages import find_traces, load_trace
from curate.traces.filter import TraceFilter
from store import Store


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


def find_trace(store: Store, teacher: str) -> str:
    return str(find_traces(store, TraceFilter(teacher=teacher)).rows["trace_id"][0])


def read(store: Store, trace_id: str, **changes: object) -> ReadText:
    view = load_trace(store, trace_id)
    return read_text(replace(view, trace=view.trace | changes))


def test_items_are_read_by_title_and_foreign_ids_by_their_codes(tried: Store) -> None:
    trace_id = find_trace(tried, "evidence")
    shown = load_trace(tried, trace_id).listed.task.candidates[0].item
    reasoning = f"{shown.sid} and <|sid_begin|><s_a_60000><|sid_end|>."
    text = read(tried, trace_id, reasoning=reasoning).text
    assert shown.title is not None
    assert text.startswith("‹")
    assert text.endswith(f" {shown.title}› and ‹60000›.")


def test_without_a_reasoning_the_completion_is_read_or_the_error(tried: Store) -> None:
    trace_id = find_trace(tried, "fake")
    assert read(tried, trace_id) == ("no idea <b>", "completion", False)
    assert read(tried, trace_id, completion=None, error="timed out") == ("timed out", "error", False)
    assert read(tried, trace_id, completion=None) == ("", "reasoning", False)


def test_what_steers_a_screen_is_spelled_out(tried: Store) -> None:
    trace_id = find_trace(tried, "fake")
    text = read(tried, trace_id, reasoning="a\u202eb\x1b[31m\x00\r\nשלום 👨‍👩‍👧 <script>\u2028").text
    assert text == "a\\u202eb\\u001b[31m\\u0000\\u000d\nשלום 👨‍👩‍👧 <script>\\u2028"


@pytest.mark.slow
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
    trace_id = find_trace(tried, "fake")
    started = time.perf_counter()
    left, right = (read(tried, trace_id, reasoning=text) for text in (first, second))
    assert left.cut
    assert right.cut
    assert len(diff_lines(diff_texts(left.text, right.text))) < 500_000
    assert time.perf_counter() - started < 10


def test_a_long_reasoning_is_cut_between_words(tried: Store) -> None:
    trace_id = find_trace(tried, "fake")
    text = read(tried, trace_id, reasoning="word " * (MOST_TOKENS + 1))
    assert text == ("word " * (MOST_TOKENS - 1) + "word", "reasoning", True)
