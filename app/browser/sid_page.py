"""The page Semantic IDs: measures, prefix tree, use of codes, collisions, the path to an item, and a comparison.

This module only draws; `curate.sids` computes. Titles and categories are shown as text, never as HTML or Markdown.
"""

import polars as pl
import streamlit as st

from app.browser.charts import CATEGORIES, dashed_rule, draw_chart, nominal, ordinal, quantitative
from app.browser.pages import draw_title
from curate.sids.browsing import find_items, load_code_usage, load_collisions, load_prefix_tree
from curate.sids.comparison import compare_versions
from curate.sids.explanation import explain_item
from curate.sids.versions import SidSummary, SidVersion, list_versions, load_summary
from store import Store

ALL = "all"
NONE = "none"
MOST_GROUPS = 10


def draw_sids(store: Store) -> None:
    """Draw the page."""
    draw_title(
        "Semantic IDs",
        "An item's semantic ID is a short sequence of codes. Similar items share its first codes. This page shows how "
        "good a version of semantic IDs is.",
    )
    versions = list_versions(store)
    if versions.height == 0:
        st.info("This store has no semantic IDs yet. Run `gr2 sids NAME`.")
        return
    names = [f"{dataset}@{version}" for dataset, version in versions.select("dataset", "sid_version").rows()]
    requested = st.query_params.get("sids", names[0])
    chosen = st.selectbox(
        "Version", names, index=names.index(requested) if requested in names else 0, key="sids-version"
    )
    st.query_params["sids"] = chosen
    version = SidVersion(*chosen.split("@", 1))
    with store.reading() as session:
        summary = load_summary(session, version)
    assert summary is not None
    draw_summary(summary)
    levels = int(summary.settings["levels"])
    fitted = levels - int(summary.settings.get("random_levels", 0))
    draw_tree(store, version, fitted)
    left, right = st.columns(2)
    with left:
        draw_usage(store, version, levels, summary)
    with right:
        draw_collisions(store, version, fitted)
    draw_item(store, version)
    draw_comparison(store, version, [name for name in names if name != chosen])


def draw_summary(summary: SidSummary) -> None:
    """Draw the measures of whole IDs and of each level."""
    figures = st.columns(5)
    settings = summary.settings
    figures[0].metric("Items", f"{summary.items:,}")
    figures[1].metric("Unique", f"{summary.uniqueness:.2%}", help="Share of items whose ID no other item has.")
    figures[2].metric(
        "Fit for training",
        "yes" if summary.fit_for_training else "no",
        help="At least 99% of the IDs must be unique.",
    )
    figures[3].metric("Levels × codes", f"{settings['levels']} × {settings['codebook_size']}")
    left_over = [row.value for row in summary.measures if row.measure == "reconstruction_error"]
    figures[4].metric(
        "Reconstruction error",
        f"{left_over[-1]:.1%}" if left_over else "–",
        help="Share of the variance of the embeddings that the codes of all levels do not explain.",
    )
    table = pl.DataFrame(
        [row for row in summary.measures if row.level is not None],
        schema={"measure": pl.String, "level": pl.Int32, "value": pl.Float64},
        orient="row",
    )
    if table.height:
        number = st.column_config.NumberColumn
        st.dataframe(
            table.pivot("measure", index="level", values="value"),
            hide_index=True,
            placeholder="–",
            column_config={
                "distinct_prefixes": number("prefixes", format="%d", help="Distinct prefixes up to this level."),
                "largest_prefix": number("largest", format="%d", help="Items under the most common prefix."),
                "shared": number("shared", format="percent", help="Share of items that share their prefix."),
                "codes_used": number("codes used", format="%d"),
                "perplexity": number(
                    format="%.1f", help="Codes in effective use: equal to the codebook size if all are equally common."
                ),
                "category_purity": number(
                    "category purity",
                    format="percent",
                    help="Share of items in the main category of their prefix, over items that share one.",
                ),
                "category_purity_chance": number(
                    "by chance", format="percent", help="The category purity of random prefixes of the same sizes."
                ),
                "neighbour_recall": number(
                    "neighbour recall", format="percent", help="Share of nearest neighbours with the same prefix."
                ),
                "reconstruction_error": number(
                    "reconstruction error", format="percent", help="Share of variance unexplained up to this level."
                ),
            },
        )
    with st.expander("Settings"):
        st.json(summary.settings)


def draw_tree(store: Store, version: SidVersion, levels: int) -> None:
    """Draw the tree of prefixes, as bars under bars whose width is their number of items."""
    st.markdown("##### Prefix tree")
    whole = load_prefix_tree(store, version, 1)
    choices = [ALL, *whole.sort("items", descending=True)["prefix"].to_list()]
    inside = st.selectbox("First code", choices, key="sids-inside")
    tree = load_prefix_tree(store, version, levels, None if inside == ALL else int(inside))
    common = (
        tree.filter(level=1)
        .group_by("group")
        .agg(pl.col("items").sum())
        .sort("items", "group", descending=[True, False])
    )
    shown = common["group"].head(MOST_GROUPS).to_list()
    tree = tree.with_columns(
        kind=pl.when(pl.col("group").is_in(shown)).then("group").otherwise(pl.lit("(others)")),
        top=pl.col("level") - 1,
    )
    encoding = {
        "x": quantitative("start", title="items", scale={"nice": False}),
        "x2": {"field": "end"},
        "y": quantitative("top", title=None, axis=None, scale={"reverse": True, "nice": False}),
        "y2": {"field": "level"},
        "color": nominal("kind", title="most common category", sort=[*shown, "(others)"], scale=CATEGORIES),
        "opacity": quantitative("category_share", legend=None, scale={"domain": [0, 1], "range": [0.25, 1]}),
        "tooltip": [
            nominal("prefix"),
            quantitative("items", format=","),
            nominal("category", title="most common category"),
            quantitative("category_share", title="its share", format=".0%"),
        ],
    }
    draw_chart(
        tree,
        {"mark": {"type": "rect", "stroke": "white", "strokeWidth": 0.4}, "encoding": encoding, "height": 300},
    )
    st.caption(
        "Each row is a level, with the first code on top. The width of a bar is the number of items with this prefix. "
        "Its colour is their most common category, and is stronger the more common that category is. Very narrow bars "
        "are left out: choose a first code to see all of them."
    )


def draw_usage(store: Store, version: SidVersion, levels: int, summary: SidSummary) -> None:
    """Draw the number of items of each code, most used first."""
    st.markdown("##### Use of codes")
    usage = load_code_usage(store, version, levels)
    even = summary.items / int(summary.settings["codebook_size"])
    lines = {
        "x": quantitative("rank", title="codes (most used first)", scale={"nice": False}),
        "y": quantitative("items", title="items"),
        "color": ordinal("level", scale=CATEGORIES),
        "tooltip": [ordinal("level"), quantitative("code"), quantitative("items", format=",")],
    }
    draw_chart(usage, {"layer": [{"mark": "line", "encoding": lines}, dashed_rule("y", even)], "height": 340})
    st.caption("The dashed line is the ideal: all codes of a level have the same number of items.")


def draw_collisions(store: Store, version: SidVersion, fitted: int) -> None:
    """Draw the prefixes of all fitted levels that most items share."""
    st.markdown("##### Largest collisions")
    st.dataframe(
        load_collisions(store, version, fitted),
        hide_index=True,
        height=340,
        column_config={
            "prefix": st.column_config.TextColumn(width=100),
            "items": st.column_config.NumberColumn(width=55),
            "distinct_ids": st.column_config.NumberColumn("distinct IDs", width=90),
            "such_as": st.column_config.ListColumn("examples", width=320),
        },
    )
    st.caption("Items that share all codes of the fitted levels. A last, random level can still tell them apart.")


def draw_item(store: Store, version: SidVersion) -> None:
    """Draw the path from the whole catalogue to one item."""
    st.markdown("##### Path to an item")
    text = st.text_input("Item ID, or words of its title", key="sids-item")
    if not text:
        return
    items = find_items(store, version, text)
    if not items:
        st.info("No item matches. Try another word of its title.")
        return
    item_id = items[0][0]
    if len(items) > 1:
        titles = {item: title or item for item, title in items}
        item_id = st.selectbox("Item", list(titles), format_func=lambda item: f"{titles[item]} ({item})")
    explained = explain_item(store, item_id, str(version))
    st.dataframe(
        pl.DataFrame(
            [
                {
                    "prefix": ".".join(map(str, explained.codes[: step.level])) or "(all)",
                    "items": step.items,
                    "category": step.category[0] if step.category else "",
                    "share": step.category[1] if step.category else None,
                    "brand": step.brand[0] if step.brand else "",
                    "brand's share": step.brand[1] if step.brand else None,
                    "common words": ", ".join(f"{word} {share:.0%}" for word, share in step.words),
                    "examples": " | ".join(step.examples[:3]),
                }
                for step in explained.steps
            ]
        ),
        hide_index=True,
        column_config={
            name: st.column_config.NumberColumn(name, format="percent") for name in ("share", "brand's share")
        },
    )


def draw_comparison(store: Store, version: SidVersion, others: list[str]) -> None:
    """Draw the measures of another version beside those of this version."""
    st.markdown("##### Comparison with another version")
    other = st.selectbox("Other version", [NONE, *others], key="sids-other")
    if other != NONE:
        st.dataframe(compare_versions(store, str(version), other), hide_index=True, height=430)
