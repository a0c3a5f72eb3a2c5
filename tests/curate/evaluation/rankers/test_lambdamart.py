import polars as pl
import pytest

from curate.candidates.making import PRE_RANKER
from curate.datasets.sources import choose_sources
from curate.evaluation.evaluate import evaluate
from curate.evaluation.rankers.lambdamart import LambdaMartRanker, train_lambdamart_ranker
from curate.evaluation.settings import EvalSettings
from curate.traces.teachers.fitted.boosting import LambdaMartSettings, import_lightgbm
from prompts.tasks import RerankTask
from store import InputError, Store


def train(store: Store, settings: LambdaMartSettings | None = None, split: str = "test") -> LambdaMartRanker:
    try:
        import_lightgbm()
    except InputError as error:
        pytest.skip(str(error))
    with store.reading() as session:
        sid_version, _ = choose_sources(session, "shop", None, None)
    return train_lambdamart_ranker(store, "shop", sid_version, PRE_RANKER, split, settings=settings)


def test_it_learns_on_the_simulated_shop(shop: Store) -> None:
    done = evaluate(shop, "shop", [train(shop)], EvalSettings(shuffles=0))
    gain = done.metrics.row(by_predicate=pl.col("metric") == "conditional_ndcg_at_5_gain", named=True)
    assert gain["value"] > 0.1
    assert gain["low"] > 0


def test_candidates_that_score_the_same_stay_in_their_order(shop: Store, task: RerankTask) -> None:
    ranker = train(shop, LambdaMartSettings(rounds=1, least_candidates_per_leaf=10**6))
    assert [list(ranked.item_ids) for ranked in ranker.rank([task, task])] == [["c", "d", "e"]] * 2
    assert list(ranker.rank([])) == []


def test_lists_that_it_has_learned_from_are_refused(shop: Store) -> None:
    with pytest.raises(InputError, match="only `split` test can judge it"):
        train(shop, split="valid")
