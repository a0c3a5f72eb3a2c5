"""Reads the order of candidates from a list, a mapping or a table in an answer.

Candidates are in the order in which they are listed, unless the entries state ranks, which then decide. An answer that
can be read as two different orders is a failure. A guess could store a trace that says the opposite of what its model
said.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from prompts.candidate_names import Kind, Names
from prompts.failures import SHOWN_CHARACTERS, ParseReason, UnreadableError, as_text, shown

MAX_ENTRIES = 200
# The depth to which objects within an entry are searched for a rank and a name.
_DEPTH = 3
# Words in keys that hold a rank, such as "rank" and "newPosition", and in keys that hold the rank in the input.
_RANK_WORDS = frozenset(("rank", "ranking", "position", "pos", "place", "order"))
_INPUT_WORDS = frozenset(("old", "original", "previous", "prior", "initial", "input", "before", "pre"))
_NAME_KEYS = frozenset(
    (
        *("sid", "semantic_id", "semanticid", "item", "item_id", "item_name", "id", "title", "name"),
        *("candidate", "candidate_id", "product", "product_id", "product_name", "recommendation"),
    )
)
# Keys whose value is a candidate's number in the prompt, if nothing else names the candidate.
_NUMBER_KEYS = frozenset(("number", "candidate_number", "item_number", "index", "no", "nr"))
_CAMEL = re.compile("(?<=[a-z])(?=[A-Z])")
_NO_WORDS = re.compile(r"[\W_]+")
_RANK = re.compile(
    r"\s*(?:(?:rank|position|place|pos|no|nr)(?![a-z]))?[\s.:#_]{0,4}(?P<number>[0-9]{1,6})(?:\.0+)?(?:st|nd|rd|th)?"
    r"(?:\s{0,2}(?:/|of)\s{0,2}[0-9]{1,6})?[\s.):]{0,4}",
    re.IGNORECASE,
)


class Conflict(NamedTuple):
    """The value of a key that an object has several times with different values."""

    values: tuple[Any, ...]


class Entry(NamedTuple):
    """One entry of an order.

    text: the entry as the answer has it. item: the candidate's item id, or None if it names none or several. rank: the
    stated rank, or None. ranked: whether the entry states a rank, readable or not. label: a number beside the name that
    may be a rank or the candidate's number. formed: whether the entry is a name without further words
    (`candidate_names.Kind`).
    """

    text: str
    item: str | None
    rank: int | None = None
    ranked: bool = False
    label: int | None = None
    formed: bool = True


def read_list(values: Sequence[Any], names: Names) -> list[Entry]:
    """The entries of a list, best first. Raises UnreadableError if the list states two different orders."""
    values = values[:MAX_ENTRIES]
    objects = [value for value in values if isinstance(value, dict)]
    if len(objects) == len(values) > 1:
        # A mapping in several objects: [{"1": <name>}, {"2": <name>}].
        pairs = [pair for value in objects if len(value) == 1 for pair in value.items()]
        keys = {key for key, _ in pairs}
        if len(pairs) == len(keys) == len(values) and not keys <= _NAME_KEYS:
            return read_mapping(dict(pairs), names)
    entries = in_order([read_entry(value, names) for value in values], names)
    if not any(entry.ranked for entry in entries):
        _check_unknown_ranks(objects, entries, names)
    return entries


def read_mapping(mapping: dict[str, Any], names: Names) -> list[Entry]:
    """The entries of a mapping from ranks to names or from names to ranks, best first.

    Raises UnreadableError if the mapping is neither, or if it is both with different orders.
    """
    pairs = list(mapping.items())[:MAX_ENTRIES]
    readings = []
    if _is_run([read_rank(key) for key, _ in pairs]):
        readings.append(_ranked((read_rank(key), read_entry(value, names)) for key, value in pairs))
    ranks = [_rank_of(value) for _, value in pairs]
    if _is_run(ranks):
        readings.append(_ranked((rank, read_entry(key, names)) for rank, (key, _) in zip(ranks, pairs, strict=True)))
    if not readings:
        detail = f"neither the keys nor the values are ranks 1 to {len(pairs)}: {shown(as_text(mapping))}"
        raise UnreadableError(ParseReason.NO_RECOMMENDATIONS, detail)
    orders = [in_order(reading, names) for reading in readings]
    if len({tuple(entry.item for entry in order) for order in orders}) > 1:
        raise UnreadableError(ParseReason.AMBIGUOUS, f"either side may be the ranks: {shown(as_text(mapping))}")
    return orders[0]


def read_entry(value: Any, names: Names) -> Entry:
    """Read one entry: a name, a pair of name and number, or an object with a name and optionally a rank.

    Raises UnreadableError if the entry is ambiguous.
    """
    if isinstance(value, Conflict):
        raise UnreadableError(ParseReason.AMBIGUOUS, shown(f"a key has several values: {as_text(list(value.values))}"))
    if isinstance(value, dict):
        return _read_object(value, names)
    # In Python, True is an int.
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Entry(as_text(value), names.by_number(value))
    if isinstance(value, list) and len(value) == 2:
        number, name = value if isinstance(value[0], int) else reversed(value)
        if isinstance(number, int) and isinstance(name, str):
            parsed_name = names.read(name)
            return Entry(as_text(value), parsed_name.item, label=number, formed=parsed_name.kind is not None)
    text = as_text(value)
    name = names.read(text)
    return Entry(text, name.item, label=name.label, formed=name.kind is not None)


def in_order(entries: list[Entry], names: Names) -> list[Entry]:
    """The entries, best first: by rank if they have ranks, otherwise as listed.

    Raises UnreadableError if some entries lack a rank, if the ranks are not 1 to n, or if labels contradict the order.
    """
    listed = [(place, entry) for place, entry in enumerate(entries, 1)]
    if any(entry.ranked for entry in entries):
        ranks = [entry.rank for entry in entries]
        if not _is_run(ranks):
            seen = ", ".join("none" if rank is None else str(rank) for rank in ranks)
            raise UnreadableError(
                ParseReason.AMBIGUOUS, shown(f"the ranks are not 1 to {len(ranks)}, each once: {seen}")
            )
        first = min(rank for rank in ranks if rank is not None)
        listed = sorted(((rank or 0) - first + 1, entry) for rank, entry in zip(ranks, entries, strict=True))
    labelled = [(place, entry) for place, entry in listed if entry.label is not None and entry.item is not None]
    # A label is the rank, counted from 1 or 0, or the number that the prompt gives the candidate.
    if not (
        all(entry.label == place for place, entry in labelled)
        or all(entry.label == place - 1 for place, entry in labelled)
        or all(entry.label == names.number_of(entry.item) for _, entry in labelled)
    ):
        seen = ", ".join(str(entry.label) for _, entry in labelled)
        raise UnreadableError(
            ParseReason.AMBIGUOUS, shown(f"numbers beside the candidates contradict their order: {seen}")
        )
    return [entry for _, entry in listed]


def read_rank(value: Any) -> int | None:
    """A rank as models write it: 1, 1.0, "1", "#1", "1st", "Rank 1", "1/10". None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        # JSON parsers also return infinity and NaN, which cannot be converted to an integer.
        return int(value) if abs(value) < 1_000_000 and value == int(value) else None
    match = _RANK.fullmatch(value) if isinstance(value, str) and len(value) <= SHOWN_CHARACTERS else None
    return int(match["number"]) if match else None


def _is_run(ranks: Sequence[int | None]) -> bool:
    """Whether ranks are 1 to n or 0 to n-1, each once."""
    known = {rank for rank in ranks if rank is not None}
    return bool(ranks) and len(known) == len(ranks) and known in (set(range(1, len(ranks) + 1)), set(range(len(ranks))))


def _ranked(entries: Iterable[tuple[int | None, Entry]]) -> list[Entry]:
    """Entries with the ranks of a mapping. Raises UnreadableError if an entry states another rank."""
    ranked = []
    for rank, entry in entries:
        if entry.ranked and entry.rank != rank:
            detail = f"an entry has the ranks {rank} and {entry.rank}: {entry.text}"
            raise UnreadableError(ParseReason.AMBIGUOUS, shown(detail))
        ranked.append(entry._replace(rank=rank, ranked=True))
    return ranked


def _rank_of(value: Any) -> int | None:
    """The rank in the value of a mapping, which is a rank or an object with a rank. None if there is none."""
    if not isinstance(value, dict):
        return read_rank(value)
    ranks = {read_rank(rank) for key, rank in _fields(value) if _holds_rank(key)}
    return ranks.pop() if len(ranks) == 1 else None


def _fields(value: dict[str, Any], depth: int = _DEPTH) -> Iterable[tuple[str, Any]]:
    """The fields of an object and of nested objects, with keys such as `semantic_id`. A key `#` becomes `number`."""
    for key, field in value.items():
        if isinstance(field, dict) and depth:
            yield from _fields(field, depth - 1)
        else:
            name = _NO_WORDS.sub("_", _CAMEL.sub("_", key).casefold()).strip("_")
            yield name or ("number" if "#" in key else ""), field


def _check_unknown_ranks(objects: Sequence[dict[str, Any]], entries: Sequence[Entry], names: Names) -> None:
    """Raise UnreadableError if a field of unknown meaning may be a rank that contradicts the order of the objects."""
    if len(objects) < len(entries) or len(entries) < 2:
        return
    numbers: dict[str, list[int | None]] = {}
    for value in objects:
        for key, field in _fields(value):
            known = key in _NAME_KEYS or key in _NUMBER_KEYS or not _INPUT_WORDS.isdisjoint(key.split("_"))
            if not known:
                numbers.setdefault(key, []).append(read_rank(field))
    for key, column in numbers.items():
        places = list(range(1, len(entries) + 1))
        # Scores fall as ranks rise.
        orders = [places, [place - 1 for place in places], places[::-1], [place - 1 for place in places[::-1]]]
        orders.append([names.number_of(entry.item) for entry in entries])
        if len(column) == len(entries) and _is_run(column) and column not in orders:
            seen = ", ".join(map(str, column))
            raise UnreadableError(ParseReason.AMBIGUOUS, shown(f'"{key}" may be a rank against the order: {seen}'))


def _holds_rank(key: str) -> bool:
    words = key.split("_")
    return len(words) <= 2 and not _RANK_WORDS.isdisjoint(words) and _INPUT_WORDS.isdisjoint(words)


def _read_object(value: dict[str, Any], names: Names) -> Entry:
    text = as_text(value)
    ranks: set[int | None] = set()
    labels: set[int] = set()
    # Candidates by kind of name. A semantic ID is stronger than a title, and both are stronger than a number, which may
    # be a count.
    sids: set[str | None] = set()
    titles: set[str | None] = set()
    numbers: set[str | None] = set()
    others: set[str | None] = set()
    for key, field in _fields(value):
        if key.isdigit():
            raise UnreadableError(ParseReason.AMBIGUOUS, shown(f"the key {key} of an entry may be its rank: {text}"))
        named = key in _NAME_KEYS or key in _NUMBER_KEYS
        if _holds_rank(key):
            ranks.add(read_rank(field))
        if isinstance(field, Conflict) and (named or _holds_rank(key)):
            raise UnreadableError(ParseReason.AMBIGUOUS, shown(f'an entry has "{key}" twice: {text}'))
        if isinstance(field, str) and field:
            name = names.read(field)
            if key in _NAME_KEYS:
                {Kind.SID: sids, Kind.NUMBER: numbers}.get(name.kind or Kind.TITLE, titles).add(name.item)
                labels |= set() if name.label is None else {name.label}
            elif name.kind is Kind.SID or (name.kind is Kind.TITLE and name.item):
                others.add(name.item)
        elif key in _NAME_KEYS and isinstance(field, (int, float)) and not isinstance(field, bool):
            numbers.add(names.by_number(field))
        if key in _NUMBER_KEYS and (label := read_rank(field)) is not None:
            labels.add(label)
    if len(ranks) > 1 or len(labels) > 1:
        raise UnreadableError(ParseReason.AMBIGUOUS, shown(f"an entry has several ranks or numbers: {text}"))
    # An unknown title does not contradict a semantic ID, but another candidate's title does.
    items = sids | (titles - {None}) if sids else titles or others | numbers
    label = labels.pop() if labels else None
    if not items and label is not None:
        items, label = {names.by_number(label)}, None
    item = items.pop() if len(items) == 1 else None
    ranked = bool(ranks)
    return Entry(text, item, ranks.pop() if ranks else None, ranked, label, formed=bool(item or sids or numbers))
