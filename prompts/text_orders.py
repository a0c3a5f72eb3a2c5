"""Reads orders that an answer states without JSON: `[3] > [1] > [2]`, lists and Markdown tables.

RankGPT's answers have the first form (https://arxiv.org/abs/2304.09542). A text counts as an order only if it is
nothing else: each part must be a name, and all candidates must be named. Nothing shows where such a text should end, so
a shorter one may have been cut off. After prose, only two unmistakable forms count: a chain of `>`, and a list that is
numbered from 1 and does not just repeat the candidates of the prompt.
"""

import re
from collections.abc import Sequence

from prompts.candidate_names import Names
from prompts.failures import ParseReason, UnreadableError, shown
from prompts.orders import Entry, in_order, read_entry, read_list

# No order of candidates is longer. Longer texts are not searched.
_LONGEST = 50_000
# Text around an answer that is not part of it: code fences, tags, marks of a chat format, and byte order marks.
# Semantic IDs are kept.
_WRAPPING = re.compile(
    r"```[\w-]*|<\|(?!sid_)(?:start\|>\w*|[a-z_]{1,30}\|>)|</?(?:answer|final_answer|output|response|result)>|</s>|[\ufeff\u200b]",
    re.IGNORECASE,
)
_SID = re.compile(r"<\|sid_begin\|>[^|]*<\|sid_end\|>|(?:<s_[a-z]_[0-9]{1,5}>)+")
# Semantic IDs contain ">" and "|", so they are replaced by characters that models never write.
_MARK = re.compile("\ue000([0-9]{1,6})\ue001")
_GREATER = re.compile("->|=>|>+|≻|→")
# A line such as "The order is:", "## Ranking" or "**Ranking**".
_LEAD_IN = re.compile(r"#{1,6} .*|\*\*.*\*\*|.*:")
_PREFIX = re.compile(r"[\s*]{0,4}[A-Za-z][A-Za-z ]{0,40}(?::| is\b)[\s*:]{0,4}")
_BULLET = re.compile(r"\s{0,20}[-*•+–]\s{1,20}")
_NUMBERED = re.compile(
    r"\s{0,20}(?:[-*•+–]\s{1,20})?[*(\[#]{0,3}(?:Rank\s)?([0-9]{1,6})[\])*.:]{1,4}\s{1,20}", re.IGNORECASE
)
_TABLE_RULE = re.compile(r"[\s:|-]+")
_NAME = "(?:\ue000[0-9]{1,6}\ue001|[\\[(#]{0,2}[0-9]{1,6}[\\])]{0,2})"
# Two names with a `>` between them, or three names in a row. Prose with these may state an order itself.
_ORDER_IN_PROSE = re.compile(
    rf"{_NAME}\s{{0,3}}(?:->|=>|>+|≻|→)\s{{0,3}}{_NAME}"
    rf"|{_NAME}(?:[\s,;]{{1,3}}(?:(?:and|then)\s{{1,2}}){{0,2}}{_NAME}){{2}}"
)
# Possible ends of prose on the line of the order.
_END_OF_PROSE = (":", ". ", " is ")


def unwrap(text: str) -> str:
    """An answer without code fences, surrounding tags and marks of a chat format."""
    return _WRAPPING.sub("", text).strip()


def read_text_order(text: str, names: Names, *, closed: bool = False) -> list[Entry] | None:
    """The order that a whole text states, best first. None if the text is anything else.

    closed: whether the end of the text is certain, as within quotes. Raises UnreadableError if the text states two
    orders, or if it leaves candidates out and is not closed.
    """
    lines, reader = _hide_sids(text, names)
    if not lines:
        return None
    # All lines are tried first, because a line that introduces an order may look like an entry.
    for part in (lines, lines[1:] if _LEAD_IN.fullmatch(lines[0].strip()) else []):
        for read in (reader.table, reader.chains, reader.listing, reader.enumeration):
            entries = read(part) if part else None
            if entries is not None:
                if not closed:
                    check_complete(entries, names)
                return entries
    return None


def read_order_after_prose(text: str, names: Names) -> tuple[str, list[Entry]] | None:
    """The prose and the order, best first, of a text that ends with an order of all candidates.

    None for any other text. Raises UnreadableError if the prose may state an order too, or if the order may be a copy
    of the candidates.
    """
    lines, reader = _hide_sids(text, names)
    if not lines:
        return None
    *before, last = lines
    splits = [(before, [last])]
    for mark in _END_OF_PROSE:
        head, separator, tail = last.rpartition(mark)
        splits += [([*before, head + separator], [tail])] if separator else []
    splits.append((lines[: -names.count], lines[-names.count :]))
    for prose, part in splits:
        entries = (reader.chains(part) if len(part) == 1 else reader.listing(part)) if prose else None
        if entries is None or len({entry.item for entry in entries} - {None}) < max(names.count, len(entries)):
            continue
        shown_part = reader.shown(" / ".join(part))
        if len(part) > 1:
            places = list(range(1, names.count + 1))
            if [entry.label for entry in entries] != places:
                continue
            if [names.number_of(entry.item) for entry in entries] == places:
                detail = f"an order, or the candidates as the prompt lists them: {shown_part}"
                raise UnreadableError(ParseReason.AMBIGUOUS, shown(detail))
        if _ORDER_IN_PROSE.search("\n".join(prose)) or any(map(reader.is_entry, prose)):
            raise UnreadableError(
                ParseReason.AMBIGUOUS, shown(f"words before it may state another order: {shown_part}")
            )
        return reader.shown("\n".join(prose)).strip(), entries
    return None


def _hide_sids(text: str, names: Names) -> tuple[list[str], "_Lines"]:
    """The lines of an answer that are not blank, with marks for semantic IDs, and a reader for them.

    A text that is too long, or whose square brackets do not match, has no lines.
    """
    text = unwrap(text)
    sids: list[str] = []
    if len(text) > _LONGEST or text.count("[") != text.count("]"):
        text = ""

    def hide(match: re.Match[str]) -> str:
        sids.append(match[0])
        return f"\ue000{len(sids) - 1}\ue001"

    # Markdown escapes the bars of a semantic ID within a table.
    hidden = _SID.sub(hide, text.replace("<\\|", "<|").replace("\\|>", "|>"))
    return [line for line in hidden.splitlines() if line.strip()], _Lines(names, sids)


def check_complete(entries: Sequence[Entry], names: Names) -> None:
    """Raise UnreadableError if an order has fewer entries than there are candidates, because it may be cut off."""
    if len(entries) < names.count:
        detail = f"the order has {len(entries)} of {names.count} candidates, and nothing shows that it ends there"
        raise UnreadableError(ParseReason.UNFINISHED_ORDER, detail)


class _Lines:
    """Reads lines whose semantic IDs are hidden. Each method returns None if the lines do not have its form."""

    def __init__(self, names: Names, sids: Sequence[str]) -> None:
        self._names = names
        self._sids = sids

    def table(self, lines: list[str]) -> list[Entry] | None:
        """A Markdown table with a header; its rows are read as objects."""
        if len(lines) < 3 or "|" not in lines[1] or not _TABLE_RULE.fullmatch(lines[1]):
            return None
        header, _, *rows = [[self.shown(cell) for cell in _cells(line)] for line in lines]
        if any(len(row) != len(header) for row in rows) or len(set(header)) < len(header):
            return None
        if any(line.lstrip().startswith("|") and not line.rstrip().endswith("|") for line in lines):
            return None
        return read_list([dict(zip(header, row, strict=True)) for row in rows], self._names)

    def chains(self, lines: list[str]) -> list[Entry] | None:
        """One or more orders such as `[3] > [1] > [2]`. Raises UnreadableError if they differ."""
        whole = self._chain("\n".join(lines))
        if whole is not None:
            return whole
        chains = [chain for line in lines if (chain := self._chain(line)) is not None]
        if not chains or len(chains) < len(lines):
            return None
        if len({tuple(entry.item for entry in chain) for chain in chains}) > 1:
            raise UnreadableError(ParseReason.AMBIGUOUS, shown("several orders: " + self.shown(" / ".join(lines))))
        return chains[0]

    def _chain(self, text: str) -> list[Entry] | None:
        return self._names_only(_GREATER.split(_without_prefix(text).strip(" .*`")))

    def listing(self, lines: list[str]) -> list[Entry] | None:
        """A name on each line, optionally after a number or a bullet, in which case other words may follow the name."""
        entries = []
        marks = set()
        for line in lines:
            read = self._line(line)
            if read is None:
                return None
            mark, entry = read
            entries.append(entry)
            marks.add(mark)
        # A last line with another mark may be the beginning of a line that was cut off.
        return in_order(entries, self._names) if len(entries) > 1 and len(marks) == 1 else None

    def is_entry(self, line: str) -> bool:
        """Whether a line with a number or a bullet names a candidate."""
        read = self._line(line)
        return read is not None and read[0] != "" and read[1].item is not None

    def _line(self, line: str) -> tuple[str, Entry] | None:
        """The mark of a list's line ("1" for a number, "" for none) and its entry, or None if it names nothing."""
        numbered = _NUMBERED.match(line)
        mark = numbered or _BULLET.match(line)
        rest = (line[mark.end() :] if mark else line).strip(" \t*`")
        sid = _MARK.match(rest)
        if sid is None:
            # Prose that mentions a semantic ID is not an entry.
            text = "" if _MARK.search(rest) else rest
        elif mark or sid[0] == rest:
            # The reasons after the name may cite other items.
            text = f"{sid[0]} {_MARK.sub(' ', rest[sid.end() :])}"
        else:
            return None
        entry = read_entry(self.shown(text.strip()), self._names)
        if not entry.formed:
            return None
        if numbered:
            return "1", entry._replace(label=int(numbered[1]))
        return mark[0].strip() if mark else "", entry

    def enumeration(self, lines: list[str]) -> list[Entry] | None:
        """Names on a single line, separated by commas or semicolons."""
        if len(lines) != 1:
            return None
        line = _without_prefix(lines[0]).strip(" .*`")
        return self.listing([_bare(part) for part in re.split("[,;]", line[1:-1] if line[:1] == "[" else line)])

    def _names_only(self, parts: list[str]) -> list[Entry] | None:
        """The entries in parts of a text. None if there is only one part, or if a part is not just a name."""
        entries = []
        for part in parts:
            bare = _bare(part)
            mark = _MARK.search(bare)
            if "\n" in bare or (mark and mark[0] != bare):
                return None
            entry = read_entry(self.shown(bare), self._names)
            if not entry.formed:
                return None
            entries.append(entry)
        return in_order(entries, self._names) if len(entries) > 1 else None

    def shown(self, text: str) -> str:
        """The text with its semantic IDs restored."""
        return _MARK.sub(lambda mark: self._sids[int(mark[1])] if int(mark[1]) < len(self._sids) else mark[0], text)


def _without_prefix(text: str) -> str:
    """A text without the words that introduce an order on the same line, such as "Final ranking:"."""
    prefix = _PREFIX.match(text)
    return text[prefix.end() :] if prefix else text


def _bare(part: str) -> str:
    """A part of an enumeration without quotes, and without the brackets around a number or a semantic ID."""
    part = part.strip(" \t\n.'\"*`")
    return part.strip("[]") if _MARK.fullmatch(part.strip("[]")) else part


def _cells(line: str) -> list[str]:
    line = line.strip().removeprefix("|").removesuffix("|")
    return [cell.replace("\\|", "|").strip(" *`") for cell in re.split(r"(?<!\\)\|", line)]
