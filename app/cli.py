"""The `gr2` command line: each command parses, opens the store, makes one call, and prints one summary.

The module of a command is imported only when the command is used, so that `gr2 --help` and completion answer at once.
"""

import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from store.errors import Gr2Error


class Entry(NamedTuple):
    """A command: the module that registers it, and its line in `gr2 --help`."""

    module: str
    summary: str


COMMANDS = {
    "demo": Entry("app.demo_command", "Run the whole pipeline on simulated data."),
    "simulate": Entry("app.data_commands", "Make a simulated dataset."),
    "ingest": Entry("app.data_commands", "Read items and interactions from files."),
    "sids": Entry("app.sid_commands", "Make, list, compare and explain semantic IDs."),
    "candidates": Entry("app.data_commands", "Make candidate lists and measure their ranker."),
    "trace": Entry("app.trace_commands", "Ask a teacher for reasoning traces."),
    "verify": Entry("app.trace_commands", "Judge stored traces by the rules again."),
    "status": Entry("app.trace_commands", "Show what the store contains."),
    "rulesets": Entry("app.ruleset_commands", "List, show and add rulesets."),
    "snapshot": Entry("app.snapshot_commands", "Publish and check datasets for training."),
    "train": Entry("app.train_commands", "Make students and train them on snapshots."),
    "eval": Entry("app.eval_commands", "Compare rankers on the same candidate lists."),
    "sql": Entry("app.query_commands", "Query the store in SQL."),
    "app": Entry("app.query_commands", "Open the trace browser."),
}


class Commands(TyperGroup):
    """The commands of COMMANDS. Each is imported only when it is used."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        # These are stand-ins for uses that only need names, such as suggestions after a typing error.
        self.commands = {name: TyperCommand(name, short_help=entry.summary) for name, entry in COMMANDS.items()}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import and return a command, or None if there is no command of that name."""
        if cmd_name not in COMMANDS:
            return None
        entry = COMMANDS[cmd_name]
        part = typer.Typer(rich_markup_mode=None)
        import_module(entry.module).register(part)
        command = typer.main.get_group(part).commands[cmd_name]
        command.short_help = entry.summary
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write names and summaries, without importing the commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Complete names with their summaries, without importing the commands."""
        from typer.core import CompletionItem  # type: ignore[attr-defined]

        matching = [
            CompletionItem(name, help=entry.summary) for name, entry in COMMANDS.items() if name.startswith(incomplete)
        ]
        return [*matching, *super(TyperGroup, self).shell_complete(ctx, incomplete)]


cli = typer.Typer(
    name="gr2",
    cls=Commands,
    help="Generate, verify and curate LLM reasoning traces, and train generative re-rankers on them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"gr2 {version('gr2')}")
        raise typer.Exit


@cli.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of gr2 itself."""


def main() -> None:
    """Run the command line. Errors raised on purpose become one line on stderr and their exit code."""
    try:
        cli()
    except Gr2Error as error:
        print(f"gr2: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # `gr2 sql ... | head` closes the output early, which is not a failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
