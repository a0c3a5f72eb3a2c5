"""Completions: the JSON that prompts request, and a tolerant parser for the texts that models really write.

Field names, the schema for structured output, the canonical text and the parser are in one module, so that they stay
consistent. The parser never raises: an unreadable completion is a failure with a reason. Rules decide whether a ranking
is a permutation and whether the reasoning is true.
"""

import json
import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import orjson

from prompts.semantic_ids import find_bare_sid, find_sids
from prompts.tasks import Candidate, RerankTask
from store.values import storable_text

EXPLANATION = "explanation"
RECOMMENDATIONS = "recommendations"
# How an answer may name candidates: by semantic ID, or by number in the prompt, counted from 1.
SIDS = "sids"
NUMBERS = "numbers"
ANSWERS = (SIDS, NUMBERS)

# How many opening braces before the last "recommendations" are tried, since an explanation may contain some itself.
_BRACES = 32
_MAX_ENTRIES = 200
_SHOWN_CHARACTERS = 200
_ENTRY_KEYS = ("sid", "semantic_id", "item", "item_id", "id", "title", "name")
_TRAILING_COMMA = re.compile(r",(\s*[\]}])")
_DECODER = json.JSONDecoder(strict=False)


class ParseReason(StrEnum):
    """Why a completion cannot be read."""

    EMPTY = "empty"
    UNFINISHED_THINKING = "unfinished_thinking"
    NO_JSON = "no_json"
    BROKEN_JSON = "broken_json"
    UNFINISHED_JSON = "unfinished_json"
    NO_RECOMMENDATIONS = "no_recommendations"


class ParsedCompletion(NamedTuple):
    """The contents of a completion.

    reasoning: the explanation, or the thinking if the explanation is empty. ranking: item ids of candidates in the
    stated order, including duplicates. unknown: entries that name no candidate or several, shortened.
    """

    reasoning: str
    ranking: tuple[str, ...]
    unknown: tuple[str, ...]


class ParseFailure(NamedTuple):
    """The reason why a completion cannot be read. detail: an excerpt of its text, or an explanation."""

    reason: ParseReason
    detail: str


def answer_format(candidates: int, answer: str = SIDS) -> str:
    """The description of the requested answer, for a prompt. answer: one of ANSWERS."""
    if answer == NUMBERS:
        return (
            f'{{"{EXPLANATION}": "...", "{RECOMMENDATIONS}": [...]}} with the numbers of all {candidates} candidates, '
            "best first"
        )
    return (
        f'one JSON object {{"{EXPLANATION}": "...", "{RECOMMENDATIONS}": ["...", "..."]}}, where "{RECOMMENDATIONS}" '
        f"holds the semantic IDs of all {candidates} candidates, the best first, each exactly once"
    )


def completion_schema(candidates: Sequence[Candidate], answer: str = SIDS) -> dict[str, Any]:
    """The JSON schema of a completion, within the subset of OpenAI's strict structured output.

    answer: one of ANSWERS.
    """
    entries: dict[str, Any] = {"type": "string", "enum": [candidate.item.sid for candidate in candidates]}
    if answer == NUMBERS:
        entries = {"type": "integer", "enum": list(range(1, len(candidates) + 1))}
    return {
        "type": "object",
        "properties": {
            EXPLANATION: {"type": "string"},
            RECOMMENDATIONS: {
                "type": "array",
                "items": entries,
                "minItems": len(candidates),
                "maxItems": len(candidates),
            },
        },
        "required": [EXPLANATION, RECOMMENDATIONS],
        "additionalProperties": False,
    }


def render_completion(reasoning: str, ranking: Sequence[str] | Sequence[int]) -> str:
    """The canonical completion: one line of JSON, explanation first. ranking: semantic IDs, or numbers of candidates.

    >>> render_completion("The third fits.", [3, 1, 2])
    '{"explanation":"The third fits.","recommendations":[3,1,2]}'
    """
    return orjson.dumps({EXPLANATION: reasoning, RECOMMENDATIONS: list(ranking)}).decode()


def parse_completion(text: str, task: RerankTask) -> ParsedCompletion | ParseFailure:
    """Parse an explanation and a ranking from the text of a model.

    The parser accepts thinking before the answer, code fences, prose around the JSON, trailing commas, objects in place
    of IDs, spaces inside an ID, IDs without begin and end token, numbers of candidates in the prompt, and titles that
    only one candidate has.
    """
    thinking, answer = _split_thinking(text)
    if answer is None:
        return ParseFailure(ParseReason.UNFINISHED_THINKING, "the thinking has no end")
    if not answer.strip():
        return ParseFailure(ParseReason.EMPTY, "nothing but thinking" if thinking else "no text")
    fields = _load_answer(answer)
    if isinstance(fields, ParseFailure):
        return fields
    ranking: list[str] = []
    unknown: list[str] = []
    names = _Names(task.candidates)
    entries = _entries(fields[RECOMMENDATIONS])
    if entries is None:
        return ParseFailure(ParseReason.NO_RECOMMENDATIONS, f'"{RECOMMENDATIONS}" is no list')
    for entry in entries:
        item = names.find(entry)
        if item is None:
            unknown.append(str(entry)[:_SHOWN_CHARACTERS])
        else:
            ranking.append(item)
    reasoning = _as_text(fields.get(EXPLANATION)) or thinking
    return ParsedCompletion(reasoning, tuple(ranking), tuple(unknown))


def _split_thinking(text: str) -> tuple[str, str | None]:
    """Thinking and answer. The answer is None if the thinking never ends."""
    # The last mark, because thinking may mention the mark itself.
    before, end, after = text.rpartition("</think>")
    if end:
        return before.replace("<think>", "", 1).strip(), after
    before, start, after = text.partition("<think>")
    return (after.strip(), None) if start and not before.strip() else ("", text)


def _load_answer(text: str) -> dict[str, Any] | ParseFailure:
    """The last JSON object with recommendations, because models may draft an answer before they give it."""
    try:
        whole = orjson.loads(text)
    except orjson.JSONDecodeError:
        whole = None
    if isinstance(whole, dict) and RECOMMENDATIONS in whole:
        return whole
    end = text.rfind(f'"{RECOMMENDATIONS}"')
    if end < 0:
        return _why_no_answer(text)
    start = end
    for _ in range(_BRACES):
        start = text.rfind("{", 0, start)
        if start < 0:
            break
        value = _decode(text[start:])
        if isinstance(value, dict) and RECOMMENDATIONS in value:
            return value
    if "]" not in text[end:]:
        return ParseFailure(ParseReason.UNFINISHED_JSON, _shown(text[end:]))
    return ParseFailure(ParseReason.BROKEN_JSON, _shown(text[end:]))


def _decode(text: str) -> Any:
    """The JSON value at the beginning of a text, or None. Trailing commas are ignored."""
    # As it is first: removing commas could change a string that contains ",]".
    for attempt in (text, None):
        try:
            return _DECODER.raw_decode(_TRAILING_COMMA.sub(r"\1", text) if attempt is None else text)[0]
        except (ValueError, RecursionError):
            continue
    return None


def _why_no_answer(text: str) -> ParseFailure:
    opening = text.find("{")
    if opening < 0:
        return ParseFailure(ParseReason.NO_JSON, _shown(text))
    if isinstance(_decode(text[opening:]), dict):
        return ParseFailure(ParseReason.NO_RECOMMENDATIONS, _shown(text[opening:]))
    if "}" not in text[opening:]:
        return ParseFailure(ParseReason.UNFINISHED_JSON, _shown(text[opening:]))
    return ParseFailure(ParseReason.BROKEN_JSON, _shown(text[opening:]))


def _entries(value: Any) -> list[str | int] | None:
    """Recommendations as texts and integers, or None if they are not a list."""
    if isinstance(value, str):
        return list(find_sids(value)) or None
    if not isinstance(value, list):
        return None
    return [
        entry
        # In Python, True is an int.
        if isinstance(entry, int) and not isinstance(entry, bool)
        else _as_text(_field(entry) if isinstance(entry, dict) else entry)
        for entry in value[:_MAX_ENTRIES]
    ]


def _field(entry: dict[str, Any]) -> Any:
    """The name in an object that stands in place of a semantic ID, or the object itself if it has none."""
    return next((entry[key] for key in _ENTRY_KEYS if isinstance(entry.get(key), str)), entry)


def _as_text(value: Any) -> str:
    """A JSON value as text that can be stored."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except RecursionError:
            return ""
    return storable_text(str(value))


def _shown(text: str) -> str:
    return _as_text(" ".join(text[: 2 * _SHOWN_CHARACTERS].split())[:_SHOWN_CHARACTERS])


class _Names:
    """Finds the candidate that an entry of the answer names."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = candidates
        self._by_sid = {candidate.item.sid: candidate.item.item_id for candidate in candidates}
        self._by_title: dict[str, str | None] | None = None

    def find(self, entry: str | int) -> str | None:
        """The candidate's item id, or None if the entry names no candidate or several."""
        if isinstance(entry, int):
            return self._candidates[entry - 1].item.item_id if 1 <= entry <= len(self._candidates) else None
        known = self._by_sid.get(entry)
        if known is not None:
            return known
        sids = find_sids(entry)
        if sids:
            return self._by_sid.get(sids[0]) if len(set(sids)) == 1 else None
        bare = find_bare_sid(entry)
        return self._by_sid.get(bare) if bare else self._titles().get(_normal(entry))

    def _titles(self) -> dict[str, str | None]:
        """Item ids by title, with None for a title that several candidates have."""
        # Made on demand, because few answers name titles.
        if self._by_title is None:
            self._by_title = {}
            for candidate in self._candidates:
                if candidate.item.title:
                    title = _normal(candidate.item.title)
                    self._by_title[title] = None if title in self._by_title else candidate.item.item_id
        return self._by_title


def _normal(title: str) -> str:
    return " ".join(title.casefold().split())
