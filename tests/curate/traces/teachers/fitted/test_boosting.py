import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from curate.datasets.sources import choose_sources
from curate.traces.target_lists import load_target_lists
from curate.traces.teachers.fitted.boosting import import_lightgbm
from curate.traces.teachers.fitted.candidate_features import candidate_features
from store import InputError, Store
from store.records import FOLDS

from .conftest import FEW, fit


def test_each_model_has_not_seen_the_users_of_its_fold(shop: Store) -> None:
    """Other targets in one fold change every model but that fold's own."""
    before = fit(shop)
    with shop.writing() as session:
        # The target of each list of fold 2 becomes its last candidate.
        session.connection.execute(
            "update candidate_lists set target_item_id = item_ids[-1], target_rank = len(item_ids) "
            "where fold = 2 and target_rank is not null"
        )
    after = fit(shop)
    assert sorted(before.boosters) == list(range(FOLDS))
    same = {
        fold: [booster.model_to_string() for booster in before.boosters[fold]]
        == [booster.model_to_string() for booster in after.boosters[fold]]
        for fold in range(FOLDS)
    }
    assert same == {fold: fold == 2 for fold in range(FOLDS)}


def test_lists_of_other_splits_get_the_mean_of_all_models(shop: Store) -> None:
    models = fit(shop)
    with shop.reading() as session:
        sources = choose_sources(session, "shop", None, None)
    tasks = [listed.task for listed in load_target_lists(shop, "shop", *sources, "test", limit=5).listed]
    by_fold = [models.scores(tasks, fold) for fold in range(FOLDS)]
    assert models.scores(tasks, None) == pytest.approx(np.mean(by_fold, axis=0))
    assert not np.allclose(by_fold[0], by_fold[1])


def test_scores_are_log_odds(shop: Store) -> None:
    """On training lists, by models that have not seen them: a share of p of the targets where the softmax says p."""
    models = fit(shop, settings=replace(FEW, rounds=100))
    with shop.reading() as session:
        sources = choose_sources(session, "shop", None, None)
    lists = load_target_lists(shop, "shop", *sources, "train")
    chances, hits = [], []
    for listed, fold in zip(lists.listed, lists.facts["fold"], strict=True):
        odds = np.exp(models.scores([listed.task], fold))
        chances += (odds / odds.sum()).tolist()
        hits += [candidate.item.item_id == listed.target_item_id for candidate in listed.task.candidates]
    chance, hit = np.array(chances), np.array(hits)
    for low, high in ((0.0, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 1.0)):
        within = (chance >= low) & (chance < high)
        spread = 4 * np.sqrt(0.25 / within.sum())
        assert hit[within].mean() == pytest.approx(chance[within].mean(), abs=spread)


def test_contributions_add_up_to_the_difference_between_candidates(shop: Store) -> None:
    models = fit(shop)
    with shop.reading() as session:
        sources = choose_sources(session, "shop", None, None)
    task = load_target_lists(shop, "shop", *sources, "test", limit=1).listed[0].task
    contributions_K_F = models.contributions(task, None)
    assert contributions_K_F.shape == candidate_features(task).shape
    scores_K, sums_K = models.scores([task], None), contributions_K_F.sum(axis=1)
    assert sums_K - sums_K[0] == pytest.approx(scores_K - scores_K[0], abs=1e-5)


@pytest.mark.slow
def test_the_same_lists_give_the_same_models(shop: Store) -> None:
    assert fit(shop).digest == fit(shop).digest
    assert fit(shop).digest != fit(shop, settings=replace(FEW, seed=1)).digest


def test_no_lists_is_said(shop: Store) -> None:
    with pytest.raises(InputError, match="no train list of 'nope' does"):
        fit(shop, "nope")


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(InputError, match="needs lightgbm, which is not installed: pip install 'lightgbm"):
        import_lightgbm()
    (tmp_path / "lightgbm.py").write_text("raise OSError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "lightgbm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"libgomp\.so\.1.*apt-get install libgomp1"):
        import_lightgbm()
