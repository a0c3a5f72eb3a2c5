"""Commands for reading the store: sql, app."""

import re
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
    format: Annotated[  # noqa: A002
        str,
        typer.Option(
            help="Format of the output. In CSV, a text that a spreadsheet would run as a formula gets a ' in front.",
            metavar="table|csv|json|parquet",
        ),
    ] = "table",
    output: Annotated[Path | None, typer.Option(help="File to write to. Default: the terminal.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Query traces, verdicts, labels and everything else in SQL. docs/reference/data-model.md describes the tables.

    Example: gr2 sql "select template, teacher, accepted, attempts from acceptance_funnel"
    """
    from store import InputError

    if format not in ("table", "csv", "json", "parquet"):
        raise InputError(f"--format is {format!r}; it must be table, csv, json or parquet")
    if format == "table" and output is not None:
        raise InputError("--output needs --format csv, json or parquet")
    if format == "parquet" and output is None and sys.stdout.isatty():
        raise InputError("Parquet cannot be shown on a terminal; add --output FILE")
    from store.child_processes import pool_of

    # The process for the query starts while this one still loads.
    pool_of("curate.review.sql_child").warm_up()
    from curate.review.sql_console import UNLIMITED, QueryLimits, query_frames, query_rows

    opened = open_store(store)
    if format == "table":
        result = query_rows(opened, query, QueryLimits(rows=TABLE_ROWS))
        print_table(result.rows.columns, result.rows.rows())
        if not result.complete:
            say(f"only the first {TABLE_ROWS:,} rows are shown; --format csv prints all")
        return
    from app.formats import write_rows

    with query_frames(opened, query, UNLIMITED) as frames:
        if output is None:
            write_rows(frames, format, sys.stdout.buffer)
            sys.stdout.buffer.flush()
            return
        try:
            with output.open("wb") as file:
                write_rows(frames, format, file)
        except OSError as error:
            raise InputError(f"{output} cannot be written: {error.strerror}") from error


def browse(
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8501,
    address: Annotated[str, typer.Option(help="Address to listen on. Change it to allow other machines.")] = (
        "127.0.0.1"
    ),
    allowed_hosts: Annotated[
        str,
        typer.Option(
            help="Host names under which people open the browser, comma-separated. localhost and --address are always "
            "allowed. Requests for other hosts are refused.",
            metavar="NAMES",
        ),
    ] = "",
    base_path: Annotated[
        str,
        typer.Option(help="Path under which a reverse proxy serves the browser, such as /gr2.", metavar="PATH"),
    ] = "",
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Open the trace browser.

    Example: gr2 app --port 8501
    """
    import os

    from store.installation import missing_package

    hosts, path = _read_hosts(f"{address},{allowed_hosts}"), _read_base_path(base_path)
    folder = open_store(store).folder
    try:
        import streamlit  # noqa: F401
    except ImportError:
        raise missing_package("the trace browser", "streamlit", "app") from None
    server = Path(__file__).with_name("browser") / "server.py"
    os.environ["GR2_STORE"] = str(folder)
    os.environ["GR2_ALLOWED_HOSTS"] = ",".join(hosts)
    # The safe path keeps files of the current folder, such as an app/, a train.py or a store.py, from being imported.
    os.environ["PYTHONSAFEPATH"] = "1"
    if hasattr(os, "nice"):
        # A page may wait a little for a run on the same machine, rather than the run for a page.
        os.nice(10)
    os.execv(  # noqa: S606
        sys.executable,
        [
            sys.executable,
            "-P",
            "-m",
            "streamlit",
            "run",
            str(server),
            f"--server.port={port}",
            f"--server.address={address}",
            f"--server.baseUrlPath={path}",
            "--server.headless=true",
            "--server.fileWatcherType=none",
            # The next three settings keep the server and its pages from using the internet.
            "--browser.gatherUsageStats=false",
            "--server.showEmailPrompt=false",
            "--client.showErrorLinks=false",
            "--client.toolbarMode=minimal",
            # After each run of a page, Streamlit would look through all modules for garbage, which takes three quarters
            # of the time of a label. Python's own collection is frequent enough.
            "--runner.postScriptGC=false",
        ],
    )


def _read_hosts(names: str) -> list[str]:
    """Read host names in the form in which they are compared. Raises InputError on a name with a port or a path."""
    from store import InputError

    hosts = [name.strip().strip("[]").rstrip(".").lower() for name in names.split(",") if name.strip()]
    for host in hosts:
        # An IPv6 address has colons too, but more than one.
        if not re.fullmatch(r"[\w.-]+|(?=.*:.*:)[0-9a-f:.]+", host):
            raise InputError(f"--allowed-hosts has {host!r}; give host names alone, such as gr2.example.org")
    return hosts


def _read_base_path(path: str) -> str:
    """Read a path without the slashes around it. Raises InputError on a path that browsers would change."""
    from store import InputError

    bare = path.strip("/")
    if not re.fullmatch(r"[\w.~-]+(/[\w.~-]+)*|", bare, re.ASCII) or ".." in bare.split("/"):
        raise InputError(f"--base-path is {path!r}; it must be a path such as /gr2 or /tools/gr2")
    return bare
