"""The `gr2` command line: each command parses, opens the store, makes one call, and prints one summary.

Heavy imports happen inside the commands, so that `gr2 --help` answers at once.
"""

import os
import sys

import typer

from app import (
    data_commands,
    demo_command,
    eval_commands,
    query_commands,
    ruleset_commands,
    sid_commands,
    snapshot_commands,
    trace_commands,
    train_commands,
)
from store.errors import Gr2Error

cli = typer.Typer(
    name="gr2",
    help="Make, inspect and curate the reasoning traces on which generative re-rankers are trained.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

demo_command.register(cli)
data_commands.register(cli)
sid_commands.register(cli)
trace_commands.register(cli)
ruleset_commands.register(cli)
snapshot_commands.register(cli)
train_commands.register(cli)
eval_commands.register(cli)
query_commands.register(cli)


def main() -> None:
    """Run the command line; errors raised on purpose become one line on stderr and their exit code."""
    try:
        cli()
    except Gr2Error as error:
        print(f"gr2: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # `gr2 sql ... | head` closes our output early; that is no failure.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
