"""Parses the times that logs contain: unix time in any unit, dates in digits, ISO 8601, e-mail and C dates.

All results are in UTC. This module knows neither files nor columns.
"""

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

_LATEST = datetime(2200, 1, 1)  # noqa: DTZ001
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001
_WANTED = "it must be unix time or ISO 8601, or a date such as 20140513"
DATE_ORDERS = ("auto", "day-first", "month-first")
# Day and month in digits, in an order that only other dates of the file can show, and optionally the time of day.
_NUMERIC_DATE = re.compile(
    r"(?P<first>\d{1,2})(?P<sign>[/.-])(?P<second>\d{1,2})(?P=sign)(?P<year>\d{4})"
    r"(?:[ T,]{1,2}(?P<clock>\d{1,2}:\d{2}(?::\d{2})?)(?: ?(?P<half>[AaPp][Mm]))?)?",
    re.ASCII,
)
# Numbers with this many digits are dates if they can be. As seconds, 20140513 would be a day in August 1970.
_DIGITS = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
# Dates in which the order of day and month is clear: first Goodreads and Twitter, then C, Amazon 2014, and other forms.
_PATTERNS = (
    "%a %b %d %H:%M:%S %z %Y",
    "%a %b %d %H:%M:%S %Y",
    "%m %d, %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%d-%b-%Y",
    "%d %b %Y",
    "%d %B %Y",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d %H:%M:%S %z",
    "%Y/%m/%d",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y.%m.%d",
    "%b %d, %Y %H:%M:%S",
    "%d-%b-%Y %H:%M:%S",
    "%d/%b/%Y:%H:%M:%S %z",
)


def read_numeric_date(value: Any) -> tuple[int, int] | None:
    """The first two numbers of a date such as 31/12/2019, which are day and month or month and day.

    None for any other value.

    >>> read_numeric_date("12/31/2019 23:59")
    (12, 31)
    """
    match = _NUMERIC_DATE.fullmatch(value.strip()) if isinstance(value, str) else None
    return (int(match["first"]), int(match["second"])) if match else None


def parse_numeric_date(text: str, *, day_first: bool) -> datetime:
    """Parse a date that `read_numeric_date` recognises, in UTC. Raises ValueError if there is no such day."""
    match = _NUMERIC_DATE.fullmatch(text.strip())
    if match is None:
        raise ValueError(_WANTED)
    day, month = (match["first"], match["second"]) if day_first else (match["second"], match["first"])
    clock, half = match["clock"] or "0:00", match["half"]
    pattern = ("%I" if half else "%H") + (":%M:%S" if clock.count(":") == 2 else ":%M") + (" %p" if half else "")
    return datetime.strptime(  # noqa: DTZ007
        f"{match['year']}-{month}-{day} {clock}{f' {half}' if half else ''}", f"%Y-%m-%d {pattern}"
    )


def parse_time(value: Any) -> datetime | None:
    """A moment in UTC, without a time zone. None and empty text give None. Times without a zone are taken as UTC.

    Numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, depending on their size. Numbers of 8, 12
    or 14 digits that begin with a year from 1900 to 2199 are dates. Raises ValueError on any other value, and on years
    from 2200 on.

    >>> parse_time("20140513")
    datetime.datetime(2014, 5, 13, 0, 0)
    """
    if value is None or value == "":
        return None
    if isinstance(value, str):
        # A short cut for seconds since 1973, which most logs have.
        if 9 <= len(value) <= 10 and value.isdecimal():
            return _EPOCH + timedelta(seconds=int(value))
        moment = _parse_text(value.strip())
    elif isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime(value.year, value.month, value.day)  # noqa: DTZ001
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        moment = _parse_number(value)
    else:
        raise ValueError(_WANTED)
    moment = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    if moment >= _LATEST:
        raise ValueError("it is after the year 2200")
    return moment


def _parse_text(text: str) -> datetime:
    if text.isascii() and text.isdigit():
        return _parse_number(int(text))
    try:
        number = float(text)
    except ValueError:
        pass
    else:
        return _parse_number(number)
    bare = text[:-4] if text[-4:] in (" UTC", " GMT") else text
    for parse in _PARSERS:
        try:
            # Without a zone, a time is UTC in any case.
            return parse(bare)
        except (ValueError, TypeError, IndexError):
            continue
    raise ValueError(_WANTED)


def _parse_number(number: float | Decimal) -> datetime:
    if not 0 <= number < 1e20:  # NaN fails too
        raise ValueError("it must be unix time from 1970 on, or a date such as 20140513")
    whole = int(number)
    if whole == number and 1900 <= int(str(whole)[:4]) < 2200 and (pattern := _DIGITS.get(len(str(whole)))):
        try:
            return datetime.strptime(str(whole), pattern)  # noqa: DTZ007
        except ValueError:
            # 12 or 14 digits that are not a valid date may be milliseconds.
            if pattern == _DIGITS[8]:
                raise ValueError("its eight digits must be a date, as in 20140513") from None
    if number < 1e11:
        microseconds = whole * 1_000_000 + round((number - whole) * 1_000_000)
    elif number < 1e14:
        microseconds = whole * 1000 + round((number - whole) * 1000)
    else:
        microseconds = whole if number < 1e17 else whole // 1000
    return _EPOCH + timedelta(microseconds=microseconds)


def _strptime(pattern: str) -> Callable[[str], datetime]:
    return lambda text: datetime.strptime(text, pattern)  # noqa: DTZ007


def _parse_named_zone(text: str) -> datetime:
    """Parse the output of date(1), such as Tue May 13 16:53:20 UTC 2014."""
    words = text.split()
    if len(words) != 6 or words[4] not in ("UTC", "GMT"):
        raise ValueError(_WANTED)
    return datetime.strptime(" ".join((*words[:4], words[5])), "%a %b %d %H:%M:%S %Y")  # noqa: DTZ007


_PARSERS: tuple[Callable[[str], datetime], ...] = (
    datetime.fromisoformat,
    *map(_strptime, _PATTERNS),
    _parse_named_zone,
    parsedate_to_datetime,
)
