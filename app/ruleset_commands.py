"""`gr2 rulesets`: list, show and add rulesets."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.options import DEFAULT_STORE, StoreOption, open_store, print_table, say

if TYPE_CHECKING:
    from curate.traces.rulesets import Ruleset
    from store import Store

rulesets = typer.Typer(help="Versioned lists of rules that decide which traces are accepted.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add the group of commands."""
    cli.add_typer(rulesets, name="rulesets")


@rulesets.command("list")
def list_(
    all_versions: Annotated[bool, typer.Option("--all-versions", help="Show older versions too.")] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """List the rulesets of the store.

    Example: gr2 rulesets list
    """
    from curate.traces.rulesets import list_rulesets

    rows = list_rulesets(open_store(store), all_versions=all_versions)
    print_table(
        ("ruleset", "rules", "description"),
        [
            (f"{name}@{version}", " ".join(rules), description)
            for name, version, rules, description, _ in rows.iter_rows()
        ],
    )


@rulesets.command()
def show(
    name: Annotated[str, typer.Argument(help="NAME for its newest version, or NAME@VERSION.", metavar="NAME")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Print a ruleset as a file that `gr2 rulesets add` reads, and the datasets that lack verdicts of its rules.

    Example: gr2 rulesets show strict
    """
    from curate.traces.rulesets import find_ruleset, write_ruleset

    opened = open_store(store)
    with opened.reading() as session:
        ruleset = find_ruleset(session, name)
    say(write_ruleset(ruleset))
    say_unjudged(opened, ruleset=ruleset)


@rulesets.command()
def add(
    file: Annotated[Path, typer.Argument(help="A TOML file with name, rules and description.", metavar="FILE")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Add a ruleset, or a new version of an existing one. Older versions do not change.

    Example: gr2 rulesets add careful.toml
    """
    from curate.traces.rulesets import add_ruleset, read_ruleset

    opened = open_store(store)
    added, is_new = add_ruleset(opened, *read_ruleset(file))
    what = "added" if is_new else "already exists, nothing was added"
    say(f"ruleset {added.reference} {what}: {', '.join(added.rules) or 'no rules'}")
    say_unjudged(opened, ruleset=added)


def say_unjudged(store: "Store", *, dataset: str | None = None, ruleset: "Ruleset | None" = None) -> None:
    """Print a line for each rule that has not judged all traces.

    dataset, ruleset: only those of one dataset and one ruleset; None means all.
    """
    from curate.traces.rulesets import describe_unjudged, unjudged_traces

    with store.reading() as session:
        missing = unjudged_traces(session, dataset)
    if ruleset is not None:
        missing = missing.filter(ruleset=ruleset.name, version=ruleset.version)
    for line in describe_unjudged(missing):
        say(line)
