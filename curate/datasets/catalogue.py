"""Looks up a dataset of a store by its name."""

from typing import Any

from store import InputError, Session


def find_dataset(session: Session, name: str) -> dict[str, Any]:
    """The row of a dataset: dataset, source, settings (JSON text), fingerprint.

    Raises InputError if no dataset has this name. The message lists the known names.
    """
    rows = session.frame("dataset", dataset=name)
    if rows.height == 0:
        names = ", ".join(known for (known,) in session.rows("dataset_names"))
        raise InputError(
            f"no dataset is called {name!r}; there are: {names or 'none yet (gr2 ingest and gr2 simulate make one)'}"
        )
    return rows.row(0, named=True)
