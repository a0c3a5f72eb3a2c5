"""Compares two reasonings word by word: their readable texts, their differences, and the differences as lines.

Only the beginning of a very long text is shown. Characters that control a screen are escaped.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from curate.review.trace_pages import TraceView
from curate.review.trace_text import Part, annotate, short_sid

# difflib takes at most about a second for two texts of this many tokens.
MOST_TOKENS = 5_000
MOST_CHARACTERS = 30_000


class ReadText(NamedTuple):
    """The readable text of a trace.

    source: "reasoning", or "completion" if it could not be parsed, or "error". cut: whether this is only the beginning.
    """

    text: str
    source: str
    cut: bool


# Characters that move a cursor, change the direction of a line, or end a line invisibly.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# A word, an item or a sign, with the spaces before it and the punctuation after it.
_TOKEN = re.compile(r"\s*(?:‹[^‹›\n]*›|\w+(?:[.,'’-]\w+)*|[^\w\s])[.,;:!?]*|\s+")


def read_text(view: TraceView) -> ReadText:
    """The reasoning with each semantic ID as ‹codes title›, or as ‹codes› if the prompt does not show the item."""
    source = next((name for name in ("reasoning", "completion", "error") if view.trace[name]), "reasoning")
    whole: str = view.trace[source] or ""
    titled = "".join(
        stretch.text if stretch.part is Part.WORDS else f"‹{f'{short_sid(stretch.text)} {stretch.title}'.strip()}›"
        for stretch in annotate(whole[:MOST_CHARACTERS], view.listed)
    )
    escaped = _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", titled[:MOST_CHARACTERS])
    tokens = _TOKEN.findall(escaped)
    cut = max(len(whole), len(titled)) > MOST_CHARACTERS or len(tokens) > MOST_TOKENS
    return ReadText("".join(tokens[:MOST_TOKENS]), source, cut)


class Side(StrEnum):
    """The texts that contain a stretch. The value is its mark in a diff."""

    BOTH = " "
    FIRST = "-"
    SECOND = "+"


class Change(NamedTuple):
    """A stretch of text that is in both texts or in one of them."""

    side: Side
    text: str


# If fewer words than this are common between two changes, they join the changes, because a diff of fragments is
# unreadable.
_FEWEST_COMMON = 3
# The number of common lines to show around a change.
_CONTEXT = 2


def diff_texts(first: str, second: str) -> list[Change]:
    """The differences of two texts by words.

    The stretches of BOTH and FIRST joined are the first text, those of BOTH and SECOND the second. Swapped texts give
    the same stretches with the sides swapped.
    """
    # The result of difflib depends on which text comes first, so the smaller one always comes first.
    turned = first > second
    texts = (second, first) if turned else (first, second)
    left, right = (_TOKEN.findall(text) for text in texts)
    opcodes = SequenceMatcher(None, left, right).get_opcodes()
    blocks = []
    for place, (tag, start, end, other_start, other_end) in enumerate(opcodes):
        between = 0 < place < len(opcodes) - 1
        same = tag == "equal" and not (between and _count_words(left[start:end]) < _FEWEST_COMMON)
        blocks.append((same, "".join(left[start:end]), "".join(right[other_start:other_end])))
    changes: list[Change] = []
    for same, group in groupby(blocks, lambda block: block[0]):
        parts = list(group)
        sides = ["".join(part for _, part, _ in parts), "".join(part for _, _, part in parts)]
        first_part, second_part = reversed(sides) if turned else sides
        if same:
            changes.append(Change(Side.BOTH, first_part))
        else:
            changes += [Change(Side.FIRST, first_part), Change(Side.SECOND, second_part)]
    return [change for change in changes if change.text]


def _count_words(tokens: Sequence[str]) -> int:
    return sum(token.lstrip()[:1].isalnum() or token.lstrip()[:1] == "‹" for token in tokens)


def diff_lines(changes: Sequence[Change]) -> str:
    """A diff as lines of at most one sentence, marked with "-" and "+". Long common parts are folded."""
    lines: list[str] = []
    for place, change in enumerate(changes):
        marked = [f"{change.side} {line}" for line in _sentences(change.text)]
        if change.side is Side.BOTH:
            before = _CONTEXT if place else 0
            after = _CONTEXT if place < len(changes) - 1 else 0
            folded = len(marked) - before - after
            if folded > 1 and len(changes) > 1:
                marked[before : before + folded] = [f"@@ {folded} lines alike @@"]
        lines += marked
    return "\n".join(lines)


def _sentences(text: str) -> list[str]:
    """The text, split after sentences and at line ends, without empty lines."""
    lines = [""]
    for token in _TOKEN.findall(text):
        if token[0].isspace() and lines[-1].endswith((".", "!", "?", ";")):
            lines.append("")
        lines[-1] += token
    return [part.strip() for line in lines for part in line.splitlines() if part.strip()]
