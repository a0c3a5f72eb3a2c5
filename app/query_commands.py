"""Commands for people who look: sql, app."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from app.commands import add_command
from app.options import DEFAULT_STORE, StoreOption, open_store, print_table, say

TABLE_ROWS = 200


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    add_command(cli, sql)
    add_command(cli, browse, "app")


def sql(
    query: Annotated[str, typer.Argument(help="One SQL statement; the store is open read-only.", metavar="SELECT")],
    format: Annotated[str, typer.Option(help="Format of the output.", metavar="table|csv|json|parquet")] = "table",  # noqa: A002
    output: Annotated[Path | None, typer.Option(help="File to write to. Default: the terminal.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Query traces, verdicts, labels and everything else in SQL. docs/reference/data-model.md describes the tables.

    Example: gr2 sql "select template, teacher, accepted, attempts from acceptance_funnel"
    """
    from app.formats import render_rows
    from curate.review.sql_console import run_sql
    from store import InputError

    if format not in ("table", "csv", "json", "parquet"):
        raise InputError(f"--format is {format!r}; it must be table, csv, json or parquet")
    rows = run_sql(open_store(store), query)
    if format == "table":
        if output is not None:
            raise InputError("--output wants --format csv, json or parquet")
        print_table(rows.columns, rows.head(TABLE_ROWS).rows())
        if rows.height > TABLE_ROWS:
            say(f"the first {TABLE_ROWS:,} of {rows.height:,} rows; --format csv gives all")
        return
    if output is None and format == "parquet" and sys.stdout.isatty():
        raise InputError("Parquet is not for a terminal; add --output FILE")
    data = render_rows(rows, format)
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        try:
            output.write_bytes(data)
        except OSError as error:
            raise InputError(f"{output} cannot be written: {error.strerror}") from error


def browse(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8501,
    address: Annotated[str, typer.Option(help="Address to listen on. Change it to let other machines in.")] = (
        "127.0.0.1"
    ),
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Open the trace browser.

    Example: gr2 app --port 8501
    """
    import os

    from store.installation import missing_package

    folder = open_store(store).folder
    try:
        import streamlit  # noqa: F401
    except ImportError:
        raise missing_package("the trace browser", "streamlit", "app") from None
    page = Path(__file__).with_name("browser") / "main.py"
    os.environ["GR2_STORE"] = str(folder)
    # Safe path: the folder that people stand in may hold an app/, a train.py or a store.py of theirs.
    os.environ["PYTHONSAFEPATH"] = "1"
    if hasattr(os, "nice"):
        # People wait for a page a little longer rather than a run on the same machine for people.
        os.nice(10)
    os.execv(  # noqa: S606
        sys.executable,
        [
            sys.executable,
            "-P",
            "-m",
            "streamlit",
            "run",
            str(page),
            f"--server.port={port}",
            f"--server.address={address}",
            "--server.headless=true",
            "--server.fileWatcherType=none",
            "--browser.gatherUsageStats=false",
            "--client.toolbarMode=minimal",
            # After each run of a page, Streamlit would look through all modules for garbage: three quarters of what a
            # label costs. Python looks often enough by itself.
            "--runner.postScriptGC=false",
        ],
    )
