"""Locates the answer in a completion: the last JSON object with recommendations that is not a draft within a thought.

The module knows the marks of thoughts and the ways in which JSON is embedded or broken, but not the candidates. Every
function takes time in proportion to the length of a text, or works on a limited part of it, because texts may be
hostile.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from prompts.failures import ParseReason, UnreadableError, as_text, shown
from prompts.orders import Conflict
from prompts.text_orders import unwrap

EXPLANATION = "explanation"
RECOMMENDATIONS = "recommendations"

# How many opening braces before the last "recommendations" are tried, because an explanation may contain braces, and
# how many characters all tries together may read.
_BRACES = 32
_MOST_DECODED = 4_000_000
# The longest text that is repaired. For some texts, json_repair takes time that grows with the square of their length.
_LONGEST_REPAIRED = 20_000
_DEEPEST_REPAIRED = 16
_REPAIRS = 4

_KEY = re.compile(rf'"{RECOMMENDATIONS}"\s*:', re.IGNORECASE)
_LOOSE_KEY = re.compile(rf"\b{RECOMMENDATIONS}\b[\"'`“”]?\s*:", re.IGNORECASE)
_THOUGHT = r"(?:[a-z]{1,10}:)?(?:think|thinking|thoughts?|reasoning|analysis|reflection|scratchpad)(?:\s[^<>]{0,80})?>"
# Marks of Qwen, DeepSeek and many others, of Mistral, of OpenThoughts, and the channels of gpt-oss.
_THINKING_MARK = re.compile(
    rf"(?P<end></{_THOUGHT}|\[/THINK\]|<\|end_of_thought\|>|<\|channel\|>\s?final[^<]{{0,80}}(?:<\|constrain\|>\w*)?<\|message\|>)"
    rf"|<{_THOUGHT}|\[THINK\]|<\|begin_of_thought\|>|<\|channel\|>\s?(?:analysis|commentary)[^<]{{0,80}}<\|message\|>",
    re.IGNORECASE,
)
# Every mark has one of these words.
_THINKING_WORDS = ("think", "thought", "reasoning", "analysis", "reflection", "scratchpad", "channel")
_CHAT_MARK = re.compile(r"<\|(?:start\|>\w*|(?:end|return|message)\|>)")
_BRACE = re.compile("[{}]")
_BRACKET = re.compile(r"[{}\[\]()]")
# The parts of JSON that are not words. Repairs may change only these.
_STRUCTURE = re.compile(r"[\s\"'`“”‘’{}\[\]():,;\\]+")
_COMMENT = re.compile(r"//[^\n]*|/\*[^*]{0,500}\*/|#[^\n]*")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|[nrtbf])")
_TRAILING_ZEROS = re.compile(r"(\d\.\d{0,20}?)0{1,20}(?!\d)")


class Located(NamedTuple):
    """An answer within a completion.

    thinking: the text of the thoughts before the answer. fields: the fields of its JSON object, or None if no object
    can be read without repair. text: the whole answer if fields is None, else the text after the JSON object. lead: the
    text between the thoughts and the JSON object.
    """

    thinking: str
    fields: dict[str, Any] | None
    text: str
    lead: str = ""


class _JsonObject(NamedTuple):
    fields: dict[str, Any]
    start: int
    end: int


def load_json(text: str) -> Any:
    """The value of a text that is entirely JSON, or None. A key with several different values has a `Conflict`."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def answer_fields(value: Any) -> dict[str, Any] | None:
    """The fields of an answer, with keys in lower case. None for any value that is not an answer."""
    if not isinstance(value, dict):
        return None
    fields = _unique([(key.strip().casefold(), field) for key, field in value.items()])
    return fields if RECOMMENDATIONS in fields else None


def locate_answer(text: str) -> Located:
    """Separate the answer of a completion from its thoughts.

    JSON within a thought is a draft. It counts only if nothing follows it, because some models do not close their
    thoughts, and some servers treat a whole answer as a thought. Raises UnreadableError if a thought has no end.
    """
    marks = _marks(text)
    json_object = _find_json(text)
    if json_object is None:
        return _locate_text(text, marks)
    before = [mark for mark in marks if mark.end() <= json_object.start]
    after = [mark for mark in marks if mark.start() >= json_object.end]
    rest = text[json_object.end :]
    closing = next((mark for mark in reversed(after) if mark["end"]), None)
    if closing is not None:
        if unwrap(_THINKING_MARK.sub("", rest)):
            return Located(thinking_in(text[: closing.start()]), None, text[closing.end() :])
        rest = ""
    elif before and not before[-1]["end"] and unwrap(rest):
        raise UnreadableError(ParseReason.UNFINISHED_THINKING, "the thinking has no end")
    # Without marks of thinking, words before the JSON introduce it.
    lead = text[before[-1].end() if before else 0 : json_object.start]
    return Located(thinking_in(text[: json_object.start]) if before else "", json_object.fields, rest, lead)


def repair_answer(text: str) -> Located | None:
    """The fields of an answer that is almost JSON, with the texts around them, or None.

    Single quotes, comments, missing quotes or commas, unescaped quotes and a missing last brace are repaired. The
    repair library guesses, so its result is used only if it has all words of the text in the same order, and if the
    recommendations also end in the text.
    """
    key = _last(_LOOSE_KEY, text)
    end = _end_of_object(text, key.end()) if key else None
    if key is None or end is None:
        return None
    start = -1
    for _ in range(_REPAIRS):
        start = text.find("{", start + 1, key.start())
        if start < 0:
            break
        fields = _repair(text[start:end])
        if fields is not None:
            return Located("", fields, text[end:], text[:start])
    return None


def why_no_answer(text: str) -> UnreadableError:
    """The reason why a text has no answer."""
    key = _last(_LOOSE_KEY, text)
    opening = text.find("{") if key is None else key.start()
    if opening < 0:
        return UnreadableError(ParseReason.NO_JSON, shown(text))
    excerpt = shown(text[opening:])
    if key is not None:
        broken = "]" in text[opening:]
    else:
        try:
            _DECODER.raw_decode(text, opening)
            return UnreadableError(ParseReason.NO_RECOMMENDATIONS, excerpt)
        except (ValueError, RecursionError):
            broken = "}" in text[opening:]
    return UnreadableError(ParseReason.BROKEN_JSON if broken else ParseReason.UNFINISHED_JSON, excerpt)


def _locate_text(text: str, marks: list[re.Match[str]]) -> Located:
    """The answer of a completion without readable JSON: the text after the last thought."""
    closing = next((n for n, mark in reversed(list(enumerate(marks))) if mark["end"]), None)
    start = 0 if closing is None else marks[closing].end()
    opening = marks[0 if closing is None else closing + 1 :]
    answer = text[start : opening[0].start()] if opening else text[start:]
    if opening and not answer.strip():
        raise UnreadableError(ParseReason.UNFINISHED_THINKING, "the thinking has no end")
    return Located(thinking_in(text[:start]) if marks else "", None, answer)


def thinking_in(text: str) -> str:
    """The text of thoughts without their marks."""
    return as_text(_CHAT_MARK.sub("", _THINKING_MARK.sub("", text)).strip())


def _marks(text: str) -> list[re.Match[str]]:
    lowered = text.lower()
    # Most texts have none of these words, and this search is ten times as fast as the pattern.
    return list(_THINKING_MARK.finditer(text)) if any(word in lowered for word in _THINKING_WORDS) else []


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    last = None
    for last in pattern.finditer(text):  # noqa: B007
        pass
    return last


def _find_json(text: str) -> _JsonObject | None:
    """The last JSON object with recommendations, because models may draft an answer before they give it."""
    key = _last(_KEY, text)
    if key is None:
        return None
    start, decoded = key.start(), 0
    for _ in range(_BRACES):
        start = text.rfind("{", 0, start)
        decoded += len(text) - start
        if start < 0 or decoded > _MOST_DECODED:
            break
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        fields = answer_fields(value)
        # An object that ends before the last key is a draft, and the object of the last key is broken.
        if fields is not None and end > key.start():
            return _JsonObject(fields, start, end)
    return None


def _end_of_object(text: str, start: int) -> int | None:
    """The end of the object around the recommendations that begin at `start`, or None if the object is cut off."""
    depth, end = 1, start
    limit = start + _LONGEST_REPAIRED
    for brace in _BRACE.finditer(text, start, limit):
        depth += 1 if brace[0] == "{" else -1
        end = brace.end()
        if depth == 0:
            return end
    # Only the last brace may be missing, and nothing may follow, because that could be the rest of the answer.
    end = max(end, text.rfind("]", start, limit) + 1)
    return end if depth == 1 and end > start and not unwrap(text[end:]).strip("\"'") else None


def _repair(text: str) -> dict[str, Any] | None:
    if len(text) > _LONGEST_REPAIRED or text.count("[") != text.count("]") or _depth(text) > _DEEPEST_REPAIRED:
        return None
    # Imported here, because few answers need it.
    import json_repair  # noqa: PLC0415

    try:
        value = json_repair.loads(text, skip_json_loads=True)
    # The library does not say which errors it raises, and no text may stop a run.
    except Exception:
        return None
    fields = answer_fields(value)
    if fields is None or not isinstance(value, dict):
        return None
    words, listed = "", 0
    closing = "])" if isinstance(fields[RECOMMENDATIONS], list) else "}"
    for name, field in value.items():
        words += "".join(_words(_without_variants(leaf)) for leaf in (name, *_leaves(field)))
        if name.strip().casefold() == RECOMMENDATIONS:
            listed = len(words)
    for source in (text, _COMMENT.sub(" ", text)):
        plain = _without_variants(_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)) if escape[1] else " ", source))
        if _words(plain) == words and not set(closing).isdisjoint(_after_word(plain, listed)):
            return fields
    return None


def _words(text: str) -> str:
    return _STRUCTURE.sub("", text)


def _after_word(text: str, count: int) -> str:
    """The text between a word and the next word. count: the number of the word's last character, counted from 1."""
    end = 0
    for gap in _STRUCTURE.finditer(text):
        count -= gap.start() - end
        end = gap.end()
        if count <= 0:
            return gap[0] if count == 0 else ""
    return ""


def _without_variants(text: str) -> str:
    """A text in which literals of Python and JSON, and numbers such as 0.90 and 0.9, look the same."""
    return _TRAILING_ZEROS.sub(r"\1", re.sub(r"\bnone\b", "null", text.casefold()))


def _leaves(value: Any) -> Iterator[str]:
    """The keys and values in a JSON value as texts, in order."""
    if isinstance(value, dict):
        for key, field in value.items():
            yield key
            yield from _leaves(field)
    elif isinstance(value, list):
        for field in value:
            yield from _leaves(field)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _depth(text: str) -> int:
    """The maximum nesting depth of the brackets of a text, including brackets within strings."""
    depth = deepest = 0
    for bracket in _BRACKET.finditer(text):
        depth = max(depth + (1 if bracket[0] in "{[(" else -1), 0)
        deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. A key with several different values gets all of them, as a Conflict."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        values: dict[str, list[Any]] = {}
        for key, field in pairs:
            values.setdefault(key, []).append(field)
        for key, several in values.items():
            if any(field != several[0] for field in several):
                fields[key] = Conflict(tuple(several))
    return fields


def _integer(digits: str) -> float:
    # Python refuses to convert more than 4,300 digits, and no number of an answer has more than a few.
    return int(digits) if len(digits) <= 18 else float(digits)


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_unique, parse_int=_integer)
