"""No text of a model stops a run: each is read, or is a failure with a reason, in time in proportion to its length."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.completion import ParsedCompletion, ParseFailure, parse_completion, render_completion
from prompts.semantic_ids import render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem

ITEMS = [ShownItem(f"i{n}", render_sid((n, 1, 2, 3)), f"A & {n}") for n in range(4)]
TASK = RerankTask((), tuple(Candidate(item) for item in ITEMS))
SIDS = [item.sid for item in ITEMS]
CANONICAL = render_completion("It fits.", SIDS)
FRAGMENTS = [
    *(
        "{",
        "}",
        "[",
        "]",
        '"',
        "'",
        ",",
        ":",
        "\\",
        "/",
        "//",
        "/*",
        "*/",
        "#",
        "(",
        ")",
        "<",
        ">",
        "|",
        "\n",
        " ",
        "`",
    ),
    *(
        "```json\n",
        "<think>",
        "</think>",
        "</thought>",
        "<|channel|>final<|message|>",
        "<answer>",
        "|---|",
        "- ",
        "1. ",
    ),
    *("recommendations", '"recommendations": ', "'recommendations': ", '"Recommendations": [', '"explanation": "'),
    *('{"rank": 1, "sid": "', '"position": ', "1e400", "NaN", "-Infinity", "null", "True", "9" * 5000, "0.", "Item 3"),
    *(SIDS[0], SIDS[1], "<s_a_2><s_b_1><s_c_2><s_d_3>", "A &amp; 3", "&#x0;", "&#99999999999;", "[3] > [1]", CANONICAL),
    *("\0", "\ud800", "\\ud800", "\\u0000", "\u2028", "\ue0000\ue001", "²", "٣", "ﷺ", "İ"),
]


def check(text: str) -> None:
    """Whatever is made of a text can be stored and shown."""
    found = parse_completion(text, TASK)
    if isinstance(found, ParseFailure):
        found.detail.encode()
        assert len(found.detail) < 1000
    else:
        found.reasoning.encode()
        assert set(found.ranking) <= {"i0", "i1", "i2", "i3"}
        for entry in found.unknown:
            entry.encode()
            assert len(entry) <= 200


@settings(max_examples=500)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=40))
def test_no_text_made_of_what_answers_are_made_of_raises(parts: list[str]) -> None:
    check("".join(parts))


@settings(max_examples=100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(FRAGMENTS) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.sampled_from(["sid", "rank", "title", "id", "1", "2", *SIDS]), inner, max_size=4)
        ),
    )
)
def test_no_recommendations_raise(value: object) -> None:
    check(json.dumps({"explanation": value, "recommendations": value}))
    check(json.dumps(value))
    check(str({"explanation": "x", "recommendations": value}))


@settings(max_examples=300)
@given(st.integers(0, len(CANONICAL)), st.integers(0, len(CANONICAL)), st.sampled_from(FRAGMENTS))
def test_no_edit_of_an_answer_raises(start: int, end: int, fragment: str) -> None:
    check(CANONICAL[:start] + fragment + CANONICAL[end:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "{",
        "[",
        '"',
        "<",
        "<think>",
        '{"a":',
        "{'a':",
        '["',
        "'",
        "&amp;",
        "\\",
        "// x\n",
        "[1] > ",
        "1. x\n",
        "|",
        "\ud800",
    ],
)
@pytest.mark.parametrize(
    "frame",
    [
        "{}",
        '{{"explanation": "x", "recommendations": [{}]}}',
        "{{'explanation': 'x{}', 'recommendations': [1, 2, 3, 4]}}",
        '{{"explanation": "x", "recommendations": [{{"title": "{}"}}]}}',
    ],
)
def test_long_hostile_texts_are_read_in_bounded_work(unit: str, frame: str) -> None:
    """Quadratic work on these would take minutes: the test would not end."""
    for length in (10_000_000, 900_000, 45_000, 18_000):
        check(frame.format(unit * (length // len(unit))))


@pytest.mark.parametrize("opening", ["[", "{", '{"a":', '{"recommendations":', '{"recommendations":[', "("])
def test_json_that_is_nested_deep_is_no_error(opening: str) -> None:
    closing = {"[": "]", "{": "}", "(": ")"}
    for depth in (500, 990, 1_100, 200_000):
        end = "".join(closing[bracket] for bracket in reversed(opening) if bracket in closing)
        check(opening * depth + end * depth)
        check('{"recommendations": [1, 2, 3, 4], "explanation": ' + opening * depth + "1" + end * depth + "}")


@pytest.mark.parametrize(
    "number", ["9" * 5000, "1e400", "-1e400", "NaN", "Infinity", "1." + "0" * 5000, "0" * 5000 + "1"]
)
def test_numbers_that_python_cannot_convert_name_nothing(number: str) -> None:
    for text in (number, f'"{number}"', f'{{"number": {number}}}'):
        found = parse_completion(f'{{"explanation": "x", "recommendations": [{text}, 2, 1, 3, 4]}}', TASK)
        assert isinstance(found, ParseFailure) or len(found.unknown) == 1 or number.startswith("1.0")
    for text in (f'[{{"rank": {number}, "sid": "{SIDS[0]}"}}]', f'{{"{SIDS[0]}": {number}}}'):
        found = parse_completion(f'{{"explanation": "x", "recommendations": {text}}}', TASK)
        assert isinstance(found, ParseFailure) or number.startswith("1.0")


@pytest.mark.parametrize("mark", ["\0", "\ud800", "\\ud800", "\\u0000"])
def test_characters_that_cannot_be_stored_hide_no_answer(mark: str) -> None:
    text = CANONICAL.replace("It fits.", f"It {mark}fits.")
    for wrapped in (text, f"<think>{mark}</think>{text}", f"Here: {text}"):
        check(wrapped)
        found = parse_completion(wrapped, TASK)
        assert isinstance(found, ParsedCompletion), found
        assert found.ranking == ("i0", "i1", "i2", "i3")
