"""Options that several commands share, and functions that print their results."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.completion import complete_datasets

if TYPE_CHECKING:
    from store import Store

StoreOption = Annotated[
    Path,
    typer.Option("--store", envvar="GR2_STORE", help="Folder of the store.", file_okay=False),
]
DEFAULT_STORE = Path("gr2-store")
Name = Annotated[
    str,
    typer.Argument(help="Name of the dataset in the store.", metavar="NAME", autocompletion=complete_datasets),
]


def open_store(folder: Path, *, create: bool = False) -> "Store":
    """Open the store in `folder`. Raises InputError if there is none and `create` is False."""
    from store import Store

    return Store.open(folder, create=create)


def say(text: str) -> None:
    """Print one line to the terminal, unchanged."""
    typer.echo(text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
    """Print a table for people: numbers are right-aligned, and control characters of hostile text are made visible."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = any(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(show(value)) for value in row))
    console = Console()
    if not console.is_terminal:
        # A pipe or a log has no width. Wrapping would break lines that people search.
        console = Console(width=max(240, console.width))
    with console.capture() as captured:
        console.print(table)
    if title:
        say(title)
    say("\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip()) + "\n")


def describe_counts(counts: Sequence[tuple[str, int]]) -> str:
    """Return texts with their counts, such as errors, as one printable line."""
    return "; ".join(f"{show(text)} ({'once' if count == 1 else f'{count:,} times'})" for text, count in counts)


def show(value: Any) -> str:
    """Return a value as one printable line. None becomes an empty text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))


def read_pairs(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Read pairs KEY=VALUE. Each value is read as JSON, or as text if it is not JSON.

    >>> read_pairs("--teacher-option", ["top_k=20", "region=eu"])
    {'top_k': 20, 'region': 'eu'}

    Raises InputError on a pair without a key.
    """
    import orjson

    from store import InputError

    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise InputError(f"{flag} is {pair!r}; it must be KEY=VALUE")
        try:
            values[key] = orjson.loads(value)
        except orjson.JSONDecodeError:
            values[key] = value
    return values


def prepare_training(what: str) -> None:
    """Keep libraries of torch from drawing their own progress bars. Call this before the first import that needs torch.

    Raises InputError if they are not installed. what: the name of the command, for the message.
    """
    import os

    from store.installation import missing_package

    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    try:
        import trl  # noqa: F401
        from transformers.utils import logging
    except ModuleNotFoundError as error:
        raise missing_package(what, error.name, "train") from error
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
