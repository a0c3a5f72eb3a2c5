"""The reasons why a completion cannot be read, and the short texts that explain them.

Within the parser a failure is raised as an UnreadableError. `prompts.completion.parse_completion` turns it into data,
so no caller ever sees it raised.
"""

import json
from enum import StrEnum
from typing import Any, NamedTuple

from store.values import storable_text

# The longest excerpt of a completion in a failure or an unknown entry, in characters.
SHOWN_CHARACTERS = 200


class ParseReason(StrEnum):
    """The reason why a completion cannot be read."""

    EMPTY = "empty"
    TOO_LONG = "too_long"
    UNFINISHED_THINKING = "unfinished_thinking"
    NO_JSON = "no_json"
    BROKEN_JSON = "broken_json"
    UNFINISHED_JSON = "unfinished_json"
    NO_RECOMMENDATIONS = "no_recommendations"
    UNFINISHED_ORDER = "unfinished_order"
    AMBIGUOUS = "ambiguous"


class ParseFailure(NamedTuple):
    """The reason why a completion cannot be read. detail: an excerpt of its text, or an explanation."""

    reason: ParseReason
    detail: str


class UnreadableError(Exception):
    """Ends the reading of a completion with a failure. It never leaves the parser."""

    def __init__(self, reason: ParseReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.failure = ParseFailure(reason, detail)


def as_text(value: Any) -> str:
    """A JSON value as text that can be stored. A list of texts is joined, and null is the empty text."""
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


def shown(text: str) -> str:
    """The beginning of a text on one line, for a failure."""
    return as_text(" ".join(text[: 2 * SHOWN_CHARACTERS].split())[:SHOWN_CHARACTERS])
