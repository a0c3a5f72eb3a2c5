import pytest

from store.errors import InputError, require_at_least


def test_the_first_option_that_is_too_small_is_named_with_its_value() -> None:
    require_at_least(("limit", None, 1), ("beams", 1, 1), ("temperature", 0.001, 1e-3))
    with pytest.raises(InputError, match=r"^--batch-size is 0; it must be 1 or more$"):
        require_at_least(("limit", None, 1), ("batch-size", 0, 1), ("beams", -1, 1))
    with pytest.raises(InputError, match=r"^--temperature is 0; it must be 0.001 or more$"):
        require_at_least(("temperature", 0, 1e-3))
