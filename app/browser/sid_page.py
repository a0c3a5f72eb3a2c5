"""The page of semantic IDs: a version's measures, the tree of its prefixes, how its codes are used, its collisions, the
path to an item, and another version beside it.

It draws; what it draws comes from `curate.sids`. Titles and categories are shown as text, never as HTML or Markdown.
"""

import polars as pl
import streamlit as st

from app.browser.charts import CATEGORIES, dashed_rule, draw_chart, nominal, ordinal, quantitative
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
    st.subheader("Semantic IDs")
    versions = list_versions(store)
    if versions.height == 0:
        st.info("No semantic IDs yet. Make them with gr2 sids NAME.")
        return
    names = [f"{dataset}@{version}" for dataset, version in versions.select("dataset", "sid_version").rows()]
    wanted = st.query_params.get("sids", names[0])
    chosen = st.selectbox("version", names, index=names.index(wanted) if wanted in names else 0, key="sids-version")
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
    """Figures of whole IDs, and of each level."""
    figures = st.columns(5)
    figures[0].metric("items", f"{summary.items:,}")
    figures[1].metric("unique", f"{summary.uniqueness:.2%}")
    figures[2].metric("fit for training", "yes" if summary.fit_for_training else "no")
    figures[3].metric("codes", f"{summary.settings['levels']} x {summary.settings['codebook_size']}")
    left_over = [row.value for row in summary.measures if row.measure == "reconstruction_error"]
    figures[4].metric("reconstruction error", f"{left_over[-1]:.1%}" if left_over else "?")
    table = pl.DataFrame(
        [row for row in summary.measures if row.level is not None],
        schema={"measure": pl.String, "level": pl.Int32, "value": pl.Float64},
        orient="row",
    )
    if table.height:
        st.dataframe(
            table.pivot("measure", index="level", values="value"),
            hide_index=True,
            column_config={
                "distinct_prefixes": st.column_config.NumberColumn("prefixes", format="%d"),
                "largest_prefix": st.column_config.NumberColumn("largest", format="%d"),
                "shared": st.column_config.NumberColumn("share a prefix", format="percent"),
                "codes_used": st.column_config.NumberColumn("codes used", format="%d"),
                "perplexity": st.column_config.NumberColumn("perplexity", format="%.1f"),
                "category_purity": st.column_config.NumberColumn("category purity", format="percent"),
                "category_purity_chance": st.column_config.NumberColumn("by chance", format="percent"),
                "neighbour_recall": st.column_config.NumberColumn("neighbour recall", format="percent"),
                "reconstruction_error": st.column_config.NumberColumn("reconstruction_error", format="percent"),
            },
        )
    with st.expander("Settings"):
        st.json(summary.settings)


def draw_tree(store: Store, version: SidVersion, levels: int) -> None:
    """The tree of prefixes as bars under bars, as wide as they have items."""
    st.markdown("#### Tree of prefixes")
    whole = load_prefix_tree(store, version, 1)
    choices = [ALL, *whole.sort("items", descending=True)["prefix"].to_list()]
    inside = st.selectbox("first code", choices, key="sids-inside")
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
        "One row a level, the first code on top; a bar is as wide as its prefix has items, and as strong in colour as "
        "its most common category is common in it. Bars too narrow to see are left out; choose a first code to see all."
    )


def draw_usage(store: Store, version: SidVersion, levels: int, summary: SidSummary) -> None:
    """Items of each code, the most used first."""
    st.markdown("#### Use of codes")
    usage = load_code_usage(store, version, levels)
    even = summary.items / int(summary.settings["codebook_size"])
    lines = {
        "x": quantitative("rank", title="codes, the most used first", scale={"nice": False}),
        "y": quantitative("items", title="items"),
        "color": ordinal("level", scale=CATEGORIES),
        "tooltip": [ordinal("level"), quantitative("code"), quantitative("items", format=",")],
    }
    draw_chart(usage, {"layer": [{"mark": "line", "encoding": lines}, dashed_rule("y", even)], "height": 380})
    st.caption("Dashed: every code of a level with the same number of items.")


def draw_collisions(store: Store, version: SidVersion, fitted: int) -> None:
    """The prefixes that the fitted levels leave most items under."""
    st.markdown("#### Largest collisions of the fitted levels")
    st.dataframe(load_collisions(store, version, fitted), hide_index=True, height=430)


def draw_item(store: Store, version: SidVersion) -> None:
    """The path from the catalogue to one item."""
    st.markdown("#### Path to an item")
    text = st.text_input("identifier, or words of a title", key="sids-item")
    if not text:
        return
    found = find_items(store, version, text)
    if not found:
        st.info("No item fits.")
        return
    item_id = found[0][0]
    if len(found) > 1:
        titles = {item: title or item for item, title in found}
        item_id = st.selectbox("item", list(titles), format_func=lambda item: f"{titles[item]} ({item})")
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
                    "words of titles": ", ".join(f"{word} {share:.0%}" for word, share in step.words),
                    "such as": " | ".join(step.examples[:3]),
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
    """Another version beside this one."""
    st.markdown("#### Compared with another version")
    other = st.selectbox("other version", [NONE, *others], key="sids-other")
    if other != NONE:
        st.dataframe(compare_versions(store, str(version), other), hide_index=True, height=430)
