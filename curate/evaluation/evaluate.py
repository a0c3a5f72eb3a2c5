"""Evaluates rankers on the same candidate lists, with confidence intervals.

A re-ranker can only sort the candidates that it gets. Conditional metrics (prefix `conditional_`) therefore cover only
lists that contain their target. End-to-end metrics cover all lists, and a target outside the candidates is a miss. No
ranker sees a target. All metrics and rankings are rows of the store, one run per evaluation.

Source: the conditional protocol is the paper's (arXiv 2602.07774). Intervals, shuffles and slices are ours.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from curate.datasets.catalogue import find_dataset
from curate.datasets.provenance import code_commit
from curate.datasets.sources import choose_sources
from curate.evaluation.metrics import BOOTSTRAP_SAMPLES, Metric, mean_value
from curate.evaluation.position_bias import PositionBias, measure_position_bias, shuffle_candidates
from curate.evaluation.ranker_comparison import Comparison
from curate.evaluation.rankers.offline import PreRanker
from curate.evaluation.rankers.protocol import Ranked, Ranker, checked, given_order
from curate.evaluation.results import Evaluations, load_evaluations, metric_rows, run_row
from curate.evaluation.settings import EvalSettings
from curate.traces.target_lists import TargetLists, load_target_lists
from curate.traces.teachers.protocol import commonest_errors
from prompts.tasks import RerankTask
from store import InputError, Store
from store.progress import Counted
from store.values import utc_now


class _Outcome(NamedTuple):
    """The rankings of one ranker for all lists.

    bias: None without shuffled lists. errors: includes the errors of shuffled lists. ms_per_list: wall time of the
    whole ranking divided by the number of lists; each shuffle counts as one list.
    """

    ranker: str
    ranked: list[Ranked]
    bias: PositionBias | None
    errors: Counter[str]
    ms_per_list: float


def evaluate(
    store: Store,
    dataset: str,
    rankers: Sequence[Ranker],
    settings: EvalSettings,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Evaluations:
    """Evaluate the pre-ranker and all `rankers` on the same lists, and store rankings and metrics as one new run.

    The pre-ranker always takes part, because gains are measured against it. If a ranker fails for single lists, they
    keep their input order, and the settings of the run count them as `failures` with the most common errors. If a
    ranker raises an error, the evaluation ends and nothing is stored. Raises InputError if the dataset has no lists to
    evaluate, or if two rankers have the same name.
    """
    started = utc_now()
    with store.reading() as session:
        find_dataset(session, dataset)
        sid_version, pre_ranker = choose_sources(session, dataset, settings.sid_version, settings.pre_ranker)
    settings = replace(settings, sid_version=sid_version, pre_ranker=pre_ranker)
    everyone: list[Ranker] = [PreRanker(pre_ranker), *rankers]
    names = [ranker.name for ranker in everyone]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise InputError(f"two rankers are called {repeated[0]!r}; leave one out")
    on_progress(f"reading {settings.split} lists")
    lists = load_target_lists(store, dataset, sid_version, pre_ranker, settings.split, limit=settings.limit)
    if not lists.listed:
        raise InputError(
            f"no {settings.split} list of {dataset!r} by {pre_ranker} contains its target, so there is nothing to "
            "evaluate; choose another split or pre-ranker"
        )
    outcomes = _ask_all(everyone, lists, settings, on_progress)
    facts = {
        **asdict(settings),
        "rankers": {ranker.name: ranker.settings for ranker in everyone},
        "failures": {
            outcome.ranker: {
                "failed": outcome.errors.total(),
                "requests": len(lists.listed) * (1 + settings.shuffles),
                "commonest_errors": commonest_errors(outcome.errors),
            }
            for outcome in outcomes
            if outcome.errors
        },
        "bootstrap_samples": BOOTSTRAP_SAMPLES,
        "code_commit": code_commit(),
    }
    run = run_row(dataset, started, facts)
    _put(store, run, settings, lists, outcomes)
    return load_evaluations(store, dataset, run["run_id"])


def _ask_all(
    rankers: Sequence[Ranker], lists: TargetLists, settings: EvalSettings, on_progress: Callable[[str], None]
) -> list[_Outcome]:
    """Run all rankers. Each gets its lists and their shuffles in one call, so that it can batch and overlap them."""
    tasks = [listed.task for listed in lists.listed]
    shuffled = shuffle_candidates(tasks, settings.shuffles, settings.seed)
    all_tasks: list[RerankTask] = [*tasks, *shuffled]
    outcomes = []
    for ranker in rankers:
        ranked: list[Ranked] = []
        errors = Counter[str]()
        # Rankers may work only while their rankings are read, so the whole loop is timed.
        started = time.perf_counter()
        for task, ranking in zip(all_tasks, ranker.rank(all_tasks), strict=True):
            ranked.append(checked(task, ranking))
            if ranking.error is not None:
                errors[ranking.error] += 1
            message = f"{ranker.name}: {len(ranked):,} of {len(all_tasks):,} lists, each shuffle counted as one"
            on_progress(Counted(message, len(ranked), len(all_tasks)))
        ms_per_list = 1_000 * (time.perf_counter() - started) / len(all_tasks)
        orders = [order.item_ids for order in ranked[len(tasks) :]]
        bias = measure_position_bias(shuffled, orders, settings.shuffles) if shuffled else None
        outcomes.append(_Outcome(ranker.name, ranked[: len(tasks)], bias, errors, ms_per_list))
    return outcomes


def _put(
    store: Store, run: dict[str, Any], settings: EvalSettings, lists: TargetLists, outcomes: Sequence[_Outcome]
) -> None:
    """Compute all metrics and store them in one transaction."""
    # _B: lists, _R: rankers. checked() has completed every ranking, so each contains the target.
    ranks_B_R = np.array(
        [
            [order.item_ids.index(listed.target_item_id) + 1 for order in orders]
            for listed, *orders in zip(lists.listed, *(outcome.ranked for outcome in outcomes), strict=True)
        ]
    )
    compared = Comparison(tuple(outcome.ranker for outcome in outcomes), ranks_B_R, lists.misses, settings.seed)
    metrics = [*compared.metrics(), *_habits(outcomes, lists, settings.seed), *_costs(outcomes, settings.seed)]
    slices = [*compared.slices(_buckets(lists.facts)), *_first_picks(outcomes, settings.seed)]
    of_run = {"run_id": run["run_id"], "dataset": run["dataset"], "split": settings.split}
    evaluations = metric_rows(of_run, ("ranker",), metrics)
    differences = metric_rows(of_run, ("ranker", "other"), compared.differences())
    evaluation_slices = metric_rows(of_run, ("ranker", "slice", "bucket"), slices)
    rankings = [
        {
            "run_id": run["run_id"],
            "list_id": listed.list_id,
            "ranker": outcome.ranker,
            "item_ids": ranked.item_ids,
            "valid": ranked.valid,
        }
        for outcome in outcomes
        for listed, ranked in zip(lists.listed, outcome.ranked, strict=True)
    ]
    with store.writing(patient=True) as session:
        session.put("runs", pl.DataFrame([run]))
        session.put("evaluations", pl.DataFrame(evaluations))
        session.put("evaluation_differences", pl.DataFrame(differences))
        session.put("evaluation_slices", pl.DataFrame(evaluation_slices))
        session.put("rankings", pl.DataFrame(rankings))


def _habits(outcomes: Sequence[_Outcome], lists: TargetLists, seed: int) -> Iterator[tuple[str, Metric]]:
    """Yield (ranker, metric): the shares of valid and of copied answers, and the effect of the input order."""
    for ranker, ranked, bias, *_ in outcomes:
        copied = [
            order.valid and order.item_ids == given_order(listed.task)
            for listed, order in zip(lists.listed, ranked, strict=True)
        ]
        yield ranker, mean_value("valid_share", np.array([order.valid for order in ranked]), seed=seed)
        yield ranker, mean_value("copy_share", np.array(copied), seed=seed)
        if bias is not None:
            yield ranker, mean_value("position_bias_tau", bias.tau_B, seed=seed)
            yield ranker, mean_value("top1_consistency", bias.top1_consistent_B, seed=seed)


def _costs(outcomes: Sequence[_Outcome], seed: int) -> Iterator[tuple[str, Metric]]:
    """Yield (ranker, metric): the time per list, and the prompt and completion tokens per list if they were counted."""
    for ranker, ranked, *_, ms_per_list in outcomes:
        # One measurement for all lists has no interval.
        yield ranker, Metric("ms_per_list", ms_per_list, None, None, len(ranked))
        for name in ("prompt_tokens", "completion_tokens"):
            counts = [count for order in ranked if (count := getattr(order, name)) is not None]
            if counts:
                yield ranker, mean_value(name, np.array(counts, np.float64), seed=seed)


def _first_picks(outcomes: Sequence[_Outcome], seed: int) -> Iterator[tuple[str, str, str, Metric]]:
    """Yield (ranker, slice, bucket, metric): how often the first pick stood at each position of the shuffled input.

    The metric is the share of first picks at that position.
    """
    for ranker, _, bias, *_ in outcomes:
        if bias is not None:
            for place, shares_B in enumerate(bias.first_picks_B_P.T, 1):
                yield ranker, "input_position", str(place), mean_value("first_pick_share", shares_B, seed=seed)


def _buckets(facts: pl.DataFrame) -> pl.DataFrame:
    """The buckets of the slices: one row per list, one column of bucket names per slice."""
    length = pl.col("history_length")
    return facts.select(
        history_length=pl.when(length <= 2)
        .then(pl.lit("1-2"))
        .when(length <= 5)
        .then(pl.lit("3-5"))
        .when(length <= 10)
        .then(pl.lit("6-10"))
        .otherwise(pl.lit("11+")),
        target_popularity=pl.col("target_popularity").cast(pl.String),
        pre_rank=pl.col("target_rank").cast(pl.String),
    )
