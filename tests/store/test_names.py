import pytest

from store import InputError
from store.names import check_name, is_name


@pytest.mark.parametrize("name", ["beauty", "beauty-2.1", "a_b", "Käufe", "x" * 100, "1", "a..b"])
def test_letters_digits_dots_hyphens_and_underscores_make_a_name(name: str) -> None:
    check_name("snapshot", name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a b", "a/b", "../x", "a\\b", "a@1", "a:b", "a*b", "run[1]", "a\n", "a\x00", "x" * 101],
)
def test_anything_else_is_refused_in_one_line(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(InputError, match="cannot name a queue: use 1 to 100 letters") as refused:
        check_name("queue", name)
    assert "\n" not in str(refused.value)
