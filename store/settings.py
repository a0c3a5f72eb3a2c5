"""Options of a settings dataclass. Each field defines its default, range, choices and help text in one place.

`check` validates a dataclass, and the command line is built from its options (`app.commands`). Error messages name a
field in backticks, such as `max_attempts`. Only the command line knows that its flag is --max-attempts.
"""

from dataclasses import MISSING, field, fields
from typing import Any, NamedTuple

from store.errors import InputError

_KEY = "option"


class Option(NamedTuple):
    """The allowed values of a field, and its description for users.

    help: a noun phrase or an imperative, with the unit; None if the field is not offered on the command line. low,
    high: the range, both inclusive; None for no bound. choices: the allowed values; empty if any value is allowed.
    group: the heading under which the option is listed. flag: the name on the command line, if it differs from the
    field's.
    """

    help: str | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    group: str | None = None
    flag: str | None = None

    @property
    def allowed(self) -> str:
        """The range or the choices in words. Empty if everything is allowed.

        >>> Option(low=1, high=65_536).allowed
        'from 1 to 65,536'
        """
        if self.choices:
            return " or ".join(part for part in (", ".join(self.choices[:-1]), self.choices[-1]) if part)
        if self.high is not None:
            return f"from {_number(self.low or 0)} to {_number(self.high)}"
        return f"{_number(self.low)} or more" if self.low is not None else ""

    def accepts(self, value: Any) -> bool:
        """Whether a value is within the range and the choices. NaN is outside of every range."""
        return (
            (not self.choices or value in self.choices)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
        )


def option(
    default: Any = MISSING,
    *,
    help: str | None = None,  # noqa: A002
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    group: str | None = None,
    flag: str | None = None,
) -> Any:
    """Return a field of a settings dataclass. The arguments are described by `Option`.

    >>> limit: int | None = option(None, help="Maximum number of candidate lists.", low=1)
    """
    return field(default=default, metadata={_KEY: Option(help, low, high, choices, group, flag)})


def options_of(settings: Any) -> dict[str, Option]:
    """The options of a settings dataclass or of one of its objects, by field name and in field order."""
    return {each.name: each.metadata[_KEY] for each in fields(settings) if _KEY in each.metadata}


def check(settings: Any) -> None:
    """Check the value of every option, or every element if the value is a tuple. None means "not given" and is allowed.

    Raises InputError on the first value that is not allowed.
    """
    for name, field_option in options_of(settings).items():
        value = getattr(settings, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and not field_option.accepts(each):
                raise InputError(f"`{name}` is {each!r}; it must be {field_option.allowed}")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
