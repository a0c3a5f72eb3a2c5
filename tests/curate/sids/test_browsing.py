import polars as pl

from curate.sids.browsing import find_items, load_code_usage, load_collisions, load_prefix_tree
from curate.sids.versions import SidVersion, list_versions, load_codes
from store import Store


def newest(store: Store) -> SidVersion:
    return SidVersion(*list_versions(store).select("dataset", "sid_version").row(0))


def test_bars_of_the_tree_lie_under_their_parents_and_hold_every_item(shop: Store) -> None:
    tree = load_prefix_tree(shop, newest(shop), 2)
    top, below = tree.filter(level=1), tree.filter(level=2)
    assert top["items"].sum() == below["items"].sum() == 80
    assert (tree["end"] - tree["start"]).to_list() == tree["items"].to_list()
    spans = {row["prefix"]: (row["start"], row["end"]) for row in top.iter_rows(named=True)}
    for row in below.iter_rows(named=True):
        start, end = spans[row["prefix"].split(".")[0]]
        assert start <= row["start"] < row["end"] <= end
    assert sorted(top["start"].to_list()[1:]) == sorted(top["end"].to_list()[:-1])


def test_one_first_code_fills_the_whole_width(shop: Store) -> None:
    version = newest(shop)
    code, items = load_prefix_tree(shop, version, 1).sort("items").select("prefix", "items").row(-1)
    inside = load_prefix_tree(shop, version, 3, int(code))
    assert inside["prefix"].str.split(".").list.first().unique().to_list() == [code]
    assert inside["end"].max() == items


def test_usage_and_collisions_agree_with_the_codes(shop: Store) -> None:
    version = newest(shop)
    with shop.reading() as session:
        codes = list(load_codes(session, version).values())
    usage = load_code_usage(shop, version, 4)
    for level in range(4):
        counts = pl.Series([code[level] for code in codes]).value_counts(sort=True)
        of_level = usage.filter(level=level + 1)
        assert of_level["items"].to_list() == counts["count"].sort(descending=True).to_list()
        assert of_level["rank"].to_list() == list(range(1, len(counts) + 1))
    counts = pl.Series([str(code[0]) for code in codes]).value_counts().filter(pl.col("count") > 1)
    collisions = load_collisions(shop, version, 1)
    assert dict(collisions.select("prefix", "items").rows()).items() <= dict(counts.rows()).items()
    assert collisions["items"].is_sorted(descending=True)


def test_items_are_found_by_identifier_and_by_words_of_their_title(shop: Store) -> None:
    version = newest(shop)
    with shop.reading() as session:
        ((item, title),) = session.connection.execute("select item_id, title from items limit 1").fetchall()
    assert find_items(shop, version, item)[0] == (item, title)
    assert item in [found for found, _ in find_items(shop, version, title.upper())]
    assert find_items(shop, version, "no such thing") == []
    assert find_items(shop, version, "%' or 1=1 --") == []
