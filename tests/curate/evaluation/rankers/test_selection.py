import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from curate.candidates.making import PRE_RANKER
from curate.evaluation.evaluate import evaluate
from curate.evaluation.rankers.offline import ScorecardRanker
from curate.evaluation.rankers.oracle import put_oracle
from curate.evaluation.rankers.selection import select_rankers
from curate.evaluation.settings import EvalSettings
from curate.traces.teachers.fitted.scorecard import fit_scorecard
from store import InputError, Store

ENDPOINT = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}


def test_names_make_rankers_in_their_order(shop: Store) -> None:
    put_oracle(shop, "shop", PRE_RANKER)
    names = ["oracle", "pre-ranker", "endpoint", "evidence"]
    selection = select_rankers(shop, "shop", names, EvalSettings(), ENDPOINT)
    assert [ranker.name for ranker in selection.rankers] == ["oracle", "m@rerank_evidence.v1", "evidence.v1"]


def test_the_oracle_gives_the_orders_that_the_store_holds(shop: Store) -> None:
    metrics = put_oracle(shop, "shop", PRE_RANKER)
    for split in ("train", "valid", "test"):
        settings = EvalSettings(split=split)
        done = evaluate(shop, "shop", select_rankers(shop, "shop", ["oracle"], settings).rankers, settings)
        figures = {(row["ranker"], row["metric"]): row["value"] for row in done.metrics.iter_rows(named=True)}
        best = {metric.name: metric.value for metric in metrics[split, "oracle"]}
        assert figures["oracle", "conditional_ndcg_at_5"] == pytest.approx(best["ndcg_at_5"])
        assert figures["oracle", "position_bias_tau"] == figures["oracle", "valid_share"] == 1


def test_default_rankers_that_cannot_be_had_are_left_out_with_their_reason(
    shop: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    selection = select_rankers(shop, "shop", None, EvalSettings(), ENDPOINT)
    assert [ranker.name for ranker in selection.rankers] == [
        "evidence.v1",
        ScorecardRanker(fit_scorecard(shop, "shop")).name,
        "m@rerank_evidence.v1",
    ]
    lambdamart, oracle = selection.left_out
    assert "lambdamart is left out: lambdamart needs lightgbm" in lambdamart
    assert "oracle is left out: there are no oracle rankings for the test lists of 'shop'" in oracle


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["best"], "test", "no ranker is called 'best'; there are: evidence, scorecard, lambdamart, endpoint, oracle"),
        (["endpoint"], "test", "ranker 'endpoint' needs `model`, which is not given"),
        (["oracle"], "test", "there are no oracle rankings for the test lists of 'shop'"),
        (["scorecard"], "train", "only `split` valid or test can judge it"),
        (["lambdamart"], "valid", "only `split` test can judge it"),
    ],
)
def test_what_is_named_and_cannot_be_had_is_an_error(names: list[str], split: str, message: str, shop: Store) -> None:
    with pytest.raises(InputError, match=message):
        select_rankers(shop, "shop", names, EvalSettings(split=split))


def test_a_model_without_endpoint_among_the_rankers_is_an_error(shop: Store) -> None:
    with pytest.raises(InputError, match="`base_url` is given, but none of the rankers evidence takes it"):
        select_rankers(shop, "shop", ["evidence"], EvalSettings(), ENDPOINT)


OWN_RANKER = """
from curate.evaluation.rankers.protocol import Ranked, given_order

class Backwards:
    def __init__(self, model, split, on_progress):
        self.name = f"backwards-{model}"
        self.settings = {"split": split}
    def rank(self, tasks):
        return [Ranked(given_order(task)[::-1]) for task in tasks]

class Nameless:
    def rank(self, tasks):
        return []
"""


def test_a_ranker_of_ones_own_is_evaluated(shop: Store, write_module: Callable[[str, str], Path]) -> None:
    write_module("own_rankers", OWN_RANKER)
    settings = EvalSettings(shuffles=0)
    selection = select_rankers(shop, "shop", ["own_rankers:Backwards"], settings, {"model": "x"})
    assert selection.rankers[0].settings == {"split": "test"}
    done = evaluate(shop, "shop", selection.rankers, settings)
    assert "backwards-x" in done.metrics["ranker"].to_list()
    with pytest.raises(InputError, match="is not a ranker: an object of Nameless lacks name, settings"):
        select_rankers(shop, "shop", ["own_rankers:Nameless"], settings)
