from collections.abc import Callable, Sequence

import pytest

from curate.sids.assignment import assign_semantic_ids
from curate.sids.extension import extend_semantic_ids
from curate.sids.quantizers import ResidualKMeans
from curate.sids.settings import PurchaseSettings
from curate.sids.versions import find_version, load_codes
from store import InputError, Store

PutTexts = Callable[[str, Sequence[str]], None]

FIRST = ["red soap", "red brush", "blue soap", "blue brush", "green towel", "green soap", "red towel", "blue towel"]
TEXT_ALONE = PurchaseSettings(copurchase_weight=0)
SMALL = ResidualKMeans(levels=3, codebook_size=4)


def codes_of(store: Store, name: str) -> dict[str, tuple[int, ...]]:
    with store.reading() as session:
        return load_codes(session, find_version(session, name))


def test_known_items_keep_their_ids_and_new_ones_get_free_ones(put_texts: PutTexts, store: Store) -> None:
    put_texts("may", FIRST)
    put_texts("june", [*FIRST, "red soap", "blue brush", "quite unheard of"])
    base = assign_semantic_ids(store, "may", SMALL)
    summary = extend_semantic_ids(store, "june", "may")
    before, after = codes_of(store, "may"), codes_of(store, "june")
    assert {item: after[item] for item in before} == before
    assert len(set(after.values())) == 11
    assert summary.uniqueness == 1.0
    assert summary.settings["extends"] == str(base.version)
    figures = {measure.measure: measure.value for measure in summary.measures if measure.level is None}
    assert (figures["new_items"], figures["gone_items"], figures["changed_texts"]) == (3, 0, 0)
    assert figures["new_share_unknown"] == pytest.approx(1 / 3)
    assert figures["new_error"] > 0


def test_a_new_item_like_an_old_one_shares_its_prefix(put_texts: PutTexts, store: Store) -> None:
    put_texts("may", FIRST)
    put_texts("june", [*FIRST, "blue towel"])
    assign_semantic_ids(store, "may", SMALL, purchases=TEXT_ALONE)
    extend_semantic_ids(store, "june", "may")
    codes = codes_of(store, "june")
    assert codes["i008"][:2] == codes["i007"][:2]
    assert codes["i008"] != codes["i007"]


def test_extending_again_changes_nothing_and_extending_twice_skips_ids_of_items_that_are_gone(
    put_texts: PutTexts, store: Store
) -> None:
    put_texts("may", FIRST)
    put_texts("june", FIRST[:5])
    put_texts("july", [*FIRST[:5], *(["red towel"] * 6)])
    assign_semantic_ids(store, "may", SMALL, purchases=TEXT_ALONE)
    assert not extend_semantic_ids(store, "june", "may").already_there
    assert extend_semantic_ids(store, "june", "may").already_there
    summary = extend_semantic_ids(store, "july", "june")
    assert summary.figure("new_items") == 6
    assert extend_semantic_ids(store, "june", "may").figure("gone_items") == 3
    may, july = codes_of(store, "may"), codes_of(store, "july")
    gone = {may[item] for item in ("i005", "i006", "i007")}
    assert not gone & set(july.values())
    assert len(set(july.values())) == 11


def test_ids_without_a_random_level_are_not_shared_by_newcomers(put_texts: PutTexts, store: Store) -> None:
    put_texts("may", FIRST)
    put_texts("june", [*FIRST, "blue towel", "blue towel"])
    assign_semantic_ids(store, "may", ResidualKMeans(levels=3, codebook_size=8, random_levels=0))
    extend_semantic_ids(store, "june", "may")
    before, after = codes_of(store, "may"), codes_of(store, "june")
    new = [after["i008"], after["i009"]]
    assert len(set(new)) == 2
    assert not set(new) & set(before.values())


def test_changed_texts_are_counted_and_keep_their_ids(put_texts: PutTexts, store: Store) -> None:
    put_texts("may", FIRST)
    put_texts("june", ["another text altogether", *FIRST[1:]])
    assign_semantic_ids(store, "may", SMALL)
    assert extend_semantic_ids(store, "june", "may").figure("changed_texts") == 1
    assert codes_of(store, "june") == codes_of(store, "may")


def test_what_cannot_be_extended_is_a_clear_error(put_texts: PutTexts, store: Store) -> None:
    put_texts("may", FIRST)
    put_texts("full", ["x"] * 9)
    assign_semantic_ids(store, "may", ResidualKMeans(levels=3, codebook_size=2))
    with pytest.raises(InputError, match="is a version of 'may' itself"):
        extend_semantic_ids(store, "may", "may")
    with pytest.raises(InputError, match="'nope' names no version of semantic IDs; there are: may@"):
        extend_semantic_ids(store, "full", "nope")
    with pytest.raises(InputError, match="all 8 semantic IDs are taken"):
        extend_semantic_ids(store, "full", "may")
