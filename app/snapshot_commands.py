"""`gr2 snapshot`: publish, verify, rebuild, list, show and diff snapshots."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.commands import Given, OptionsOf, add_command
from app.completion import complete_datasets, complete_snapshots
from app.options import DEFAULT_STORE, StoreOption, open_store, print_table, say
from app.ruleset_commands import say_unjudged
from curate.snapshots import SnapshotSettings

if TYPE_CHECKING:
    from store.snapshots import Snapshot

Reference = Annotated[
    str,
    typer.Argument(
        help="Snapshot: NAME for its newest version, or NAME@VERSION.",
        metavar="NAME",
        autocompletion=complete_snapshots,
    ),
]


def register(cli: typer.Typer) -> None:
    """Add the group of commands."""
    snapshot = typer.Typer(help="Immutable, verified datasets for training.", no_args_is_help=True)
    add_command(snapshot, publish)
    add_command(snapshot, verify)
    add_command(snapshot, rebuild)
    add_command(snapshot, list_snapshots, "list")
    add_command(snapshot, show)
    add_command(snapshot, diff)
    cli.add_typer(snapshot, name="snapshot")


def publish(
    name: Annotated[str, typer.Argument(help="Name of the snapshot.", metavar="NAME")],
    given: Annotated[Given, OptionsOf(SnapshotSettings)],
    dataset: Annotated[
        str | None,
        typer.Option(help="Dataset to publish from. Default: the one called NAME.", autocompletion=complete_datasets),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Write training data as Parquet. The version is the hash of the content.

    Example: gr2 snapshot publish beauty --kind sft --ruleset strict
    """
    from curate.snapshots.publishing import publish as publish_snapshot

    settings = SnapshotSettings(dataset or name, **given)
    opened = open_store(store)
    print_snapshot(publish_snapshot(opened, name, settings))
    say_unjudged(opened, dataset=settings.dataset)


def verify(name: Reference, store: StoreOption = DEFAULT_STORE) -> None:
    """Hash every file again and compare it with the manifest.

    Example: gr2 snapshot verify beauty
    """
    from curate.snapshots.publishing import find_snapshot
    from store.snapshots import verify_snapshot

    snapshot = verify_snapshot(find_snapshot(open_store(store), name).path)
    say(f"{snapshot.path}: {len(snapshot.manifest['files']):,} files, all as published")


def rebuild(name: Reference, store: StoreOption = DEFAULT_STORE) -> None:
    """Rebuild a snapshot from the store and compare every byte.

    Example: gr2 snapshot rebuild beauty
    """
    from curate.snapshots.publishing import find_snapshot
    from curate.snapshots.publishing import rebuild as rebuild_snapshot

    opened = open_store(store)
    snapshot = find_snapshot(opened, name)
    if not rebuild_snapshot(opened, snapshot):
        say(f"{snapshot.path}: the rebuilt files differ, because the store, the code or a library has changed")
        raise typer.Exit(1)
    say(f"{snapshot.path}: the rebuilt files are identical")


def list_snapshots(store: StoreOption = DEFAULT_STORE) -> None:
    """List all snapshots.

    Example: gr2 snapshot list
    """
    with open_store(store).reading() as session:
        snapshots = session.frame("snapshot_list")
    if snapshots.height == 0:
        say("no snapshots yet; gr2 snapshot publish makes one")
    else:
        print_table(snapshots.columns, snapshots.rows())


def show(name: Reference, store: StoreOption = DEFAULT_STORE) -> None:
    """Print the manifest of a snapshot.

    Example: gr2 snapshot show beauty
    """
    import orjson

    from curate.snapshots.publishing import find_snapshot

    snapshot = find_snapshot(open_store(store), name)
    print_snapshot(snapshot)
    say(orjson.dumps(snapshot.manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode())


def diff(older: Reference, newer: Reference, store: StoreOption = DEFAULT_STORE) -> None:
    """Count the rows that were added, removed and changed, with examples.

    Example: gr2 snapshot diff beauty@1f3a beauty
    """
    from curate.snapshots.publishing import diff as diff_snapshots
    from curate.snapshots.publishing import find_snapshot

    opened = open_store(store)
    difference = diff_snapshots(find_snapshot(opened, older), find_snapshot(opened, newer))
    print_table(
        ("rows", "count", "for example"),
        [
            (what, len(keys), " ".join(keys[:3]))
            for what, keys in (
                ("added", difference.added),
                ("removed", difference.removed),
                ("changed", difference.changed),
            )
        ],
    )


def print_snapshot(snapshot: "Snapshot") -> None:
    """Print the contents of a snapshot and its folder."""
    rows = ", ".join(f"{split['rows']:,} {name}" for name, split in snapshot.manifest["splits"].items())
    say(f"snapshot {snapshot.manifest['name']}@{snapshot.version}: {rows}")
    say(f"  {snapshot.path}")
