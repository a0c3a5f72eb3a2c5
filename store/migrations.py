"""Schema changes: numbered, append-only files. Each runs in one transaction with the record that it ran.

A released migration is never edited; a change gets a new number. Views are code, and are replaced whenever their text
changes.
"""

import hashlib
from importlib.resources import files
from typing import NamedTuple

from store.database import Session
from store.errors import StoreError


class Migration(NamedTuple):
    """One numbered step of one database file ("main" or "labels")."""

    number: int
    name: str
    text: str


def load_migrations(database: str) -> list[Migration]:
    """The steps of a database file in order. Raises ValueError unless they are numbered 1, 2, 3, ... without a gap."""
    steps = []
    for file in sorted(files("store").joinpath("sql", "migrations", database).iterdir(), key=lambda file: file.name):
        number, _, name = file.name.removesuffix(".sql").partition("_")
        steps.append(Migration(int(number), name, file.read_text("utf-8")))
    if [step.number for step in steps] != list(range(1, len(steps) + 1)):
        raise ValueError(f"migrations of {database!r} are not numbered 1, 2, 3, ...: {[step.number for step in steps]}")
    return steps


def views_text() -> str:
    """The text of the statements that define all views and macros."""
    return files("store").joinpath("sql", "views.sql").read_text("utf-8")


def schema_state(database: str) -> str:
    """The state that a fully migrated file records. It changes with each migration and, for "main", with each view."""
    text = f"{len(load_migrations(database))}"
    if database == "main":
        text += "-" + hashlib.sha256(views_text().encode()).hexdigest()[:16]
    return text


def current_state(session: Session) -> str | None:
    """The state that the open file records, or None for an empty file."""
    if not session.rows("has_schema_tables"):
        return None
    return str(session.rows("schema_state")[0][0])


def labels_state(session: Session) -> str | None:
    """The state that the attached file of labels records, or None if it records none."""
    if not session.rows("labels_have_schema_tables"):
        return None
    return str(session.rows("labels_schema_state")[0][0])


def migrate(session: Session, database: str) -> None:
    """Bring an open file up to date inside the caller's transaction, so that either all steps happen or none.

    Raises StoreError if the file was written by a newer version of gr2.
    """
    session.execute("create_schema_migrations")
    session.execute("create_schema_state")
    applied = int(session.rows("last_migration")[0][0])
    steps = load_migrations(database)
    if applied > len(steps):
        raise StoreError(
            f"this store has schema {applied}, but this gr2 supports schemas up to {len(steps)}; install a newer gr2"
        )
    for step in steps[applied:]:
        session.connection.execute(step.text)
        session.execute("record_migration", number=step.number, name=step.name)
    if database == "main":
        session.connection.execute(views_text())
    session.execute("clear_schema_state")
    session.execute("record_schema_state", state=schema_state(database))
