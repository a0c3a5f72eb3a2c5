"""The text form of semantic IDs: `<|sid_begin|><s_a_57><s_b_7><s_c_23><s_d_4><|sid_end|>`.

One letter per level, one code per letter, in order; the vocabulary of OneRec-Think, which the GR2 paper uses. It does
not know which IDs exist.
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
# Models put blanks and line ends between tokens; the pattern leaves one way to match, so it stays linear.
_SID = re.compile(r"<\|sid_begin\|>\s*((?:<s_[a-z]_\d{1,5}>\s*)+)<\|sid_end\|>")
_BARE = re.compile(r"(?:<s_[a-z]_\d{1,5}>\s*)+")


def render_sid(codes: Sequence[int]) -> str:
    """Codes, one per level from the first on, as text.

    >>> render_sid([57, 7])
    '<|sid_begin|><s_a_57><s_b_7><|sid_end|>'

    Raises ValueError on no code, more than 26, or one outside 0 to 65,535.
    """
    if not 1 <= len(codes) <= MAX_LEVELS:
        raise ValueError(f"a semantic ID has 1 to {MAX_LEVELS} codes, not {len(codes)}")
    for code in codes:
        if not 0 <= code <= MAX_CODE:
            raise ValueError(f"code {code} is outside 0 to {MAX_CODE}")
    return BEGIN + "".join(map("<s_{}_{}>".format, ascii_lowercase, codes)) + END


def parse_sid(text: str) -> tuple[int, ...] | None:
    """The codes of a text that is one semantic ID and nothing else but blanks; None for any other text.

    >>> parse_sid("<|sid_begin|> <s_a_57> <s_b_7> <|sid_end|>")
    (57, 7)
    """
    found = _SID.fullmatch(text.strip())
    return _codes(found[1]) if found else None


def find_sids(text: str) -> list[str]:
    """All semantic IDs in a text, in order, in canonical form; what is malformed is passed over."""
    if BEGIN not in text:
        return []
    return [sid for body in _SID.findall(text) if (sid := _canonical(body))]


def find_sid_spans(text: str) -> list[tuple[int, int, str]]:
    """Where semantic IDs stand in a text: first character, the one after the last, canonical form."""
    if BEGIN not in text:
        return []
    return [(*found.span(), sid) for found in _SID.finditer(text) if (sid := _canonical(found[1]))]


def find_bare_sid(text: str) -> str | None:
    """The canonical form of a text's codes where it has one run of them without begin and end; else None."""
    runs = _BARE.findall(text)
    return _canonical(runs[0]) if len(runs) == 1 else None


def sid_tokens(levels: int, codebook_size: int) -> list[str]:
    """All tokens that semantic IDs are made of: begin, end, then the codes level by level."""
    return [BEGIN, END] + [
        f"<s_{letter}_{code}>" for letter in ascii_lowercase[:levels] for code in range(codebook_size)
    ]


@lru_cache(maxsize=1 << 16)
def _canonical(body: str) -> str | None:
    """The ID that a run of codes stands for; kept, since traces cite the same items over and over."""
    codes = _codes(body)
    return render_sid(codes) if codes else None


def _codes(body: str) -> tuple[int, ...] | None:
    pairs = _CODE.findall(body)
    letters = "".join(letter for letter, _ in pairs)
    codes = tuple(int(code) for _, code in pairs)
    return codes if letters == ascii_lowercase[: len(letters)] and max(codes) <= MAX_CODE else None
