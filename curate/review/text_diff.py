"""Two reasonings word by word: what there is to read of each, where they differ, and that as lines.

What is shown of hostile texts is their beginning, and characters that steer a screen are spelled out.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from enum import StrEnum
from itertools import groupby
from typing import NamedTuple

from curate.review.trace_pages import TraceView
from curate.review.trace_text import Part, annotate, short_sid

# difflib takes about a second, at worst, for two texts of so many tokens.
MOST_TOKENS = 5_000
MOST_CHARACTERS = 30_000


class ReadText(NamedTuple):
    """What there is to read of a trace. source: "reasoning", "completion" where none could be parsed, or "error".

    cut: whether this is only its beginning.
    """

    text: str
    source: str
    cut: bool


# What moves a cursor, turns the direction of a line round or ends a line unseen.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# A word, an item or a sign, with the blanks before it and the full stop or comma after it.
_TOKEN = re.compile(r"\s*(?:‹[^‹›\n]*›|\w+(?:[.,'’-]\w+)*|[^\w\s])[.,;:!?]*|\s+")


def read_text(view: TraceView) -> ReadText:
    """The reasoning with each semantic ID as ‹codes title›, or ‹codes› where the prompt does not show it."""
    source = next((name for name in ("reasoning", "completion", "error") if view.trace[name]), "reasoning")
    whole: str = view.trace[source] or ""
    titled = "".join(
        stretch.text if stretch.part is Part.WORDS else f"‹{f'{short_sid(stretch.text)} {stretch.title}'.strip()}›"
        for stretch in annotate(whole[:MOST_CHARACTERS], view.listed)
    )
    spelled = _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", titled[:MOST_CHARACTERS])
    tokens = _TOKEN.findall(spelled)
    cut = max(len(whole), len(titled)) > MOST_CHARACTERS or len(tokens) > MOST_TOKENS
    return ReadText("".join(tokens[:MOST_TOKENS]), source, cut)


class Side(StrEnum):
    """Where a stretch of text stands; the value is how a diff marks it."""

    BOTH = " "
    FIRST = "-"
    SECOND = "+"


class Change(NamedTuple):
    """A stretch of text that both texts, or one of them, have."""

    side: Side
    text: str


# Fewer words in common between two changes are taken into the changes: a diff of shreds cannot be read.
_FEWEST_COMMON = 3
# So many lines in common are shown around a change.
_CONTEXT = 2


def diff_texts(first: str, second: str) -> list[Change]:
    """How two texts differ, by words; what stands in BOTH and FIRST is the first text, BOTH and SECOND the second.

    The other way round it says the same with the sides changed.
    """
    # difflib depends on which text comes first, so that is always the smaller one.
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
    """A diff as lines, a sentence or a part of one each, marked by "-" and "+"; what is long and alike is folded."""
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
    """The text cut after sentences and at line ends, without blank lines."""
    lines = [""]
    for token in _TOKEN.findall(text):
        if token[0].isspace() and lines[-1].endswith((".", "!", "?", ";")):
            lines.append("")
        lines[-1] += token
    return [part.strip() for line in lines for part in line.splitlines() if part.strip()]
