"""Whatever a server sends becomes a completion that can be stored, or an error with a reason."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.traces.teachers.chat_answers import NoAnswerError, read_completion
from curate.traces.teachers.protocol import MAX_COUNT, MAX_TEXT, Completion
from curate.traces.teachers.settings import OpenAISettings

SETTINGS = OpenAISettings(model="m", price_per_million_prompt_tokens=3.0, price_per_million_completion_tokens=1e300)
ANSWER = '{"explanation": "x", "recommendations": ["a"]}'
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "text", "thinking", "function", "arguments", "tool_calls", "content", "error"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def read(message: Any, finish_reason: Any = "stop", usage: Any = None) -> Completion:
    body = {"choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage}
    return read_completion(json.dumps(body).encode(), SETTINGS)


FIELDS = ("content", "refusal", "reasoning_content", "reasoning", "tool_calls", "function_call", "thinking")


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, JSON)) | JSON,
    JSON,
    st.fixed_dictionaries({}, optional={"prompt_tokens": JSON, "completion_tokens": JSON}) | JSON,
)
def test_anything_is_a_completion_that_can_be_stored_or_an_error(message: Any, finish_reason: Any, usage: Any) -> None:
    try:
        found = read(message, finish_reason, usage)
    except NoAnswerError:
        return
    for text in (found.text, found.finish_reason):
        text.encode()
        assert "\0" not in text
    for count in (found.prompt_tokens, found.completion_tokens):
        assert count is None or (type(count) is int and 0 <= count <= MAX_COUNT)
    assert found.cost_usd is None or found.cost_usd >= 0


@given(JSON)
def test_any_json_is_read_without_another_exception(value: Any) -> None:
    with pytest.raises(NoAnswerError):
        read_completion(json.dumps(value).encode(), SETTINGS)


@pytest.mark.parametrize(
    "shown",
    ["2147483648", "-1", "true", "1.5", '"12"', "null", "[]", "{}", f"1{'0' * 400}", f"1{'0' * 5000}", "NaN", "1e999"],
)
def test_a_count_that_cannot_be_true_is_unknown_and_so_is_its_cost(shown: str) -> None:
    body = (
        f'{{"choices": [{{"message": {{"content": "x"}}, "finish_reason": "stop"}}], '
        f'"usage": {{"prompt_tokens": {shown}, "completion_tokens": 2147483647}}}}'
    )
    assert read_completion(body.encode(), SETTINGS) == Completion("x", "stop", None, MAX_COUNT, None)


def test_whole_counts_are_kept() -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 12.0}
    assert read({"content": "x"}, usage=usage).completion_tokens == 12


def test_texts_are_cut_and_cleaned() -> None:
    found = read({"content": "a\ud800\0" + "x" * 2 * MAX_TEXT}, "y" * 1000)
    assert found.text.startswith("a\ufffd\ufffdx")
    assert (len(found.text), len(found.finish_reason)) == (MAX_TEXT, 100)


def test_json_that_is_nested_too_deeply_is_an_error() -> None:
    with pytest.raises(NoAnswerError, match="nested"):
        read_completion(b'{"choices":' + b"[" * 200_000, SETTINGS)
    read({"content": ANSWER, "reasoning": "{" * 100_000})


@pytest.mark.parametrize(
    "message",
    [
        {"content": [{"type": "text", "text": ANSWER}]},
        {"content": [{"type": "output_text", "text": ANSWER[:9]}, {"type": "text", "text": ANSWER[9:]}]},
        {"content": [ANSWER]},
        {"content": {"type": "text", "text": {"value": ANSWER}}},
        {"content": None, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": ANSWER}}]},
        {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": json.loads(ANSWER)}}]},
        {"content": None, "function_call": {"name": "f", "arguments": ANSWER}},
        {"content": None, "reasoning_content": ANSWER},
        {"content": "", "reasoning": f" {ANSWER}\n"},
    ],
)
def test_the_answer_is_found(message: dict[str, Any]) -> None:
    assert read(message).text == ANSWER


@pytest.mark.parametrize(
    "message",
    [
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": ANSWER},
            ]
        },
        {"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}, ANSWER]},
        {"content": ANSWER, "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
        {"content": ANSWER, "thinking": "hm"},
        {"content": "", "reasoning_content": f"hm\n{ANSWER}"},
        {"content": None, "reasoning": "hm", "tool_calls": [{"function": {"arguments": ANSWER}}]},
    ],
)
def test_the_reasoning_is_told_from_the_answer(message: dict[str, Any]) -> None:
    assert read(message).text == f"<think>hm</think>\n{ANSWER}"


def test_a_draft_is_no_answer_where_a_later_one_stands() -> None:
    found = read({"content": None, "reasoning": f'maybe {{"recommendations": ["b"]}}, {{x}}, no: {ANSWER} So be it.'})
    assert found.text.endswith(f"</think>\n{ANSWER}")


@pytest.mark.parametrize(
    ("message", "finish_reason", "usage", "says"),
    [
        ({"content": ""}, "error", None, "broke it off"),
        ({"content": "half an ans"}, "error", None, "broke it off"),
        ({"content": ""}, "stop", {"completion_tokens": 0}, "empty and took no token"),
        ({"content": None}, None, {"completion_tokens": 0}, "empty and took no token"),
        ({"content": [{"type": "image_url", "image_url": "x"}]}, "stop", None, "holds no text"),
        ({"content": 3}, "stop", None, "holds no text"),
        ("text", "stop", None, "no message"),
    ],
)
def test_what_is_no_answer_is_said_aloud(message: Any, finish_reason: Any, usage: Any, says: str) -> None:
    with pytest.raises(NoAnswerError, match=says):
        read(message, finish_reason, usage)


def test_a_refusal_among_the_parts_is_a_refusal() -> None:
    assert read({"content": [{"type": "refusal", "refusal": "I cannot"}]}) == Completion("", "refusal")
