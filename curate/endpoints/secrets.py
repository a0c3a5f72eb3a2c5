"""Masks secrets, which must never be shown or stored: keys, and parts of keys."""

import re
import string
from collections.abc import Iterable

# The shortest part of a key that gives something away. A shorter value, such as "EMPTY" in vLLM's examples, is not a
# secret.
PART = 8
MASK = "[key]"
# Placeholders that the documentation of servers without keys suggests. Their words occur in answers as well.
_PLACEHOLDER = re.compile(
    r"(sk-)?(no[-_]?key.*|not?[-_]?(need|requir|us)ed.*|dummy.*|unused|lm-studio|x+)", re.IGNORECASE
)
# ASCII only, because some other letters become more than one character when their case changes.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


class Secrets:
    """Masks secrets in texts, in any case, and every part of them that has eight characters or more."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._parts = {
            low[start : start + PART]
            for low in (secret.translate(_LOWER) for secret in secrets if not _PLACEHOLDER.fullmatch(secret))
            for start in range(len(low) - PART + 1)
        }

    def mask(self, text: str) -> str:
        """The text with each secret replaced by [key].

        >>> Secrets(["sk-0123456789"]).mask("got SK-0123456789, or 23456789 of it")
        'got [key], or [key] of it'
        """
        if not self._parts:
            return text
        low = text.translate(_LOWER)
        masked: list[str] = []
        end = 0  # end of the text that has been masked or copied
        for start in range(len(low) - PART + 1):
            if low[start : start + PART] in self._parts:
                # A part that overlaps or touches the part before it belongs to the same mask.
                if start > end or not masked:
                    masked += [text[end:start], MASK]
                end = start + PART
        return "".join([*masked, text[end:]])
