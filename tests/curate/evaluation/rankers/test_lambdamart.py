import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curate.candidates import PRE_RANKER
from curate.datasets.sources import choose_sources
from curate.evaluation.evaluate import evaluate
from curate.evaluation.rankers.lambdamart import (
    LambdaMartRanker,
    LambdaMartSettings,
    candidate_features,
    feature_names,
    import_lightgbm,
    train_lambdamart,
)
from curate.evaluation.settings import EvalSettings
from prompts.tasks import RerankTask
from store import InputError, Store


def train(store: Store, dataset: str = "shop", settings: LambdaMartSettings | None = None) -> LambdaMartRanker:
    try:
        import_lightgbm()
    except InputError as error:
        pytest.skip(str(error))
    with store.reading() as session:
        sid_version, _ = choose_sources(session, "shop", None, None)
    return train_lambdamart(store, dataset, sid_version, PRE_RANKER, settings)


def test_hand_worked_features(task: RerankTask) -> None:
    first, second, third = (dict(zip(feature_names(), row, strict=True)) for row in candidate_features(task))
    assert first == dict.fromkeys(feature_names(), 0) | {"log_score": pytest.approx(math.log(2)), "history_length": 2}
    assert second["log_score_to_best"] == pytest.approx(-math.log(2))
    assert (second["last_weight"], second["last_weight_to_best"]) == (0.5, 0.5)
    assert (second["after_last"], second["after_second_last"], second["before_second_last"]) == (0, 1, 2)
    assert (third["position"], third["after_last"], third["after_second_last"]) == (2, 3, 4)
    assert (third["after_all"], third["before_all"], third["links"]) == (7, 1, 2)
    assert (third["after_third_last"], third["before_third_last"]) == (0, 0)
    assert (third["shared_category_depth"], third["shared_category_items"], third["same_brand_items"]) == (2, 1, 1)


def test_item_counts_are_left_out_unless_asked_for(task: RerankTask) -> None:
    assert "popularity" not in feature_names()
    with_popularity = candidate_features(task, popularity=True)
    assert [row[-1] for row in with_popularity] == [5, 0, 2]
    assert [row[:-1] for row in with_popularity] == candidate_features(task)
    assert len(feature_names(popularity=True)) == len(with_popularity[0])


def test_features_without_evidence_are_finite(task: RerankTask) -> None:
    bare = replace(task, history=(), candidates=tuple(replace(c, evidence=None) for c in task.candidates))
    assert np.isfinite(candidate_features(bare)).all()


def test_it_learns_on_the_simulated_shop(shop: Store) -> None:
    done = evaluate(shop, "shop", [train(shop)], EvalSettings(shuffles=0))
    gain = done.metrics.row(by_predicate=pl.col("metric") == "conditional_ndcg_at_5_gain", named=True)
    assert gain["value"] > 0.1
    assert gain["low"] > 0


def test_the_same_lists_give_the_same_model(shop: Store) -> None:
    settings = LambdaMartSettings(rounds=20)
    first, second = (train(shop, settings=settings).booster.model_to_string() for _ in range(2))
    assert first == second


def test_candidates_that_score_the_same_stay_in_their_order(shop: Store, task: RerankTask) -> None:
    ranker = train(shop, settings=LambdaMartSettings(rounds=1, least_candidates_per_leaf=10**6))
    assert [list(ranked.item_ids) for ranked in ranker.rank([task, task])] == [["c", "d", "e"]] * 2
    assert list(ranker.rank([])) == []


def test_no_lists_is_said(shop: Store) -> None:
    with pytest.raises(InputError, match="no train list of 'nope' does"):
        train(shop, "nope")


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(InputError, match="needs lightgbm, which is not installed: pip install 'lightgbm"):
        import_lightgbm()
    (tmp_path / "lightgbm.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "lightgbm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"libgomp\.so\.1.*apt-get install libgomp1"):
        import_lightgbm()
