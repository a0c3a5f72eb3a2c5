"""Saved queries: the examples that come with gr2, and the queries that people saved on the page SQL."""

from typing import NamedTuple

from store import InputError, Store
from store.queries import query as named_statement
from store.values import storable_text, utc_now

MOST_CHARACTERS = 10_000
MOST_NAME_CHARACTERS = 100

_EXAMPLES = {
    "Funnel by template and teacher": "example_funnel",
    "Hardest prompts": "example_hardest_prompts",
    "Why traces fail": "example_why_traces_fail",
    "Target before and after": "example_target_before_and_after",
    "Cost per accepted trace": "example_cost_per_accepted_trace",
    "Labels against rulesets": "example_labels_against_ruleset",
}


class SavedQuery(NamedTuple):
    """A named query. author: who saved it, or None for an example."""

    name: str
    query: str
    author: str | None


def list_queries(store: Store) -> list[SavedQuery]:
    """The examples, then the saved queries by name."""
    with store.reading() as session:
        saved = session.rows("saved_queries")
    return [
        *(SavedQuery(name, named_statement(statement), None) for name, statement in _EXAMPLES.items()),
        *(SavedQuery(name, query, author) for name, query, author, _ in saved),
    ]


def save_query(store: Store, name: str, query: str, author: str) -> None:
    """Save a query under a name. It replaces an older one of that name, and is not checked.

    Raises InputError on the name of an example, or if name, query or author is empty or too long.
    """
    name = _checked("name", name, MOST_NAME_CHARACTERS)
    if name in _EXAMPLES:
        raise InputError(f"{name!r} is an example; choose another name")
    _append(
        store,
        name,
        _checked("query", query, MOST_CHARACTERS, lines=True),
        _checked("author", author, MOST_NAME_CHARACTERS),
    )


def remove_query(store: Store, name: str, author: str) -> None:
    """Remove a saved query. Its texts stay in labels.saved_queries. author: who removes it.

    Raises InputError if there is no saved query of that name.
    """
    if name not in (saved.name for saved in list_queries(store) if saved.author is not None):
        raise InputError(f"no saved query is called {name!r}; it may have been removed already")
    _append(store, name, "", _checked("author", author, MOST_NAME_CHARACTERS))


def _append(store: Store, name: str, query: str, author: str) -> None:
    with store.labelling() as session:
        session.execute("save_query", name=name, query=query, author=author, created_at=utc_now())


def _checked(what: str, text: str, most: int, *, lines: bool = False) -> str:
    text = storable_text(text).strip()
    if not text:
        raise InputError(f"the {what} is empty; enter one")
    if len(text) > most:
        raise InputError(f"the {what} has {len(text):,} characters; at most {most:,} can be saved")
    if not lines and not text.isprintable():
        raise InputError(f"the {what} is {text!r}; leave out line breaks and other invisible characters")
    return text
