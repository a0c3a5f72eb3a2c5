from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from store.values import storable_text, utc_now


def test_now_is_utc_without_a_zone() -> None:
    now = utc_now()
    assert now.tzinfo is None
    assert abs(now.replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(minutes=1)


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_encodable_and_good_text_stays(text: str) -> None:
    stored = storable_text(text)
    assert storable_text(stored.encode().decode()) == stored
    assert len(stored) <= len(text)
    assert "\0" not in stored
    if not any("\ud800" <= letter <= "\udfff" or letter == "\0" for letter in text):
        assert stored == text
