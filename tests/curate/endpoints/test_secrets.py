import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.endpoints.secrets import PART, Secrets

KEY = "sk-Proj-0123456789abcdef"
LETTERS = st.text("skxyz-0123 İß\n", max_size=30)


@given(LETTERS, st.integers(0, 15), st.integers(8, 24), st.booleans(), LETTERS)
def test_no_part_of_a_secret_is_left_in_any_case(before: str, start: int, length: int, upper: bool, after: str) -> None:
    part = KEY[start : start + length]
    text = before + (part.upper() if upper else part) + after
    masked = Secrets([KEY]).mask(text).lower()
    for at in range(len(KEY) - PART + 1):
        assert KEY[at : at + PART].lower() not in masked


def test_the_rest_of_a_text_stays() -> None:
    secrets = Secrets([KEY, "other-secret"])
    assert secrets.mask(f"İ{KEY}{KEY} and other-secretive") == "İ[key] and [key]ive"
    assert secrets.mask("0123456, which is short") == "0123456, which is short"


@pytest.mark.parametrize("key", ["EMPTY", "none", "", "sk-no-key-required", "not-needed", "lm-studio", "dummy-key"])
def test_a_placeholder_is_no_secret(key: str) -> None:
    text = "EMPTY none, not-needed; a dummy-key is not required in lm-studio"
    assert Secrets([key]).mask(text) == text
