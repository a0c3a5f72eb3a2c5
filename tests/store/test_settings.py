from dataclasses import dataclass

import pytest

from store import InputError
from store.settings import check, option, options_of


@dataclass(frozen=True, slots=True)
class Settings:
    dataset: str
    limit: int | None = option(None, help="Maximum number of lists.", low=1)
    share: float = option(0.5, help="Share of lists.", low=0.0, high=1.0)
    splits: tuple[str, ...] = option(("train",), help="Splits.", choices=("train", "valid", "test"))
    size: int = option(2, low=2, high=65_536)

    def __post_init__(self) -> None:
        check(self)


def test_the_first_value_that_is_not_allowed_is_named_by_its_field() -> None:
    Settings("shop", limit=1, share=0, splits=("test", "valid"), size=65_536)
    for values, message in (
        ({"limit": 0, "share": 2}, r"^`limit` is 0; it must be 1 or more$"),
        ({"share": 1.5}, r"^`share` is 1\.5; it must be from 0 to 1$"),
        ({"share": float("nan")}, r"^`share` is nan; it must be from 0 to 1$"),
        ({"splits": ("train", "tset")}, r"^`splits` is 'tset'; it must be train, valid or test$"),
        ({"size": 1}, r"^`size` is 1; it must be from 2 to 65,536$"),
    ):
        with pytest.raises(InputError, match=message):
            Settings("shop", **values)  # type: ignore[arg-type]


def test_options_are_told_by_class_and_by_object() -> None:
    assert list(options_of(Settings)) == ["limit", "share", "splits", "size"]
    assert options_of(Settings("shop")) == options_of(Settings)
    assert options_of(Settings)["size"].help is None
