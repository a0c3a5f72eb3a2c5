"""The text form of semantic IDs: `<|sid_begin|><s_a_57><s_b_7><s_c_23><s_d_4><|sid_end|>`.

Each level has a letter, in order, and one code. This is the vocabulary of OneRec-Think, which the GR2 paper uses. The
module does not know which IDs exist.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_lowercase

BEGIN = "<|sid_begin|>"
END = "<|sid_end|>"
MAX_LEVELS = len(ascii_lowercase)
MAX_CODE = 65_535

_CODE = re.compile(r"<s_([a-z])_(\d{1,5})>")
# Models write spaces and line ends between tokens. Any text matches in only one way, so matching takes linear time.
_SID = re.compile(r"<\|sid_begin\|>\s*((?:<s_[a-z]_\d{1,5}>\s*)+)<\|sid_end\|>")
_BARE = re.compile(r"(?:<s_[a-z]_\d{1,5}>\s*)+")


def render_sid(codes: Sequence[int]) -> str:
    """The text form of codes, one per level, beginning with the first level.

    >>> render_sid([57, 7])
    '<|sid_begin|><s_a_57><s_b_7><|sid_end|>'

    Raises ValueError if there are no codes, more than 26, or one outside 0 to 65,535.
    """
    if not 1 <= len(codes) <= MAX_LEVELS:
        raise ValueError(f"a semantic ID has 1 to {MAX_LEVELS} codes, not {len(codes)}")
    for code in codes:
        if not 0 <= code <= MAX_CODE:
            raise ValueError(f"code {code} is outside 0 to {MAX_CODE}")
    return BEGIN + "".join(map("<s_{}_{}>".format, ascii_lowercase, codes)) + END


def parse_sid(text: str) -> tuple[int, ...] | None:
    """The codes of a text that is a single semantic ID, possibly with spaces. None for any other text.

    >>> parse_sid("<|sid_begin|> <s_a_57> <s_b_7> <|sid_end|>")
    (57, 7)
    """
    match = _SID.fullmatch(text.strip())
    return _codes(match[1]) if match else None


def find_sids(text: str) -> list[str]:
    """All semantic IDs in a text, in order and in canonical form. Malformed ones are skipped."""
    if BEGIN not in text:
        return []
    return [sid for body in _SID.findall(text) if (sid := _canonical(body))]


def find_sid_spans(text: str) -> list[tuple[int, int, str]]:
    """The semantic IDs in a text as (start, end, canonical form). `end` is the index after the last character."""
    if BEGIN not in text:
        return []
    return [(*match.span(), sid) for match in _SID.finditer(text) if (sid := _canonical(match[1]))]


def find_bare_sid(text: str) -> str | None:
    """The canonical form of the only run of codes in a text without begin and end tokens.

    None if there are several runs or none.
    """
    runs = _BARE.findall(text)
    return _canonical(runs[0]) if len(runs) == 1 else None


def sid_tokens(levels: int, codebook_size: int) -> list[str]:
    """All tokens of semantic IDs: begin, end, then the codes level by level."""
    return [BEGIN, END] + [
        f"<s_{letter}_{code}>" for letter in ascii_lowercase[:levels] for code in range(codebook_size)
    ]


@lru_cache(maxsize=1 << 16)
def _canonical(body: str) -> str | None:
    """The canonical form of a run of codes, or None. Cached, because traces cite the same items many times."""
    codes = _codes(body)
    return render_sid(codes) if codes else None


def _codes(body: str) -> tuple[int, ...] | None:
    pairs = _CODE.findall(body)
    letters = "".join(letter for letter, _ in pairs)
    codes = tuple(int(code) for _, code in pairs)
    return codes if letters == ascii_lowercase[: len(letters)] and max(codes) <= MAX_CODE else None
