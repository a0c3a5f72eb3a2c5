"""`gr2 sids`: make, list, compare and explain semantic IDs."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from app.commands import Given, OptionsOf, add_command
from app.options import DEFAULT_STORE, Name, StoreOption, open_store, print_table, say
from app.progress import status_line
from curate.endpoints.settings import EndpointSettings
from curate.sids.settings import EmbedderSettings, PurchaseSettings, ResidualKMeansSettings
from train.sids.settings import METHODS, RqVaeSettings

if TYPE_CHECKING:
    from curate.sids.versions import SidSummary

MAKE = "make"
LEVEL_MEASURES = {
    "distinct_prefixes": "prefixes",
    "largest_prefix": "largest",
    "shared": "shared",
    "codes_used": "codes",
    "perplexity": "perplexity",
    "category_purity": "purity",
    "category_purity_chance": "by chance",
    "neighbour_recall": "neighbour recall",
    "reconstruction_error": "reconstruction error",
}
COUNTS = {"distinct_prefixes", "largest_prefix", "codes_used"}


class MakesByDefault(TyperGroup):
    """Treats `gr2 sids NAME` as `gr2 sids make NAME`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the default command in front if there is no command."""
        if args and args[0] not in {*self.commands, "--help"}:
            args = [MAKE, *args]
        return super().parse_args(ctx, args)


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    sids = typer.Typer(
        cls=MakesByDefault,
        no_args_is_help=True,
        rich_markup_mode=None,
        help=(
            "Make, list, compare and explain semantic IDs. `gr2 sids NAME` is short for `gr2 sids make NAME`.\n\n"
            "Example: gr2 sids beauty --method rq-vae"
        ),
    )
    add_command(sids, make, MAKE)
    add_command(sids, list_, "list")
    add_command(sids, compare)
    add_command(sids, explain)
    cli.add_typer(sids, name="sids")


def make(
    name: Name,
    codes: Annotated[Given, OptionsOf(ResidualKMeansSettings), OptionsOf(RqVaeSettings)],
    vectors: Annotated[Given, OptionsOf(EmbedderSettings)],
    purchases: Annotated[Given, OptionsOf(PurchaseSettings)],
    endpoint: Annotated[Given, OptionsOf(EndpointSettings)],
    method: Annotated[
        str,
        typer.Option(help="Method: rq-kmeans (residual k-means) or rq-vae (needs torch).", metavar="|".join(METHODS)),
    ] = METHODS[0],
    extend: Annotated[
        str | None,
        typer.Option(
            help="Reuse the IDs of this version of another dataset, and place only new items. Nothing is trained.",
            metavar="DATASET[@VERSION]",
        ),
    ] = None,
    own: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="File of your own semantic IDs or vectors: CSV, Parquet or JSON with item_id and codes or embedding, "
            "or an .npy. IDs are stored unchanged; vectors are quantized.",
        ),
    ] = None,
    item_ids: Annotated[
        Path | None,
        typer.Option(help="Text file with the item of each row of an .npy, one per line. Default: row i is item i."),
    ] = None,
    accept_shared: Annotated[
        bool,
        typer.Option("--accept-shared", help="Mark the version fit for training even if under 99% of IDs are unique."),
    ] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Give every item a semantic ID, in a new version, and measure the IDs.

    Example: gr2 sids beauty --method rq-vae
    """
    from curate.sids.assignment import assign_semantic_ids
    from curate.sids.extension import extend_semantic_ids
    from curate.sids.imported.versions import import_semantic_ids
    from curate.sids.methods import open_embedder
    from store import InputError
    from train.sids.methods import load_quantizer, make_quantizer

    if own is not None and extend is not None:
        raise InputError("--from and --extend both give the source of the IDs; give only one of them")
    if item_ids is not None and own is None:
        raise InputError("--item-ids names the rows of an .npy; give the .npy with --from")
    if extend is not None and (ignored := codes | vectors | purchases):
        flags = ", ".join(f"--{field.replace('_', '-')}" for field in sorted(ignored))
        raise InputError(f"--extend takes all settings from the version that it extends; leave out {flags}")
    opened = open_store(store)
    by_url = partial(open_embedder, endpoint=endpoint)
    with status_line() as on_progress:
        if extend is not None:
            summary = extend_semantic_ids(
                opened,
                name,
                extend,
                open_embedder=by_url,
                load_quantizer=load_quantizer,
                accept_shared=accept_shared,
                on_progress=on_progress,
            )
        elif own is not None:
            summary = import_semantic_ids(
                opened,
                name,
                own,
                make_quantizer(method, codes),
                EmbedderSettings(**vectors),
                purchases=PurchaseSettings(**purchases),
                item_ids=item_ids,
                codebook_size=codes.get("codebook_size"),
                open_embedder=by_url,
                accept_shared=accept_shared,
                on_progress=on_progress,
            )
        else:
            summary = assign_semantic_ids(
                opened,
                name,
                make_quantizer(method, codes),
                EmbedderSettings(**vectors),
                purchases=PurchaseSettings(**purchases),
                open_embedder=by_url,
                accept_shared=accept_shared,
                on_progress=on_progress,
            )
    print_sids(summary)


def list_(store: StoreOption = DEFAULT_STORE) -> None:
    """List all versions of semantic IDs, newest first.

    Example: gr2 sids list
    """
    from curate.sids.versions import list_versions

    versions = list_versions(open_store(store))
    if versions.height == 0:
        say("no semantic IDs yet; gr2 sids NAME makes them")
        return
    print_table(versions.columns, versions.rows())


def compare(
    left: Annotated[str, typer.Argument(help="Version, DATASET@VERSION, or a dataset for its newest.", metavar="A")],
    right: Annotated[str, typer.Argument(help="Version to compare it with.", metavar="B")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Compare two versions measure by measure, and measure how similarly they group items.

    Example: gr2 sids compare beauty@rq-kmeans beauty@rq-vae
    """
    from curate.sids.comparison import compare_versions

    table = compare_versions(open_store(store), left, right)
    print_table(
        table.columns,
        [(measure, level, *(_figure(measure, value) for value in values)) for measure, level, *values in table.rows()],
    )


def explain(
    item: Annotated[str, typer.Argument(help="Identifier of an item.", metavar="ITEM")],
    version: Annotated[str | None, typer.Option(help="Version: DATASET@VERSION, or a dataset for its newest.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Show which items share each prefix of an item's ID, and what they have in common.

    Example: gr2 sids explain 7806397051 --version beauty
    """
    from curate.sids.explanation import explain_item

    explained = explain_item(open_store(store), item, version)
    say(f"{explained.item.title or explained.item.item_id} in {explained.version}")
    rows = [
        (
            "all" if step.level == 0 else ".".join(map(str, explained.codes[: step.level])),
            step.items,
            _share(step.category),
            _share(step.brand),
            ", ".join(_share(word) for word in step.words),
            step.examples[0][:60] if step.examples else "",
        )
        for step in explained.steps
    ]
    print_table(("prefix", "items", "category", "brand", "words of titles", "such as"), rows)


def print_sids(summary: "SidSummary") -> None:
    """Print the measures of a version of semantic IDs."""
    say(
        f"{summary.version.dataset}: {summary.items:,} items, {summary.distinct_ids:,} distinct semantic IDs "
        f"({summary.uniqueness:.2%} unique), version {summary.version.sid_version}, in {summary.seconds:.1f} s"
        + ("; the store already had it" if summary.already_there else "")
    )
    levels = sorted({measure.level for measure in summary.measures if measure.level is not None})
    if levels:
        print_table(
            ("level", *LEVEL_MEASURES.values()),
            [(level, *(_figure(name, summary.figure(name, level)) for name in LEVEL_MEASURES)) for level in levels],
        )
    if moved := summary.figure("moved"):
        say(f"{moved:,.0f} items were moved to another prefix, because their nearest one was full")
    if (new := summary.figure("new_items")) is not None:
        _print_drift(summary, int(new))
    if not summary.fit_for_training:
        say(
            "not marked fit for training: under 99% of the IDs are unique, and items that share an ID cannot be told "
            "apart. Draw the last level (--random-levels 1), use more --levels or a larger --codebook-size, or "
            "override with --accept-shared"
        )


def _print_drift(summary: "SidSummary", new: int) -> None:
    """Print how well new items fit a quantizer that was not fitted on them."""
    gone, changed = (int(summary.figure(name) or 0) for name in ("gone_items", "changed_texts"))
    say(f"extends {summary.settings['extends']}: {new:,} new items, {gone:,} removed, {changed:,} with a changed text")
    base, fresh = summary.figure("base_error"), summary.figure("new_error")
    if base and fresh:
        say(
            f"drift: the error of new items is {fresh / base:.2f} times that of the others; "
            f"{summary.figure('new_share_unknown') or 0.0:.1%} of them have no word that the embedder knows"
            + ("; make new IDs as soon as you can remake traces and models too" if fresh > 1.5 * base else "")
        )


def _figure(measure: str, value: float | None) -> int | float | None:
    whole = measure in COUNTS or measure.endswith(("items", "ids", "texts")) or measure in {"moved", "items_in_both"}
    return int(value) if value is not None and whole else value


def _share(share: tuple[str, float] | None) -> str:
    return f"{share[0]} {share[1]:.0%}" if share else ""
