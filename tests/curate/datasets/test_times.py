from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.datasets.times import parse_time

MOMENT = datetime(2014, 5, 13, 16, 53, 20)  # noqa: DTZ001
DAY = datetime(2014, 5, 13)  # noqa: DTZ001


@pytest.mark.parametrize(
    "value",
    [
        *(1_400_000_000, "1400000000", "1400000000.0", 1.4e9, Decimal(1_400_000_000), "1.4e9"),
        *(1_400_000_000_000, "1400000000000", 1_400_000_000_000_000, "1400000000000000000", 1_400_000_000_000_000_000),
        *("2014-05-13T16:53:20Z", "2014-05-13 18:53:20+02:00", "2014-05-13 16:53:20 UTC", "2014-05-13 16:53:20 GMT"),
        *("2014-05-13 16:53:20 +0000 UTC", "20140513T165320Z", "20140513165320"),
        *("Tue May 13 09:53:20 -0700 2014", "Tue May 13 16:53:20 2014", "Tue May 13 16:53:20 UTC 2014"),
        *("Tue, 13 May 2014 09:53:20 -0700", "Tue, 13 May 2014 16:53:20 GMT", "13 May 2014 16:53:20 GMT"),
        *("Tue, 13 May 2014 11:53:20 EST", "2014/05/13 16:53:20"),
        datetime(2014, 5, 13, 16, 53, 20, tzinfo=UTC),
    ],
)
def test_a_moment_is_read_however_it_is_written(value: Any) -> None:
    assert parse_time(value) == MOMENT


@pytest.mark.parametrize(
    "value",
    [
        *(20140513, "20140513", 20140513.0, "20140513.0", "2014-05-13", date(2014, 5, 13), "05 13, 2014"),
        *("13-May-2014", "May 13, 2014", "13 May 2014", "2014/05/13", "201405130000"),
    ],
)
def test_a_day_is_its_first_moment(value: Any) -> None:
    assert parse_time(value) == DAY


@given(st.dates(date(1900, 1, 1), date(2199, 12, 31)))
def test_eight_digits_are_always_a_date_and_never_seconds(day: date) -> None:
    for value in (int(f"{day:%Y%m%d}"), f"{day:%Y%m%d}"):
        assert parse_time(value) == datetime(day.year, day.month, day.day)  # noqa: DTZ001


def test_fractions_of_a_second_are_kept_to_the_microsecond() -> None:
    for value in ("2014-05-13T16:53:20.123456789Z", 1_400_000_000_123_456_789, "1400000000123456"):
        assert parse_time(value) == MOMENT.replace(microsecond=123456)
    assert parse_time("1400000000.5") == MOMENT.replace(microsecond=500000)


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_is_no_time(value: Any) -> None:
    assert parse_time(value) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("soon", "must be unix time or ISO 8601"),
        # Nobody can tell the day from the month.
        ("05/06/2014", "must be unix time or ISO 8601"),
        ("16:53:20", "must be unix time or ISO 8601"),
        (True, "must be unix time"),
        (["2014"], "must be unix time"),
        (-5, "from 1970 on"),
        (float("nan"), "from 1970 on"),
        ("inf", "from 1970 on"),
        ("20141399", "its eight digits must be a date"),
        ("2500-01-01", "in the year 2200 or later"),
    ],
)
def test_what_is_no_time_says_what_is(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_time(value)
