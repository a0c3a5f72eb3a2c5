"""Finds the candidate that a text or a number names: by semantic ID, by number in the prompt, or by title.

A name counts only if it can mean one candidate. A text that is one candidate's number and another one's title names
neither of them.
"""

import html
import re
import unicodedata
from enum import StrEnum
from typing import NamedTuple

from prompts.failures import ParseReason, UnreadableError, shown
from prompts.semantic_ids import find_bare_sid, find_sids
from prompts.tasks import RerankTask

# A number of the prompt as models write it: 3, [3], #3, (3), 3.0, "Item 3", "Candidate #3". Only short texts are
# matched, so that the optional parts of the pattern cannot cost more than a moment.
_NUMBER = re.compile(
    r"[\s\[(#*`]*(?P<word>(?:item|candidate|product|option|number|no|nr)[\s.:#_]*)?[\[(#]*(?P<number>[0-9]{1,6})"
    r"(?:\.0+)?[\])*`.:\s]*",
    re.IGNORECASE,
)
_LONGEST_NUMBER = 40
# How much of an entry is searched for numbers beside its semantic ID, in characters.
_LONGEST_ENTRY = 2000
# A number in front of a name, as in "3. <name>", "[3] <name>", "Rank 3: <name>".
_LEADING = re.compile(
    r"[\s*]{0,4}(?:(?:rank|position|place|item|candidate|no)\b[\s.:]{0,3})?[#\[(*]{0,3}(?P<number>[0-9]{1,6})"
    r"(?:[\])*.:]{1,4}|(?=\s))\s{0,4}(?:[-–:=]\s)?\s{0,4}",
    re.IGNORECASE,
)
_RANK_WORD = re.compile(r"\b(?:rank|position|place)\b[\"'\s:=#]{0,4}(?P<number>[0-9]{1,6})\b", re.IGNORECASE)
_TOKEN = re.compile(r"<[^<>]{0,40}>")
_DIGITS = re.compile("(?P<number>[0-9]{1,6})")
_NO_WORDS = re.compile(r"[\W_]+")


class Kind(StrEnum):
    """The kind of a name. A text with further words has no kind."""

    SID = "sid"
    NUMBER = "number"
    TITLE = "title"


class Name(NamedTuple):
    """A name in an answer.

    item: the item id of the candidate, or None if the text names none or several. kind: None if the text is not a name.
    label: a number beside the name, which may be a rank or the number of the candidate; None without one.
    """

    item: str | None
    kind: Kind | None = None
    label: int | None = None


class Names:
    """Finds the candidates of a task by their names in an answer."""

    def __init__(self, task: RerankTask) -> None:
        self._task = task
        self._by_sid = {candidate.item.sid: candidate.item.item_id for candidate in task.candidates}
        self._by_title: dict[str, str | None] | None = None

    @property
    def count(self) -> int:
        """The number of candidates."""
        return len(self._task.candidates)

    def number_of(self, item: str | None) -> int:
        """The number of a candidate in the prompt, counted from 1, or 0 if the item is not a candidate."""
        numbered = enumerate(self._task.candidates, 1)
        return next((number for number, candidate in numbered if candidate.item.item_id == item), 0)

    def by_number(self, number: float) -> str | None:
        """The candidate with a number of the prompt, counted from 1, or None if there is none. 3.0 is 3."""
        if not 1 <= number <= self.count or number != int(number):
            return None
        return self._task.candidates[int(number) - 1].item.item_id

    def read(self, text: str) -> Name:
        """The name that a text contains."""
        known = self._by_sid.get(text)
        if known is not None:
            return Name(known, Kind.SID)
        if "&" in text:
            text = html.unescape(text)
        sids = find_sids(text)
        if sids:
            item = self._by_sid.get(sids[0]) if len(set(sids)) == 1 else None
            return Name(item, Kind.SID, self._label_beside(text))
        bare = find_bare_sid(text)
        if bare:
            return Name(self._by_sid.get(bare), Kind.SID, self._label_beside(text))
        whole = self._by_words(text)
        leading = None if whole.kind else _LEADING.match(text)
        # "3. Comb" has a number beside a title, and "3 Combs" is a title that no candidate has.
        if leading is None or not leading[0][-1].isspace() or leading[0].rstrip()[-1].isdigit():
            return whole
        return self._by_words(text[leading.end() :])._replace(label=self._plausible(leading["number"]))

    def _by_words(self, text: str) -> Name:
        """The name in a text without semantic IDs: a number, a title, or no name."""
        titles = self._titles()
        title = normal_title(text)
        number = read_number(text)
        by_number = None if number is None else self.by_number(number)
        word = _word(text)
        if title in titles:
            # "7" may be a title or a number, but "Product 7" can only be the title.
            item = titles[title]
            return Name(item if word or by_number in (None, item) else None, Kind.TITLE)
        if number is None:
            return Name(None)
        # If titles look like "Item 17", then "Item 3" is a title that the prompt does not have, and not a number.
        if word and any(_word(known) == word for known in titles):
            return Name(None, Kind.TITLE)
        return Name(by_number, Kind.NUMBER)

    def _label_beside(self, text: str) -> int | None:
        """The number beside a semantic ID, if it comes first, is called a rank, or is the only other word.

        Raises UnreadableError if there are two different numbers.
        """
        words = _TOKEN.sub(" ", text[:_LONGEST_ENTRY]).strip()
        if not words or normal_title(words) in self._titles():
            return None
        alone = _NO_WORDS.sub("", words)
        matches = [_LEADING.match(text), _RANK_WORD.search(words), _DIGITS.fullmatch(alone)]
        labels = {label for match in matches if match and (label := self._plausible(match["number"])) is not None}
        if len(labels) > 1:
            raise UnreadableError(ParseReason.AMBIGUOUS, f"an entry has two numbers: {shown(text)}")
        return labels.pop() if labels else None

    def _plausible(self, digits: str) -> int | None:
        """The label, or None if it is greater than any rank, as a year or a price may be."""
        return int(digits) if int(digits) <= max(self.count, 10) else None

    def _titles(self) -> dict[str, str | None]:
        """Item ids by title. None for a title that several candidates share, or that only the history has."""
        # Computed on demand, because few answers use titles.
        if self._by_title is None:
            self._by_title = dict.fromkeys(normal_title(item.title or "") for item in self._task.history)
            seen: set[str] = set()
            for candidate in self._task.candidates:
                title = normal_title(candidate.item.title or "")
                self._by_title[title] = None if title in seen else candidate.item.item_id
                seen.add(title)
            self._by_title.pop("", None)
        return self._by_title


def read_number(text: str) -> int | None:
    """The number in a text such as "3", "[3]", "#3", "3.0" or "Item 3". None for any other text."""
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    return int(match["number"]) if match else None


def normal_title(title: str) -> str:
    """A title without differences of writing: case, spaces, HTML entities, composed or decomposed letters."""
    if "&" in title:
        # Twice, because catalogues contain "&amp;" and their pages escape it once more.
        title = html.unescape(html.unescape(title))
    return " ".join(unicodedata.normalize("NFKC", title).casefold().split())


def _word(text: str) -> str:
    """The word before the number in a text that `read_number` reads, such as "item" in "Item 3", or the empty text."""
    match = _NUMBER.fullmatch(text) if len(text) <= _LONGEST_NUMBER else None
    return (match["word"] or "").rstrip(" .:#_").casefold() if match else ""
