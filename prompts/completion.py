"""Completions: the JSON that prompts request, and a tolerant parser for the texts that models really write.

The schema for structured output, the canonical text and the parser are in one module, so that they stay consistent. The
parser finds the answer (`prompts.answers`), reads its order (`prompts.orders`, `prompts.text_orders`), and finds the
candidates that it names (`prompts.candidate_names`). It never raises: an unreadable completion is a failure with a
reason. Whether a ranking is a permutation and whether the reasoning is true is decided by rules, not here.
"""

import html
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import orjson

from prompts.answers import (
    EXPLANATION,
    RECOMMENDATIONS,
    Located,
    load_json,
    locate_answer,
    repair_answer,
    thinking_in,
    why_no_answer,
)
from prompts.candidate_names import Names
from prompts.failures import SHOWN_CHARACTERS, ParseFailure, ParseReason, UnreadableError, as_text, shown
from prompts.orders import MAX_ENTRIES, Conflict, Entry, read_list, read_mapping
from prompts.semantic_ids import find_sids
from prompts.tasks import Candidate, RerankTask
from prompts.text_orders import check_complete, read_order_after_prose, read_text_order, unwrap

__all__ = [
    "ANSWERS",
    "EXPLANATION",
    "NUMBERS",
    "RECOMMENDATIONS",
    "SIDS",
    "ParseFailure",
    "ParseReason",
    "ParsedCompletion",
    "answer_format",
    "completion_schema",
    "parse_completion",
    "render_completion",
]

# How an answer may name candidates: by semantic ID, or by number in the prompt, counted from 1.
SIDS = "sids"
NUMBERS = "numbers"
ANSWERS = (SIDS, NUMBERS)

# In characters, far more than a model writes in one answer. A longer text is not searched for an answer.
MAX_CHARACTERS = 1_000_000
# How many times an answer may be encoded as a JSON string.
_ENCODINGS = 3
_FIELDS = {EXPLANATION, RECOMMENDATIONS}
_TOKEN = re.compile(r"<[^<>]{0,40}>")
_WORD = re.compile(r"\w")
_QUOTED_KEY = f'"{RECOMMENDATIONS}"'


class ParsedCompletion(NamedTuple):
    """The contents of a completion.

    reasoning: the explanation, or the thinking if the explanation is empty. ranking: item ids of candidates in the
    stated order, including duplicates. unknown: entries that name no candidate or several, shortened.
    """

    reasoning: str
    ranking: tuple[str, ...]
    unknown: tuple[str, ...]


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

    The parser accepts thoughts before the answer, code fences, prose around the JSON, JSON with the usual mistakes, and
    ranked objects or mappings in place of a list. It also accepts `[3] > [1] > [2]`, a list or a table as the whole
    answer, and prose before a chain of `>` or before a numbered list. An entry may be a semantic ID with spaces or
    without begin and end token, the number of a candidate in the prompt as number or text, or a title that only one
    candidate has.

    An answer that is cut off, or that can be read as two different orders, is a failure.
    """
    if len(text) > MAX_CHARACTERS:
        return ParseFailure(ParseReason.TOO_LONG, f"{len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    usual = _parse_usual(text, task)
    if usual is not None:
        return usual
    try:
        return _parse(text, Names(task))
    except UnreadableError as error:
        return error.failure


def _parse_usual(text: str, task: RerankTask) -> ParsedCompletion | None:
    """Parse an answer in exactly the requested form, or return None. This is fast, and usually enough."""
    thoughts, _, answer = text.rpartition("</think>")
    answer = answer.strip()
    if answer.startswith("```"):
        answer = answer.removeprefix("```").removeprefix("json").removesuffix("```")
    try:
        fields = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return None
    # A repeated key may hide another order.
    if not isinstance(fields, dict) or fields.keys() != _FIELDS or answer.count(_QUOTED_KEY) != 1:
        return None
    listed = fields[RECOMMENDATIONS]
    if not isinstance(listed, list) or len(listed) > MAX_ENTRIES:
        return None
    items: dict[Any, str] = {candidate.item.sid: candidate.item.item_id for candidate in task.candidates}
    ranking = []
    for name in listed:
        if type(name) is int and 1 <= name <= len(task.candidates):
            ranking.append(task.candidates[name - 1].item.item_id)
        elif type(name) is str and name in items:
            ranking.append(items[name])
        else:
            return None
    return ParsedCompletion(as_text(fields[EXPLANATION]) or thinking_in(thoughts), tuple(ranking), ())


def _parse(text: str, names: Names, encodings: int = 0) -> ParsedCompletion:
    located = locate_answer(text)
    if located.fields is not None:
        entries = _entries(located.fields, names)
        _check_no_other_order(located, entries, names)
        return _completion(located.fields, located.thinking, entries)
    answer = unwrap(located.text)
    if not answer:
        raise UnreadableError(ParseReason.EMPTY, "nothing but thinking" if located.thinking else "no text")
    value = load_json(answer)
    if value is None and answer.startswith('{\\"'):
        # The quotes around an encoded answer may be missing.
        value = load_json(f'"{answer}"')
    if value is None and "&quot;" in answer:
        value = html.unescape(answer)
    if isinstance(value, str) and encodings < _ENCODINGS:
        parsed = _parse(value, names, encodings + 1)
        return parsed._replace(reasoning=parsed.reasoning or located.thinking)
    fields, entries = _read_unusual(located.text, value, names)
    return _completion(fields, located.thinking, entries)


def _read_unusual(answer: str, value: Any, names: Names) -> tuple[dict[str, Any], list[Entry]]:
    """The fields and entries of an answer without the requested JSON object. value: the answer as JSON, or None."""
    repaired = repair_answer(answer) if value is None else None
    if repaired is not None and repaired.fields is not None:
        entries = _entries(repaired.fields, names)
        if all(entry.formed for entry in entries):
            _check_no_other_order(repaired, entries, names)
            return repaired.fields, entries
    elif isinstance(value, (list, dict)):
        entries = read_list(value, names) if isinstance(value, list) else read_mapping(value, names)
        if entries and all(entry.formed for entry in entries):
            check_complete(entries, names)
            return {}, entries
        raise UnreadableError(ParseReason.NO_RECOMMENDATIONS, shown(answer))
    else:
        listed = read_text_order(answer, names)
        if listed is not None:
            return {}, listed
        after_prose = read_order_after_prose(answer, names)
        if after_prose is not None:
            return {EXPLANATION: after_prose[0]}, after_prose[1]
    raise why_no_answer(answer)


def _entries(fields: dict[str, Any], names: Names) -> list[Entry]:
    """The recommendations of an answer, best first."""
    value = fields[RECOMMENDATIONS]
    if isinstance(value, Conflict):
        raise UnreadableError(ParseReason.AMBIGUOUS, f'"{RECOMMENDATIONS}" is there {len(value.values)} times')
    text = value if isinstance(value, str) else ""
    if text:
        value = load_json(text)
    if isinstance(value, list):
        return read_list(value, names)
    if isinstance(value, dict):
        return read_mapping(value, names)
    listed = read_text_order(text, names, closed=True)
    # Only semantic IDs with spaces between them, or a single one.
    if listed is None and not _WORD.search(_TOKEN.sub("", text)):
        listed = read_list(find_sids(text), names)
    if not listed:
        raise UnreadableError(ParseReason.NO_RECOMMENDATIONS, f'"{RECOMMENDATIONS}" is no list')
    return listed


def _check_no_other_order(located: Located, entries: Sequence[Entry], names: Names) -> None:
    """Raise UnreadableError if the text before or after the JSON of an answer states another order."""
    for text in (located.lead, located.text):
        other = None
        with suppress(UnreadableError):
            other = read_text_order(text, names)
        if other is not None and [entry.item for entry in other] != [entry.item for entry in entries]:
            raise UnreadableError(ParseReason.AMBIGUOUS, f"another order stands beside the JSON: {shown(text)}")


def _completion(fields: dict[str, Any], thinking: str, entries: Sequence[Entry]) -> ParsedCompletion:
    explanation = fields.get(EXPLANATION)
    if isinstance(explanation, Conflict):
        explanation = explanation.values[-1]
    return ParsedCompletion(
        as_text(explanation) or thinking,
        tuple(entry.item for entry in entries if entry.item is not None),
        tuple(entry.text[:SHOWN_CHARACTERS] for entry in entries if entry.item is None),
    )
