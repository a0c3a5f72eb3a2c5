import json

import numpy as np
import polars as pl
import pytest

from curate.review.configurations import (
    ANY,
    ATTEMPTS,
    FIRST_ACCEPTED,
    RANK,
    SHARE,
    Configuration,
    compare_configurations,
    list_configurations,
    measure_configurations,
)
from curate.review.trace_pages import count_traces
from curate.traces.filter import TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import RequestFailedError
from store import InputError, Store


def lists(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame(
        columns, schema_overrides={"first_accepted": pl.Float64, "first_rank": pl.Float64, "target_rank": pl.Int32}
    )


def test_configurations_are_compared_on_the_lists_that_both_tried() -> None:
    first = lists(
        list_id=["a", "b", "c", "d", "only"],
        target_rank=[4, 2, 3, None, 1],
        attempts=[1, 4, 2, 4, 1],
        accepted=[1, 1, 1, 0, 1],
        first_accepted=[1, 0, None, 0, 1],
        first_rank=[1, 3, None, None, 1],
    )
    second = lists(
        list_id=["d", "c", "b", "a"],
        target_rank=[None, 3, 2, 4],
        attempts=[2, 2, 1, 4],
        accepted=[0, 1, 1, 0],
        first_accepted=[0, 1, 1, 0],
        first_rank=[None, 2, 1, 5],
    )
    found = measure_configurations(first, second)
    assert found.lists == 4
    means = {one.name: (one.first, one.second, one.difference.value, one.difference.n) for one in found.measures}
    assert means == {
        FIRST_ACCEPTED: pytest.approx((1 / 3, 1 / 3, 0, 3)),
        SHARE: pytest.approx((0.4375, 0.375, 0.0625, 4)),
        ANY: pytest.approx((0.75, 0.5, 0.25, 4)),
        ATTEMPTS: pytest.approx((2.75, 2.25, 0.5, 4)),
        RANK: pytest.approx((2, 3, -1, 2)),
    }
    assert all(one.difference.low <= one.difference.value <= one.difference.high for one in found.measures)
    assert found.rank_before == 3
    assert found.passed_2_2.tolist() == [[2, 1], [0, 1]]
    assert found.first_better.select("list_id", "gap", "rank_before", "rank", "rank_2").rows() == [("a", 1, 4, 1, 5)]
    assert found.second_better.select("list_id", "gap").rows() == [("b", -0.75)]


def test_an_configuration_differs_from_itself_by_nothing_and_turned_round_by_the_opposite(tried: Store) -> None:
    one, other = list(list_configurations(tried))[:2]
    same = compare_configurations(tried, one, one)
    assert {measure.difference[1:4] for measure in same.measures} == {(0.0, 0.0, 0.0)}
    assert same.first_better.height == same.second_better.height == same.passed_2_2[0, 1] == 0
    there, back = compare_configurations(tried, one, other), compare_configurations(tried, other, one)
    assert there.lists == back.lists == 30
    assert [one.difference.value for one in there.measures] == pytest.approx(
        [-one.difference.value for one in back.measures]
    )
    assert there.passed_2_2.tolist() == back.passed_2_2.T.tolist()
    assert there.first_better["list_id"].equals(back.second_better["list_id"])
    assert compare_configurations(tried, one, other, seed=0).measures == there.measures
    assert compare_configurations(tried, one, other, seed=1).measures != there.measures


def test_figures_of_configurations_are_those_of_the_store(tried: Store) -> None:
    configurations = list_configurations(tried)
    assert sum(configurations.values()) == count_traces(tried, TraceFilter())
    one, other = list(configurations)[:2]
    compared = {measure.name: measure for measure in compare_configurations(tried, one, other).measures}
    with tried.reading() as session:
        stored = session.connection.execute(
            "with lists as (select list_id, avg(accepted::int) as share, max(accepted::int) as passed,"
            " max(predicted_rank) filter (sample_index = 0) as rank, count(*) as attempts from trace_browser"
            f" where template = '{one.template}' and teacher = 'evidence' group by list_id)"
            " select avg(share), avg(passed), avg(rank), avg(attempts) from lists"
        ).fetchall()
    assert [compared[name].first for name in (SHARE, ANY, RANK, ATTEMPTS)] == pytest.approx(stored[0])


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        wins = rng.binomial(1, 0.6, size=80)
        first, second = (
            lists(
                list_id=[str(place) for place in range(80)],
                target_rank=[1] * 80,
                attempts=[1] * 80,
                accepted=accepted.tolist(),
                first_accepted=accepted.tolist(),
                first_rank=[1] * 80,
            )
            for accepted in (wins, np.zeros(80, dtype=int))
        )
        low, high = measure_configurations(first, second, seed=seed).measures[0].difference[2:4]
        held += low <= 0.6 <= high
    assert 88 <= held <= 99


def test_unknown_configurations_and_no_list_in_common(tried: Store) -> None:
    one, *_ = list_configurations(tried)
    with pytest.raises(InputError, match=r"there are no traces of rerank.v1 · fake/fake · T 0.5"):
        compare_configurations(tried, one, Configuration("rerank.v1", "rejection", "fake", "fake", 0.5))
    sample(
        tried,
        FakeTeacher(lambda _: json.dumps({"explanation": "x", "recommendations": []}), "valid-only"),
        SamplingSettings("shop", split="valid", limit=2, max_attempts=1),
    )
    valid = next(configuration for configuration in list_configurations(tried) if configuration.teacher == "valid-only")
    apart = compare_configurations(tried, one, valid)
    assert (apart.lists, apart.measures, apart.rank_before) == (0, (), None)
    assert apart.passed_2_2.tolist() == [[0, 0], [0, 0]]


def test_a_request_that_failed_is_no_attempt(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=2))
    sample(shop, FakeTeacher(lambda _: RequestFailedError("gave up")), SamplingSettings("shop", limit=1))
    evidence, failed = sorted(list_configurations(shop), key=lambda configuration: configuration.teacher)
    with pytest.raises(InputError, match="there are no traces of"):
        compare_configurations(shop, evidence, failed)
