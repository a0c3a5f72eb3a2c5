"""The rule for names that users give to datasets, snapshots, students, queues and rulesets.

Names are used in tables, file names, page addresses and references such as NAME@VERSION. Every name that the rule
accepts is safe in each of these places.
"""

import re

from store.errors import InputError

_NAME = re.compile(r"(?!\.)[\w.-]{1,100}")


def is_name(text: str) -> bool:
    """Whether a text is 1 to 100 letters, digits, '.', '-' and '_', and does not start with '.'.

    >>> [is_name(text) for text in ("beauty-2.1", ".hidden", "a/b", "")]
    [True, False, False, False]
    """
    return _NAME.fullmatch(text) is not None


def check_name(kind: str, name: str) -> None:
    """Raise InputError if a name is not allowed. kind: the kind of the named thing, such as "snapshot"."""
    if not is_name(name):
        raise InputError(
            f"{name!r} cannot name a {kind}: use 1 to 100 letters, digits, '.', '-' and '_', and do not start with '.'"
        )
