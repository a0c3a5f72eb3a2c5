import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import ndcg_score

from curate.candidates.making import PRE_RANKER
from curate.evaluation.evaluate import evaluate
from curate.evaluation.rankers.offline import EvidenceRanker
from curate.evaluation.rankers.protocol import Ranked, given_order
from curate.evaluation.results import Evaluations, load_evaluations
from curate.evaluation.settings import EvalSettings
from prompts.tasks import RerankTask
from store import InputError, Store


class FakeRanker:
    """Orders each task as a function says, and keeps what it was shown."""

    settings: dict[str, Any] = {"made": "up"}  # noqa: RUF012

    def __init__(self, order: Callable[[RerankTask], Sequence[str]], name: str = "fake") -> None:
        self.order = order
        self.name = name
        self.shown: list[Any] = []

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        for task in tasks:
            self.shown.append(task)
            yield Ranked(self.order(task))


def backwards(task: RerankTask) -> list[str]:
    return given_order(task)[::-1]


def by_name(task: RerankTask) -> list[str]:
    return sorted(given_order(task))


def value(done: Evaluations, ranker: str, metric: str) -> float:
    found: float = done.metrics.row(
        by_predicate=(pl.col("ranker") == ranker) & (pl.col("metric") == metric), named=True
    )["value"]
    return found


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def strings(thing: Any) -> Iterable[str]:
    """Every string in a task."""
    if isinstance(thing, str):
        yield thing
    elif isinstance(thing, tuple):
        for part in thing:
            yield from strings(part)
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from strings(getattr(thing, field.name))


def test_a_ranker_cannot_see_the_target(shop: Store) -> None:
    ranker = FakeRanker(by_name)
    evaluate(shop, "shop", [ranker], EvalSettings())
    assert {type(task) for task in ranker.shown} == {RerankTask}
    assert {task.target for task in ranker.shown} == {None}
    # Where the target is no item of the history, it is in the task as one candidate of ten and nowhere else.
    rows = fetch(
        shop,
        "select target_item_id from candidate_lists where split = 'test' and target_rank is not null order by list_id",
    )
    for task, (target,) in zip(ranker.shown, rows, strict=False):
        assert target in given_order(task)
        assert list(strings(task)).count(target) == 1


def test_figures_are_those_of_an_independent_count(shop: Store) -> None:
    done = evaluate(shop, "shop", [FakeRanker(by_name)], EvalSettings())
    lists = fetch(
        shop, "select target_item_id, item_ids from candidate_lists where split = 'test' and target_rank is not null"
    )
    relevance = np.array([[item == target for item in sorted(items)] for target, items in lists], dtype=float)
    scores = np.tile(np.arange(10, 0, -1.0), (len(lists), 1))
    assert value(done, "fake", "conditional_ndcg_at_5") == pytest.approx(ndcg_score(relevance, scores, k=5))
    assert value(done, "fake", "conditional_ndcg_at_3") == pytest.approx(ndcg_score(relevance, scores, k=3))
    assert value(done, "fake", "conditional_recall_at_1") == pytest.approx(relevance[:, 0].mean())
    assert value(done, "fake", "conditional_mrr") == pytest.approx((1 / (relevance.argmax(axis=1) + 1)).mean())
    ((all_lists,),) = fetch(shop, "select count(*) from candidate_lists where split = 'test'")
    for metric in ("recall_at_1", "recall_at_5", "ndcg_at_5", "mrr"):
        conditional = value(done, "fake", f"conditional_{metric}")
        assert value(done, "fake", metric) == pytest.approx(conditional * len(lists) / all_lists)


def test_the_pre_ranker_always_takes_part_with_the_figures_it_had_before(shop: Store) -> None:
    before = fetch(
        shop,
        f"select metric, value, n from evaluations where split = 'test' and ranker = '{PRE_RANKER}'"
        " and metric not like '%10' order by metric",
    )
    done = evaluate(shop, "shop", [], EvalSettings())
    shared = done.metrics.filter(pl.col("metric").is_in([metric for metric, *_ in before])).sort("metric")
    assert shared.select("metric", "value", "n").rows() == before
    assert value(done, PRE_RANKER, "copy_share") == value(done, PRE_RANKER, "valid_share") == 1
    assert done.differences.height == 0


def test_tokens_and_milliseconds_of_a_list_are_figures_of_the_evaluation(shop: Store) -> None:
    class Counting(FakeRanker):
        """Counts what it reads, except for the first list. Each list takes 2 ms, while its ranking is asked for."""

        def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
            for number, ranked in enumerate(super().rank(tasks)):
                time.sleep(0.002)
                yield ranked._replace(prompt_tokens=100 + number, completion_tokens=7) if number else ranked

    done = evaluate(shop, "shop", [Counting(by_name, "counting"), FakeRanker(by_name)], EvalSettings(limit=5))
    rows = done.metrics.filter(pl.col("metric").is_in(["prompt_tokens", "completion_tokens", "ms_per_list"]))
    figures = {(row["ranker"], row["metric"]): row for row in rows.iter_rows(named=True)}
    read = figures["counting", "prompt_tokens"]
    # Of lists as they are, not of their shuffles: 101, 102, 103 and 104.
    assert (read["value"], read["n"]) == (102.5, 4)
    assert read["low"] < read["value"] < read["high"]
    assert figures["counting", "completion_tokens"]["value"] == 7
    # Every ranker takes time; one that counts no tokens has no figure of them.
    assert {ranker for ranker, metric in figures if metric == "ms_per_list"} == {PRE_RANKER, "counting", "fake"}
    assert {ranker for ranker, metric in figures if metric == "prompt_tokens"} == {"counting"}
    taken = figures["counting", "ms_per_list"]
    assert (taken["low"], taken["high"], taken["n"]) == (None, None, 5)
    assert taken["value"] >= 2


def test_gains_are_differences_and_every_pair_is_compared(shop: Store) -> None:
    done = evaluate(shop, "shop", [EvidenceRanker(), FakeRanker(backwards)], EvalSettings(shuffles=0))
    pairs = {(row["ranker"], row["other"]): row for row in done.differences.iter_rows(named=True)}
    assert pairs.keys() == {("evidence.v1", PRE_RANKER), ("fake", PRE_RANKER), ("fake", "evidence.v1")}
    for (ranker, other), row in pairs.items():
        expected = value(done, ranker, "conditional_ndcg_at_5") - value(done, other, "conditional_ndcg_at_5")
        assert row["value"] == pytest.approx(expected)
        assert row["low"] <= row["value"] <= row["high"]
    gain = done.metrics.filter((pl.col("metric") == "conditional_ndcg_at_5_gain") & (pl.col("ranker") == "fake"))
    assert gain.select("value", "low", "high").row(0) == tuple(
        pairs["fake", PRE_RANKER][name] for name in ("value", "low", "high")
    )


def test_an_order_that_is_none_falls_back_to_the_input_and_is_counted(shop: Store) -> None:
    broken = FakeRanker(lambda task: by_name(task)[1:] if task.history[-1].item_id < "P40" else by_name(task), "broken")
    done = evaluate(shop, "shop", [broken], EvalSettings())
    rows = fetch(
        shop,
        "select valid, r.item_ids = c.item_ids, r.item_ids = list_sort(c.item_ids), history[-1] < 'P40'"
        " from rankings r join candidate_lists c using (list_id) where ranker = 'broken'",
    )
    assert {row[:3] for row in rows if row[3]} == {(False, True, False)}
    assert {row[0] for row in rows if not row[3]} == {True}
    assert 0 < value(done, "broken", "valid_share") == sum(row[0] for row in rows) / len(rows) < 1
    assert value(done, "broken", "copy_share") == 0


def test_position_bias_tells_who_looks_at_positions(shop: Store) -> None:
    done = evaluate(shop, "shop", [FakeRanker(by_name), FakeRanker(backwards, "backwards")], EvalSettings())
    assert value(done, "fake", "position_bias_tau") == value(done, "fake", "top1_consistency") == 1
    assert abs(value(done, PRE_RANKER, "position_bias_tau")) < 0.1
    assert value(done, PRE_RANKER, "top1_consistency") < 0.1
    picks = done.slices.filter((pl.col("slice") == "input_position") & (pl.col("ranker") == "backwards"))
    assert picks["bucket"].to_list() == [str(place) for place in range(1, 11)]
    assert picks["value"].to_list() == pytest.approx([0] * 9 + [1])


def test_slices_add_up_to_the_whole(shop: Store) -> None:
    done = evaluate(shop, "shop", [FakeRanker(by_name)], EvalSettings(shuffles=0))
    whole = value(done, "fake", "conditional_ndcg_at_5")
    for slice_ in ("history_length", "target_popularity", "pre_rank"):
        rows = done.slices.filter(
            (pl.col("slice") == slice_) & (pl.col("ranker") == "fake") & (pl.col("metric") == "conditional_ndcg_at_5")
        )
        assert (rows["value"] * rows["n"]).sum() / rows["n"].sum() == pytest.approx(whole)
    pre_rank = done.slices.filter((pl.col("slice") == "pre_rank") & (pl.col("ranker") == PRE_RANKER))
    first = pre_rank.filter((pl.col("bucket") == "1") & (pl.col("metric") == "conditional_recall_at_1"))
    assert first["value"].to_list() == [1]
    lengths = done.slices.filter(pl.col("slice") == "history_length")["bucket"].unique(maintain_order=True)
    assert lengths.to_list() == ["3-5", "6-10", "11+"]


def test_a_limit_takes_lists_until_so_many_hold_their_target(shop: Store) -> None:
    done = evaluate(shop, "shop", [], EvalSettings(limit=10))
    n = dict(done.metrics.select("metric", "n").iter_rows())
    assert n["conditional_mrr"] == 10
    ((share, last),) = fetch(
        shop,
        "select count(*), max(list_id) from candidate_lists where split = 'test' and list_id <= (select list_id from"
        " candidate_lists where split = 'test' and target_rank is not null order by list_id limit 1 offset 9)",
    )
    assert n["mrr"] == share
    assert fetch(shop, "select max(list_id) from rankings") == [(last,)]


def test_every_evaluation_is_a_run_of_its_own_that_says_how_it_was_made(shop: Store) -> None:
    first = evaluate(shop, "shop", [FakeRanker(by_name)], EvalSettings(seed=3))
    second = evaluate(shop, "shop", [FakeRanker(by_name)], EvalSettings(seed=3))
    # Only the time of a list differs.
    metrics, again = (done.metrics.drop("run_id").filter(pl.col("metric") != "ms_per_list") for done in (first, second))
    assert metrics.equals(again)
    assert first.slices.drop("run_id").equals(second.slices.drop("run_id"))
    loaded = load_evaluations(shop, "shop")
    assert loaded.runs["run_id"].to_list() == [second.runs["run_id"][0], first.runs["run_id"][0]]
    assert loaded.metrics.height == 2 * first.metrics.height
    settings = json.loads(first.runs["settings"][0])
    assert settings["pre_ranker"] == PRE_RANKER
    assert settings["sid_version"].startswith("rq-kmeans")
    assert (settings["seed"], settings["split"]) == (3, "test")
    assert settings["rankers"] == {PRE_RANKER: {}, "fake": {"made": "up"}}
    assert settings.keys() >= {"code_commit", "bootstrap_samples", "shuffles", "limit"}


def test_an_evaluation_that_fails_leaves_nothing(shop: Store) -> None:
    def fail(_: RerankTask) -> list[str]:
        raise InputError("no")

    runs = fetch(shop, "select count(*) from runs")
    with pytest.raises(InputError, match="no"):
        evaluate(shop, "shop", [FakeRanker(fail)], EvalSettings())
    assert fetch(shop, "select count(*) from runs") == runs
    assert load_evaluations(shop, "shop").runs.height == 0


def test_mistakes_are_said(shop: Store, tiny: Store) -> None:
    with pytest.raises(InputError, match="two rankers are called 'fake'"):
        evaluate(shop, "shop", [FakeRanker(by_name), FakeRanker(backwards)], EvalSettings())
    with pytest.raises(InputError, match="run gr2 sids tiny first"):
        evaluate(tiny, "tiny", [], EvalSettings())
    with pytest.raises(InputError, match="no pre-ranker is called 'x'"):
        evaluate(shop, "shop", [], EvalSettings(pre_ranker="x"))
    for settings, message in (
        ({"split": "all"}, "`split` is 'all'"),
        ({"limit": 0}, "`limit` is 0"),
        ({"shuffles": 1}, "`shuffles` is 1"),
    ):
        with pytest.raises(InputError, match=message):
            EvalSettings(**settings)
