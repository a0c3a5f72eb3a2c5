"""Converts values of users' files into the values of a dataset: identifiers, texts, categories and numbers.

Each function takes a value of any type. It raises ValueError, without the value, if it cannot convert the value. This
module knows neither files nor columns.
"""

import ast
import html
import math
import re
from decimal import Decimal
from functools import lru_cache
from typing import Any

# In lower case and without the characters of _AROUND, so these also match (no genres listed), <NA>, #N/A and N.A.
_NOTHING = frozenset(
    {
        *("", "unknown", "n/a", "na", "n.a", "nan", "nat", "none", "null", "undefined", "\\n"),
        *("no genres listed", "no genre", "no genres", "no category", "no categories", "uncategorized"),
        *("not available", "not applicable", "not specified", "not provided", "unspecified", "no data", "no title"),
        *("no brand", "no name", "unknown brand", "unknown title", "unknown author", "unknown artist"),
    }
)
# What programs write for a missing identifier. Without this check, all such lines would become one user or item.
_MISSING = frozenset({"nan", "NaN", "NAN", "<NA>", "NaT", "None", "null", "NULL", "\\N"})
# Longer texts are never placeholders, so they are not checked.
_LONGEST = 40
_AROUND = "()[]{}<>#-?.*'\" \t\r\n\xa0"
_TAGS = (
    "a|abbr|b|big|blockquote|body|br|button|center|cite|code|del|div|dd|dl|dt|em|font|form|h[1-6]|head|hr|html|i|iframe"
    "|img|input|ins|label|li|link|mark|meta|ol|p|pre|q|s|script|section|small|span|strike|strong|style|sub|sup|svg|table"
    "|tbody|td|th|thead|tr|tt|u|ul|video"
)
# Only HTML tags, because "Love <3" and "<Untitled>" are titles.
_MARKUP = re.compile(rf"<(script|style)\b[^<>]*>.*?</\1\s*>|<!--.*?-->|</?(?:{_TAGS})(?:\s[^<>]*)?/?>", re.I | re.S)
_BREAKS = re.compile(r"<\s*/?\s*(br|p|div|li|tr|td|h[1-6])\b", re.I)
_QUOTED = re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")
_ROUNDED = re.compile(r"[+-]?\d+(\.\d+)?e\+?\d+", re.I)
_SIGNS_AND_DIGITS = frozenset("+-0123456789")
_EXACT_FLOAT = 2**53


def is_nothing(text: str) -> bool:
    """Whether a text says that there is no value, such as an empty text, N/A or (no genres listed).

    >>> is_nothing("(no genres listed)"), is_nothing("Nothing but Thieves")
    (True, False)
    """
    return len(text) <= _LONGEST and text.strip(_AROUND).lower() in _NOTHING


def to_identifier(value: Any) -> str:
    """Convert a value to an identifier, which is a text. 5, 5.0 and "5.0" all become "5"; "007" stays.

    Raises ValueError on a number that has lost digits as a float, because it may stand for several identifiers.
    """
    if isinstance(value, str):
        text = value.strip()
        if not text.isdecimal() and text[:1] in _SIGNS_AND_DIGITS:
            text = _whole(text)
    elif isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
    elif isinstance(value, float | Decimal) and math.isfinite(value) and value == int(value):
        if isinstance(value, float) and abs(value) > _EXACT_FLOAT:
            raise ValueError("a float of this size has lost digits; write identifiers as whole numbers or texts")
        text = str(int(value))
    elif isinstance(value, bytes):
        text = _decode(value)
    else:
        raise ValueError("it must be text or a whole number")
    if not text:
        raise ValueError("it must not be empty")
    if text in _MISSING:
        raise ValueError("it marks a missing value; leave the line out, or give it an identifier")
    return text


def _whole(text: str) -> str:
    """Turn 5.0 into 5. Data frames store whole numbers as floats if a value is missing."""
    if text.endswith(".0") and text[:-2].removeprefix("-").isdecimal():
        return text[:-2]
    if _ROUNDED.fullmatch(text):
        raise ValueError("a number with an exponent has lost digits; write identifiers as whole numbers or texts")
    return text


def to_text(value: Any) -> str | None:
    """Convert a value to text without HTML, or None if it says that there is no value.

    A list of texts is joined, and an object is replaced by its name.
    """
    if isinstance(value, dict):
        value = value.get("name")
    if isinstance(value, list):
        value = " ".join(part for part in value if isinstance(part, str))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        value = _decode(value)
    if not isinstance(value, str | int | float | Decimal):
        raise ValueError("it must be text")
    text = _without_html(str(value)).strip()
    return None if is_nothing(text) else text


def to_categories(value: Any) -> list[str]:
    """Convert a value to a category path from general to specific, which is empty if there is none.

    The value is a list, a list of lists (Amazon 2014; the longest is used), or a text. A text is `a > b > c`, `a|b|c`,
    or a list as Python or JSON writes it. An object is replaced by its name.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return []
    if isinstance(value, bytes):
        value = _decode(value)
    if isinstance(value, str):
        value = split_categories(value)
    if isinstance(value, int | dict) and not isinstance(value, bool):
        value = [value]
    if not isinstance(value, list):
        raise ValueError("it must be a list or a text such as 'a > b > c'")
    if value and all(isinstance(path, list) for path in value):
        value = max(value, key=len)
    texts = [part if isinstance(part, str) else _name(part) for part in value]
    return [category for text in texts if (category := _category(text))]


def _name(part: Any) -> str:
    """The name of a category that is not a text: the object's name, or an empty text if there is no value."""
    if isinstance(part, dict):
        part = part.get("name", part.get("description"))
    if part is None or (isinstance(part, float) and math.isnan(part)):
        return ""
    if not isinstance(part, str | int) or isinstance(part, bool):
        raise ValueError("each category must be text")
    return str(part)


@lru_cache(maxsize=1 << 16)
def _category(text: str) -> str:
    """One category, or an empty text if it says that there is none.

    It is cached, because a catalogue has few categories and repeats them often.
    """
    text = _without_html(text).strip()
    return "" if is_nothing(text) else text


def split_categories(text: str, separators: str = "") -> list[Any]:
    """The parts of a text that lists categories.

    separators: characters that may separate them besides `>` and `|`, the preferred one first. A blank stands for any
    white space.
    """
    text = _without_html(text).strip()
    if text[:1] + text[-1:] in ("[]", "{}", "()") and not is_nothing(text):
        return _parse_list(text)
    for separator in (">", "|", *separators):
        if separator != " " and separator in text:
            # RecBole's conversions quote each category: 'Action', 'Crime'.
            quoted = separator == "," and text[0] in "'\"" and text[-1] == text[0]
            return _parse_list(text) if quoted else text.split(separator)
    if " " in separators:
        return _parse_list(text) if text[:1] in ("'", '"') and text[-1] == text[0] else text.split()
    return [text]


def _parse_list(text: str) -> list[Any]:
    """The parts of a list as Python, JSON, NumPy or RecBole writes it."""
    if "{" in text[1:]:
        try:
            literal = ast.literal_eval(text.replace(": null", ": None"))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
        else:
            if isinstance(literal, list | tuple):
                return list(literal)
    quoted = [one or other for one, other in _QUOTED.findall(text)]
    if quoted:
        return [re.sub(r"\\(.)", r"\1", part) for part in quoted]
    return re.split(r"[,\s]+" if re.fullmatch(r"[\d\s,.\[\](){}-]+", text) else ",", text[1:-1])


def to_number(value: Any) -> float | None:
    """Convert a value to a finite number. None, an empty text, or a word such as N/A gives None."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError("it must be a number")
    try:
        number = float(value)
    except ValueError:
        if isinstance(value, str) and is_nothing(value):
            return None
        raise ValueError("it must be a number") from None
    if not math.isfinite(number):
        raise ValueError("it must be a number")
    return number


def to_rating(value: Any) -> float | None:
    """Convert a value to a number, or None for a missing one.

    NaN is missing too, because these ratings are not used. If they are, use `to_number`, which rejects NaN.
    """
    if value is None:
        return None
    try:
        return None if math.isnan(float(value)) else to_number(value)
    except (ValueError, TypeError):
        return to_number(value)


def to_whole_number(value: Any) -> int | None:
    """Convert a value to a whole number below 2^62, or None for a missing one."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 19:
        return int(value)
    number = to_number(value)
    if number is None:
        return None
    if not number.is_integer() or abs(number) >= 2**62:
        raise ValueError("it must be a whole number")
    return int(number)


def _without_html(text: str) -> str:
    """A text without tags, and with HTML entities decoded, also those that were encoded twice."""
    if "&" in text:
        for _ in range(2):
            text = html.unescape(text)
        text = text.replace("\xa0", " ")
    if "<" in text and _MARKUP.search(text):
        text = _MARKUP.sub(lambda tag: " " if _BREAKS.match(tag[0]) else "", text)
        text = re.sub(r" {2,}", " ", text)
    return text


def _decode(value: bytes) -> str:
    try:
        return value.decode().strip()
    except UnicodeDecodeError:
        return value.hex()
