"""Reads the chat completions of servers into completions.

Servers put the same things in different places. The answer may be a text, a list of parts, the arguments of a tool
call, or a part of the reasoning. The field of the reasoning has several names. No value in a response is trusted to
have the type that the protocol says.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from curate.traces.teachers.protocol import Completion, read_count
from curate.traces.teachers.settings import OpenAISettings

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details")
_MAX_DIGITS = 18
_MAX_DEPTH = 6
_MAX_BRACES = 256


class NoAnswerError(ValueError):
    """The response is not a chat completion, or has no answer. Another try may help."""


def read_completion(
    body: bytes, settings: OpenAISettings, mask: Callable[[str], str] = lambda text: text
) -> Completion:
    """Parse the first choice of a chat completion in JSON.

    Reasoning from a separate field is put in front of the text as `<think>...</think>`. A refusal has an empty text and
    the finish_reason "refusal". settings: its prices give the cost. mask: a function that removes what must not be
    stored.

    Raises NoAnswerError, with the reason, if the body is not a chat completion, if the server itself calls the
    completion an error, and if the completion is empty and took no token.
    """
    choice, usage = _first_choice(body)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise NoAnswerError("its first choice holds no message")
    finish_reason = choice.get("finish_reason")
    finish_reason = finish_reason if isinstance(finish_reason, str) else ""
    if finish_reason == "error" or choice.get("error"):
        raise NoAnswerError("the server broke it off with an error")
    prompt_tokens, completion_tokens = (read_count(usage.get(of)) for of in ("prompt_tokens", "completion_tokens"))
    text, thinking, refusal = _read_message(message)
    if refusal:
        # A refusal is stored as a completion, so that a rule can name it. As an error it would be requested again.
        text, finish_reason = "", "refusal"
    elif thinking:
        text = f"<think>{thinking}</think>\n{text}"
    elif not text and completion_tokens == 0:
        raise NoAnswerError("it is empty and took no token")
    cost_usd = _cost_usd(prompt_tokens, completion_tokens, settings)
    return Completion(mask(text), mask(finish_reason), prompt_tokens, completion_tokens, cost_usd)


def _first_choice(body: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the first choice, and the usage, which is empty if the response has none."""
    try:
        answer = json.loads(body, parse_int=_read_int)
    except RecursionError:
        raise NoAnswerError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise NoAnswerError(f"it is no JSON ({error})") from None
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise NoAnswerError("it holds no choices")
    usage = answer.get("usage")
    return choices[0], usage if isinstance(usage, Mapping) else {}


def _read_message(message: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the text, thinking and refusal of a message. A missing one is empty.

    Raises NoAnswerError if the content has an unknown form.
    """
    content = message.get("content")
    text, thinking, refusal = _read_parts(content)
    thinking = thinking or next(filter(None, (_all_text(message.get(name)) for name in _REASONING_FIELDS)), "")
    refusal = refusal or _all_text(message.get("refusal"))
    if not text.strip():
        text = _tool_arguments(message) or text
    if not text.strip() and thinking:
        # If a model that should think does not, vLLM takes the answer for reasoning.
        before, answer = _split_answer(thinking)
        if answer:
            thinking, text = before, answer
    if content and not (text or thinking or refusal):
        raise NoAnswerError("its content holds no text")
    return text, thinking, refusal


def _read_parts(content: Any) -> tuple[str, str, str]:
    """Return the text, thinking and refusal in a content, which is a text or a list of parts."""
    if isinstance(content, str):
        return content, "", ""
    parts = content if isinstance(content, list) else [content] if isinstance(content, Mapping) else []
    texts, thoughts, refusals = [], [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and ("thinking" in kind or "reasoning" in kind):
            thoughts.append(_all_text(part))
        elif kind == "refusal":
            refusals.append(_all_text(part))
        else:
            texts.append(_all_text(part))
    return "".join(texts), "\n".join(filter(None, thoughts)), " ".join(refusals)


def _all_text(value: Any, depth: int = 0) -> str:
    """Return the text of a part, at any depth."""
    if isinstance(value, str):
        return value
    if depth == _MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return "".join(_all_text(each, depth + 1) for each in value)
    if isinstance(value, Mapping):
        names = ("text", "thinking", "reasoning", "summary", "content", "refusal", "value")
        return next(filter(None, (_all_text(value.get(name), depth + 1) for name in names)), "")
    return ""


def _tool_arguments(message: Mapping[str, Any]) -> str:
    """The arguments of the first tool call, which is how some servers return structured output.

    Empty if there is none.
    """
    calls = message.get("tool_calls")
    calls = [*calls, message] if isinstance(calls, list) else [message]
    for call in calls:
        function = (call.get("function") or call.get("function_call")) if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, Mapping):
            return json.dumps(arguments)
        if isinstance(arguments, str) and arguments.strip():
            return arguments
    return ""


def _split_answer(thinking: str) -> tuple[str, str]:
    """Return the text before the last JSON object, and that object. Both are empty if the text has no object."""
    decoder = json.JSONDecoder(strict=False)
    span = (0, 0)
    start = thinking.find("{")
    for _ in range(_MAX_BRACES):
        if start < 0:
            break
        try:
            value, end = decoder.raw_decode(thinking, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            # `{}` and the braces of formulas are not answers.
            span = (start, end) if value else span
        start = thinking.find("{", end)
    return (thinking[: span[0]].strip(), thinking[span[0] : span[1]]) if span[1] else ("", "")


def _read_int(digits: str) -> int | float:
    # No number that gr2 uses has as many digits, and Python refuses to read very long numbers.
    return int(digits) if len(digits) <= _MAX_DIGITS else float("inf")


def _cost_usd(prompt_tokens: int | None, completion_tokens: int | None, settings: OpenAISettings) -> float | None:
    """The cost of a request in US dollars, or None without prices or counts. One missing price counts as 0."""
    prices = (settings.price_per_million_prompt_tokens, settings.price_per_million_completion_tokens)
    if prompt_tokens is None or completion_tokens is None or prices == (None, None):
        return None
    return (prompt_tokens * (prices[0] or 0.0) + completion_tokens * (prices[1] or 0.0)) / 1_000_000
