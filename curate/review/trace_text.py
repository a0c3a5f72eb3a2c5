"""The texts of a trace for people: items by title, and citations and claims checked against the store.

This module finds the stretches of a text. The pages decide how they look.
"""

from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from curate.traces.rules import count_pair, find_claims
from curate.traces.tasks import ListedTask
from prompts.semantic_ids import find_sid_spans, parse_sid
from prompts.tasks import ShownItem


class Part(StrEnum):
    """The kind of a stretch: words, an item that the prompt shows, or a semantic ID that the prompt does not show."""

    WORDS = "words"
    ITEM = "item"
    FOREIGN = "foreign"


class Stretch(NamedTuple):
    """A stretch of a reasoning.

    text: as in the reasoning. title: the item's title, if it is an item. claim: inside a counted claim, whether the
    store has the same count; None outside. counted: the count of the store, on the last stretch of a claim.
    """

    part: Part
    text: str
    title: str = ""
    claim: bool | None = None
    counted: int | None = None


def annotate(reasoning: str, listed: ListedTask) -> list[Stretch]:
    """Split a reasoning into stretches. Their texts joined are the reasoning."""
    items = {item.sid: item for item in shown_items(listed)}
    sids = {start: (end, sid) for start, end, sid in find_sid_spans(reasoning)}
    claims = [
        (claim.start, claim.start + len(claim.text), claim.times, count_pair(listed.task, claim))
        for claim in find_claims(reasoning)
    ]
    cuts = {0, len(reasoning)}
    cuts.update(place for start, (end, _) in sids.items() for place in (start, end))
    cuts.update(place for start, end, *_ in claims for place in (start, end))
    stretches = []
    following = 0
    for start, end in pairwise(sorted(cuts)):
        claim, last = None, None
        if following < len(claims) and claims[following][0] <= start:
            _, claim_end, says, counted = claims[following]
            claim = says == counted
            if end == claim_end:
                last = counted
                following += 1
        sid = sids[start][1] if start in sids else None
        item = items.get(sid) if sid else None
        part = Part.WORDS if sid is None else Part.FOREIGN if item is None else Part.ITEM
        stretches.append(Stretch(part, reasoning[start:end], name_of(item) if item else "", claim, last))
    return stretches


def with_codes(text: str) -> str:
    """Return the text with each semantic ID replaced by its codes, for tables.

    >>> with_codes("like <|sid_begin|><s_a_57><s_b_7><|sid_end|>.")
    'like 57·7.'
    """
    parts, end = [], 0
    for start, after, sid in find_sid_spans(text):
        parts += [text[end:start], short_sid(sid)]
        end = after
    return "".join([*parts, text[end:]])


def shown_items(listed: ListedTask) -> list[ShownItem]:
    """The items that the prompt shows: the history, then the candidates."""
    return [*listed.task.history, *(candidate.item for candidate in listed.task.candidates)]


def short_sid(sid: str) -> str:
    """The codes of a semantic ID in readable form.

    >>> short_sid("<|sid_begin|><s_a_57><s_b_7><|sid_end|>")
    '57·7'
    """
    return "·".join(map(str, parse_sid(sid) or ())) or sid


def name_of(item: ShownItem) -> str:
    """The name of an item for people: its title, else brand and category, else its id."""
    return item.title or " > ".join(part for part in (item.brand, *item.categories[-1:]) if part) or item.item_id
