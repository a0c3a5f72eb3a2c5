"""Explains an item's semantic ID: for each prefix, the items that share it and what they have in common."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from curate.sids.versions import SidVersion, find_version, load_codes, load_items
from store import InputError, Store
from store.records import Item

SHOWN = 5
_WORD = r"\w{3,}"


@dataclass(frozen=True, slots=True)
class PrefixStep:
    """One prefix of an item's ID. Level 0 is the whole catalogue.

    items: the number of items with the prefix. category, brand: the most common one with its share of those items, or
    None if none is known. words: the most typical title words of the prefix, each with its share of the titles.
    examples: titles of items with this prefix, preferably items that do not share the next longer prefix.
    """

    level: int
    code: int | None
    items: int
    category: tuple[str, float] | None
    brand: tuple[str, float] | None
    words: list[tuple[str, float]]
    examples: list[str]


@dataclass(frozen=True, slots=True)
class Explanation:
    """An item, its ID, and one step per prefix, from the catalogue to the whole ID."""

    version: SidVersion
    item: Item
    codes: tuple[int, ...]
    steps: list[PrefixStep]


def explain_item(store: Store, item_id: str, version: str | None = None) -> Explanation:
    """Describe the path of an item from the catalogue to its ID.

    version: as `find_version` takes it. None means the newest version of the only dataset that has the item.

    Raises InputError on an unknown item or version, or if several datasets have the item and version is None.
    """
    with store.reading() as session:
        datasets = [name for (name,) in session.rows("data_sets_of_item", item_id=item_id)]
        if not datasets:
            raise InputError(f'no item {item_id!r} has a semantic ID; gr2 sql "from items" lists items')
        if version is None and len(datasets) > 1:
            raise InputError(f"item {item_id!r} is in {', '.join(datasets)}; choose one with `version`")
        sid_version = find_version(session, version or datasets[0])
        items = {item.item_id: item for item in load_items(session, sid_version.dataset)}
        codes_by_item = load_codes(session, sid_version)
    if item_id not in codes_by_item:
        raise InputError(f"{sid_version} has no item {item_id!r}; the item is in {', '.join(datasets)}")
    codes = codes_by_item[item_id]
    words_in_catalogue = _title_words(list(items.values()))
    steps = []
    inside = [item for item in items if item in codes_by_item]
    for level in range(len(codes) + 1):
        inside = [item for item in inside if codes_by_item[item][:level] == codes[:level]]
        deeper = codes[: level + 1]
        others = [item for item in inside if item != item_id]
        # Items that separate at the next level show best what that level distinguishes.
        apart = [item for item in others if codes_by_item[item][: level + 1] != deeper]
        steps.append(
            _step(
                level,
                codes,
                [items[item] for item in inside],
                [items[item] for item in apart or others],
                words_in_catalogue,
            )
        )
    return Explanation(sid_version, items[item_id], codes, steps)


def _step(
    level: int, codes: Sequence[int], inside: Sequence[Item], shown: Sequence[Item], in_catalogue: dict[str, float]
) -> PrefixStep:
    return PrefixStep(
        level=level,
        code=codes[level - 1] if level else None,
        items=len(inside),
        category=_most_common([" > ".join(item.categories) for item in inside]),
        brand=_most_common([item.brand or "" for item in inside]),
        words=typical_words(_title_words(inside), in_catalogue) if level else [],
        examples=[item.title or item.item_id for item in shown[:SHOWN]],
    )


def _most_common(values: Sequence[str]) -> tuple[str, float] | None:
    """The most common nonempty value with its share of all values, or None if all are empty."""
    counts = Counter(value for value in values if value)
    return next(((value, count / len(values)) for value, count in counts.most_common(1)), None)


def _title_words(items: Sequence[Item]) -> dict[str, float]:
    """The share of titles that contain each word."""
    titles = pl.Series([(item.title or "").lower() for item in items], dtype=pl.String)
    counts = titles.str.extract_all(_WORD).list.unique().explode().drop_nulls().value_counts(name="titles")
    return {word: count / len(items) for word, count in counts.iter_rows()}


def typical_words(inside: dict[str, float], everywhere: dict[str, float]) -> list[tuple[str, float]]:
    """The words with the largest share * log(share / share in the catalogue), with their shares of at least 0.25.

    >>> typical_words({"soap": 1.0, "and": 0.5}, {"soap": 0.1, "and": 0.5})
    [('soap', 1.0)]
    """
    gains = {
        word: share * math.log(share / everywhere[word])
        for word, share in inside.items()
        if share >= 0.25 and share > everywhere[word]
    }
    return [(word, inside[word]) for word in sorted(gains, key=lambda word: (-gains[word], word))[:SHOWN]]
