"""Dates such as 03/04/2019: what the whole file tells of the order of day and month."""

from datetime import datetime
from pathlib import Path

import pytest

from curate.datasets.formats import read_interactions
from store import InputError


def times(path: Path, dates: list[str], date_order: str = "auto") -> list[datetime]:
    path.write_text("user_id\titem_id\ttimestamp\n" + "".join(f"u\ti{n}\t{date}\n" for n, date in enumerate(dates)))
    return [row for chunk in read_interactions(path, date_order=date_order) for row in chunk["timestamp"].to_pylist()]


def day(year: int, month: int, day: int, *clock: int) -> datetime:
    return datetime(year, month, day, *clock)  # noqa: DTZ001


@pytest.mark.parametrize("sign", ["/", "-", "."])
def test_a_number_over_12_tells_the_order_for_all_dates_of_the_file(tmp_path: Path, sign: str) -> None:
    dates = [date.replace("/", sign) for date in ("03/04/2019", "31/12/2019", "1/2/2020")]
    assert times(tmp_path / "f", dates) == [day(2019, 4, 3), day(2019, 12, 31), day(2020, 2, 1)]
    dates = [date.replace("/", sign) for date in ("03/04/2019", "12/31/2019", "1/2/2020")]
    assert times(tmp_path / "f", dates) == [day(2019, 3, 4), day(2019, 12, 31), day(2020, 1, 2)]


def test_a_time_of_day_may_follow(tmp_path: Path) -> None:
    dates = ["31/12/2019 23:59", "31/12/2019 1:02:03", "31/12/2019 12:30 AM", "31/12/2019, 1:05 pm"]
    clocks = [(23, 59), (1, 2, 3), (0, 30), (13, 5)]
    assert times(tmp_path / "f", dates) == [day(2019, 12, 31, *clock) for clock in clocks]


@pytest.mark.parametrize("dates", [["03/04/2019", "12/12/2019"], ["03/04/2019", "31/12/2019", "12/31/2019"]])
def test_what_the_file_does_not_tell_is_asked(tmp_path: Path, dates: list[str]) -> None:
    with pytest.raises(InputError, match=r"f:2: .*'03/04/2019'.*set `date_order` to day-first or month-first"):
        times(tmp_path / "f", dates)


def test_the_setting_decides(tmp_path: Path) -> None:
    assert times(tmp_path / "f", ["03/04/2019"], "day-first") == [day(2019, 4, 3)]
    assert times(tmp_path / "f", ["03/04/2019"], "month-first") == [day(2019, 3, 4)]
    with pytest.raises(InputError, match="f:3: timestamp is '31/12/2019'"):
        times(tmp_path / "f", ["03/04/2019", "31/12/2019"], "month-first")
