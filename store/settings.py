"""Options of a settings dataclass: default, range, choices and help text in one place, the field itself.

`check` holds a dataclass to them, and the command line is built from them (`app.commands`). Error messages name a field
in backticks: `max_attempts`. That its flag is --max-attempts is known to the command line alone.
"""

from dataclasses import MISSING, field, fields
from typing import Any, NamedTuple

from store.errors import InputError

_KEY = "option"


class Option(NamedTuple):
    """What a field may be, and what people read about it.

    help: a noun phrase or an imperative, with the unit; None where a field is not offered on the command line. low,
    high: the range, both inclusive, None for no bound. choices: the only values allowed, empty where any will do.
    group: the heading under which it is listed. flag: its name on the command line where that is not the field's.
    """

    help: str | None = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    group: str | None = None
    flag: str | None = None

    @property
    def allowed(self) -> str:
        """The range or the choices in words; empty where everything is allowed.

        >>> Option(low=1, high=65_536).allowed
        'from 1 to 65,536'
        """
        if self.choices:
            return " or ".join(part for part in (", ".join(self.choices[:-1]), self.choices[-1]) if part)
        if self.high is not None:
            return f"from {_number(self.low or 0)} to {_number(self.high)}"
        return f"{_number(self.low)} or more" if self.low is not None else ""

    def accepts(self, value: Any) -> bool:
        """Whether a value lies within the range and the choices; not a number does not."""
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
    """A field of a settings dataclass; the arguments are described by `Option`.

    >>> limit: int | None = option(None, help="Maximum number of candidate lists.", low=1)
    """
    return field(default=default, metadata={_KEY: Option(help, low, high, choices, group, flag)})


def options_of(settings: Any) -> dict[str, Option]:
    """The options of a settings dataclass or of one of its objects, by field, in their order."""
    return {each.name: each.metadata[_KEY] for each in fields(settings) if _KEY in each.metadata}


def check(settings: Any) -> None:
    """Hold every option to its range and choices; of a tuple, every element. None stands for "not given".

    Raises InputError on the first value that is not allowed.
    """
    for name, known in options_of(settings).items():
        value = getattr(settings, name)
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and not known.accepts(each):
                raise InputError(f"`{name}` is {each!r}; it must be {known.allowed}")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
