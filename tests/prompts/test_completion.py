import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.completion import (
    ParsedCompletion,
    ParseFailure,
    ParseReason,
    completion_schema,
    parse_completion,
    render_completion,
)
from prompts.semantic_ids import render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.values import storable_text

TITLES = ["Shampoo", "Conditioner", "Styling Gel", "Shampoo"]
ITEMS = [ShownItem(f"i{n}", render_sid((n, 1, 2, 3)), title) for n, title in enumerate(TITLES)]
TASK = RerankTask((), tuple(Candidate(item) for item in ITEMS))
SIDS = [item.sid for item in ITEMS]
ORDER = ("i2", "i0", "i3", "i1")
REASONING = 'Because {"braces"} and "quotes" happen.'
CANONICAL = render_completion(REASONING, [SIDS[2], SIDS[0], SIDS[3], SIDS[1]])


def parsed(text: str) -> ParsedCompletion:
    found = parse_completion(text, TASK)
    assert isinstance(found, ParsedCompletion), found
    return found


def reason(text: str) -> ParseReason:
    found = parse_completion(text, TASK)
    assert isinstance(found, ParseFailure), found
    return found.reason


@given(st.text(max_size=300))
def test_no_text_raises(text: str) -> None:
    parse_completion(text, TASK)


@given(st.text(alphabet='{}[]":,\\ntrue<>/think|s_a0recommendationsexplanation`', max_size=200))
def test_no_text_that_looks_like_an_answer_raises(text: str) -> None:
    parse_completion(text, TASK)
    parse_completion(CANONICAL[: len(text)] + text, TASK)


@given(
    reasoning=st.text(st.characters(exclude_categories=("Cs",)), max_size=100).filter(
        lambda text: "think>" not in text
    ),
    order=st.permutations(range(4)),
    wrap=st.sampled_from(
        [
            "{}",
            "```json\n{}\n```",
            "Here you are:\n\n{}\n\nI hope that helps.",
            "<think>Maybe {{x}} or recommendations?</think>\n{}",
            "Let me think.</think>{}",
            "  {}  ",
        ]
    ),
)
def test_every_wrapping_of_an_answer_gives_it_back(reasoning: str, order: list[int], wrap: str) -> None:
    text = wrap.format(render_completion(reasoning or "x", [SIDS[n] for n in order]))
    assert parsed(text) == (storable_text(reasoning or "x"), tuple(f"i{n}" for n in order), ())


def test_the_last_of_several_answers_counts() -> None:
    first = render_completion("first", SIDS)
    assert parsed(f"{first}\nNo, better:\n{CANONICAL}") == (REASONING, ORDER, ())


def test_the_explanation_may_come_last() -> None:
    assert parsed(json.dumps({"recommendations": SIDS, "explanation": "x"})).ranking == ("i0", "i1", "i2", "i3")


def test_trailing_commas_are_forgiven() -> None:
    assert parsed('{"explanation": "x", "recommendations": ["%s",],}' % SIDS[1]).ranking == ("i1",)  # noqa: UP031


def test_line_ends_inside_strings_are_forgiven() -> None:
    assert parsed('{"explanation": "two\nlines", "recommendations": ["%s"]}' % SIDS[1]).reasoning == "two\nlines"  # noqa: UP031


@pytest.mark.parametrize(
    "entry",
    [
        SIDS[1],
        f"{SIDS[1]} Conditioner",
        "<s_a_1><s_b_1><s_c_2><s_d_3>",
        "<|sid_begin|> <s_a_1> <s_b_1> <s_c_2> <s_d_3> <|sid_end|>",
        "Conditioner",
        "  conditioner ",
        {"sid": SIDS[1], "why": "x"},
        {"title": "Conditioner"},
    ],
)
def test_an_entry_may_name_its_candidate_in_many_ways(entry: object) -> None:
    assert parsed(json.dumps({"explanation": "x", "recommendations": [entry]})).ranking == ("i1",)


@pytest.mark.parametrize(
    "entry", ["Shampoo", "Hair Dryer", render_sid((9, 9, 9, 9)), f"{SIDS[0]} or {SIDS[1]}", 7, None, {"rank": 1}, ["x"]]
)
def test_an_entry_that_names_no_candidate_or_several_is_unknown(entry: object) -> None:
    found = parsed(json.dumps({"explanation": "x", "recommendations": [entry]}))
    assert found.ranking == ()
    assert len(found.unknown) == 1


def test_duplicates_and_omissions_are_left_for_the_rules() -> None:
    assert parsed(render_completion("x", [SIDS[1], SIDS[1]])).ranking == ("i1", "i1")


def test_an_empty_explanation_gives_way_to_the_thinking() -> None:
    assert parsed(f"<think>So it is.</think>{render_completion('', SIDS)}").reasoning == "So it is."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ParseReason.EMPTY),
        ("<think>done</think>  ", ParseReason.EMPTY),
        ("<think>and so on", ParseReason.UNFINISHED_THINKING),
        ("I cannot help with that.", ParseReason.NO_JSON),
        ('{"explanation": "x"}', ParseReason.NO_RECOMMENDATIONS),
        ('{"explanation": "x", "recommendations": 5}', ParseReason.NO_RECOMMENDATIONS),
        (CANONICAL[:-30], ParseReason.UNFINISHED_JSON),
        (CANONICAL[:20], ParseReason.UNFINISHED_JSON),
        ('{"recommendations": [x y z]}', ParseReason.BROKEN_JSON),
        ("{not: json}", ParseReason.BROKEN_JSON),
    ],
)
def test_what_cannot_be_read_has_a_reason(text: str, expected: ParseReason) -> None:
    assert reason(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "{" * 1_000_000,
        "[" * 1_000_000,
        '{"recommendations":' * 50_000,
        '{"a":' * 200_000 + '"recommendations"',
        "<|sid_begin|><s_a_1>" * 50_000,
        '{"recommendations": ["' + "<s_a_1> " * 100_000 + '"]}',
        "<think>" * 100_000,
        '"recommendations"' * 60_000,
        "," + " " * 1_000_000 + '"recommendations"{',
    ],
)
def test_a_megabyte_of_hostile_text_is_read_in_bounded_work(text: str) -> None:
    """Quadratic work on these would take minutes: the test would not end."""
    parse_completion(text, TASK)


def test_lone_surrogates_and_nul_become_storable_text() -> None:
    found = parsed('{"explanation": "a\\ud800b\\u0000", "recommendations": ["\\udfff"]}')
    found.reasoning.encode()
    found.unknown[0].encode()


def test_the_schema_admits_the_canonical_completion_and_is_strict() -> None:
    schema = completion_schema(TASK.candidates)
    answer = json.loads(CANONICAL)
    assert set(schema["required"]) == set(answer) == set(schema["properties"])
    assert schema["additionalProperties"] is False
    listed = schema["properties"]["recommendations"]
    assert set(answer["recommendations"]) <= set(listed["items"]["enum"])
    assert listed["minItems"] == listed["maxItems"] == 4


def test_candidates_may_be_named_by_their_numbers_in_the_prompt() -> None:
    found = parsed(render_completion("by number", [3, 1, 4, 2]))
    assert found.ranking == ("i2", "i0", "i3", "i1")
    assert found.unknown == ()
    assert parsed('{"recommendations": [0, 5, true, 1.5, -1]}').unknown == ("0", "5", "true", "1.5", "-1")


def test_the_schema_of_numbers_allows_the_numbers_of_the_candidates() -> None:
    entries = completion_schema(TASK.candidates, "numbers")["properties"]["recommendations"]["items"]
    assert entries == {"type": "integer", "enum": [1, 2, 3, 4]}
