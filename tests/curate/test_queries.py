import pytest

from curate.queries import run_sql
from store import InputError, Store


def test_rows_come_back(tiny: Store) -> None:
    assert run_sql(tiny, "select count(*) as items from items").to_dicts() == [{"items": 12}]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select nope from items", "nope"),
        ("selec 1", "syntax error"),
        ("drop table items", "read-only"),
        ("copy items to 'x.csv'", "disabled"),
        ("", "no rows"),
    ],
)
def test_what_fails_says_why_in_duckdbs_words(tiny: Store, query: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_sql(tiny, query)
