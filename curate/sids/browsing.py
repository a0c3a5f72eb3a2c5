"""Data for the page of semantic IDs: the tree of prefixes, the use of codes, and the largest collisions."""

import polars as pl

from curate.sids.versions import SidVersion
from store import Store

COLLISIONS = 20
FOUND = 20
# Nodes with a smaller share of the width would be invisible.
NARROWEST = 1 / 1500


def load_prefix_tree(store: Store, version: SidVersion, levels: int, inside: int | None = None) -> pl.DataFrame:
    """Load the prefixes of up to `levels` codes as adjacent bars, each below its parent.

    Columns: level, prefix (such as 57.7.23), start and end (of the bar, in items), items, category (the most common
    one), category_share, and group (the first part of the category path in which the catalogue differs). Below a
    parent, prefixes of one group are adjacent, the largest first. inside: only prefixes that begin with this code, or
    None for all.
    """
    with store.reading() as session:
        nodes = session.frame("prefix_nodes", **version._asdict(), levels=levels)
    nodes = nodes.with_columns(group=_group(nodes["category"]))
    if inside is not None:
        nodes = nodes.filter(pl.col("prefix").list.first() == inside)
    nodes = nodes.with_columns(pl.col("prefix").cast(pl.List(pl.String)))
    placed: list[pl.DataFrame] = []
    for level in range(1, levels + 1):
        row = nodes.filter(level=level).with_columns(parent=pl.col("prefix").list.head(level - 1).list.join("."))
        if placed:
            # A child starts where its parent starts, after its earlier siblings.
            above = placed[-1].select(parent="prefix", parent_start="start")
            row = row.join(above, on="parent", how="inner")
        else:
            row = row.with_columns(parent_start=pl.lit(0, pl.Int64))
        row = row.sort("parent_start", "group", pl.col("items") * -1, "prefix")
        end = pl.col("parent_start") + pl.col("items").cum_sum().over("parent")
        placed.append(row.with_columns(prefix=pl.col("prefix").list.join("."), start=end - pl.col("items"), end=end))
    tree = pl.concat(placed)
    widest = max(int(tree["end"].max() or 0), 1)  # type: ignore[arg-type]
    return tree.filter(pl.col("items") >= widest * NARROWEST).select(
        "level", "prefix", "start", "end", "items", "category", "category_share", "group"
    )


def _group(category: pl.Series) -> pl.Series:
    """The first part of each path at the depth where the paths begin to differ."""
    parts = category.str.split(" > ")
    for depth in range(8):
        part = parts.list.get(depth, null_on_oob=True)
        if part.drop_nulls().n_unique() > 1:
            return part.fill_null("").alias("group")
    return parts.list.first().fill_null("").alias("group")


def load_code_usage(store: Store, version: SidVersion, levels: int) -> pl.DataFrame:
    """The use of each code, with columns level, rank (1 is the most used code of its level), code, items."""
    with store.reading() as session:
        counts = session.frame("code_counts", **version._asdict(), levels=levels)
    return counts.with_columns(rank=pl.int_range(1, pl.len() + 1).over("level")).select(
        "level", "rank", "code", "items"
    )


def load_collisions(store: Store, version: SidVersion, levels: int) -> pl.DataFrame:
    """Load the prefixes of `levels` codes with the most items.

    Columns: prefix, items, distinct_ids, such_as (titles).
    """
    with store.reading() as session:
        prefixes = session.frame("largest_prefixes", **version._asdict(), levels=levels, limit=COLLISIONS)
    return prefixes.with_columns(pl.col("prefix").cast(pl.List(pl.String)).list.join("."))


def find_items(store: Store, version: SidVersion, text: str) -> list[tuple[str, str | None]]:
    """Find the ids and titles of items with this id, or with this text in their title. At most FOUND items."""
    with store.reading() as session:
        return [
            (str(item_id), title)
            for item_id, title in session.rows("find_items_by_text", **version._asdict(), text=text, limit=FOUND)
        ]
