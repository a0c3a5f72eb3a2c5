from typing import Any

import pytest

from curate.candidates.making import PRE_RANKER
from curate.datasets.simulation import simulate
from curate.evaluation.rankers.oracle import put_oracle
from store import InputError, Store


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_no_order_beats_the_oracle(shop: Store) -> None:
    metrics = put_oracle(shop, "shop", PRE_RANKER)
    best = {metric.name: metric.value for metric in metrics["train", "oracle"]}
    ((before,),) = fetch(
        shop,
        "select value from evaluations where split = 'train' and ranker = 'cooccurrence.v1'"
        " and metric = 'conditional_ndcg_at_5'",
    )
    assert best["ndcg_at_5"] > before + 0.08


def test_each_list_that_holds_its_target_has_an_oracle_order_of_the_same_items(shop: Store) -> None:
    put_oracle(shop, "shop", PRE_RANKER)
    rows = fetch(
        shop,
        "select list_sort(o.item_ids) = list_sort(c.item_ids), list_reverse_sort(probabilities) = probabilities"
        " from oracle_rankings o join candidate_lists c using (list_id)",
    )
    assert set(rows) == {(True, True)}
    assert fetch(shop, "select count(target_rank) from candidate_lists") == [(len(rows),)]


def test_asking_again_changes_nothing(shop: Store) -> None:
    first = put_oracle(shop, "shop", PRE_RANKER)
    runs = fetch(shop, "select count(*) from runs")
    assert put_oracle(shop, "shop", PRE_RANKER) == first
    assert fetch(shop, "select count(*) from runs") == runs


def test_real_data_have_no_oracle(tiny: Store) -> None:
    assert put_oracle(tiny, "tiny", PRE_RANKER) == {}
    with pytest.raises(InputError, match="'nope'"):
        put_oracle(tiny, "nope", PRE_RANKER)


def test_a_catalogue_of_another_version_is_refused(shop: Store) -> None:
    with shop.writing() as session:
        session.connection.execute("update items set title = 'Other' where item_id = 'P01'")
    with pytest.raises(InputError, match="another version of gr2"):
        put_oracle(shop, "shop", PRE_RANKER)


def test_simulating_the_same_again_changes_nothing(shop: Store) -> None:
    assert simulate(shop, "shop", users=120, items=80, seed=1).already_there
    with pytest.raises(InputError, match="other contents"):
        simulate(shop, "shop", users=120, items=80, seed=2)
