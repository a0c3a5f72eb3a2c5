import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from scipy.stats import binomtest

from curate.review.overview import (
    BUCKET_SECONDS,
    LABELLED,
    LOSSES,
    MOST_BARS,
    RULESETS,
    STAGES,
    USAGE,
    Overview,
    choose_bucket,
    filter_stage,
    load_overview,
    make_funnel,
    measure_acceptance,
    measure_copying,
    measure_usage,
    narrow,
    other_losses,
    share_accepted,
    share_copied,
    wilson_interval,
)
from curate.review.trace_pages import count_traces, find_traces
from curate.traces.filter import NOT_JUDGED, TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.rulesets import add_ruleset, find_ruleset
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import Completion, RequestFailedError
from curate.traces.verification import verify
from store import InputError, Session, Store
from store.labels import Label, put_label

COPY = json.dumps({"explanation": "As they came.", "recommendations": list(range(1, 11))})
FILTERS = [
    TraceFilter(),
    TraceFilter(split="valid"),
    TraceFilter(teacher="evidence", temperature=0.5),
    TraceFilter(fails="paper"),
    TraceFilter(passes="paper"),
    TraceFilter(label="any"),
    TraceFilter(label="none", copied=True),
    TraceFilter(min_pass_rate=0.3),
    TraceFilter(first_failed_rule="answered"),
    TraceFilter(text="was bought"),
]


@pytest.fixture(scope="module")
def traced(built_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Traces of four teachers that fail by rules, cannot be parsed or have no answer; some are labelled. Only read."""
    shop = Store.open(shutil.copytree(built_shop, tmp_path_factory.mktemp("overview") / "store"))
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=25, temperature=0.5))
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", split="valid", template="rerank.v1", limit=10))
    counting = FakeTeacher(lambda _: Completion(COPY, "stop", 100, 10, 0.5), "openai", "copier")
    sample(shop, counting, SamplingSettings("shop", limit=12, max_attempts=2))
    sample(shop, FakeTeacher(lambda _: "no JSON", "fake"), SamplingSettings("shop", limit=3, max_attempts=1))
    failing = FakeTeacher(lambda _: RequestFailedError("gave up"), "failing")
    sample(shop, failing, SamplingSettings("shop", limit=2, max_attempts=1))
    for place, trace_id in enumerate(find_traces(shop, TraceFilter(), limit=1_000).rows["trace_id"].to_list()[::7]):
        put_label(shop, trace_id, "ann", Label.GOOD if place % 2 else Label.BAD)
    return shop


def browse(store: Store, sql: str = "from trace_browser") -> pl.DataFrame:
    with store.reading() as session:
        frame: pl.DataFrame = session.connection.sql(sql).pl()
        return frame


def loss_of(browsed: pl.DataFrame) -> pl.Series:
    return browsed.select(
        pl.when(pl.col("error").is_not_null())
        .then(pl.lit("answered"))
        .otherwise("first_failed_rule")
        .alias("first_failed_rule")
    )["first_failed_rule"]


def test_rules_stand_in_the_order_of_ruleset_strict(store: Store) -> None:
    with store.reading() as session:
        rules = find_ruleset(session, "strict").rules
    assert ("answered", *rules) == LOSSES


@pytest.mark.slow
@pytest.mark.parametrize("chosen", FILTERS)
def test_each_stage_of_the_funnel_counts_what_its_link_finds(traced: Store, chosen: TraceFilter) -> None:
    funnel = make_funnel(load_overview(traced, chosen))
    assert tuple(funnel["stage"]) == STAGES
    for stage, traces, lost in funnel.rows():
        link = filter_stage(chosen, stage)
        if link is None:
            assert {chosen.first_failed_rule, chosen.passes, chosen.label} - {None, "strict"}
        elif stage != "prompts":
            assert count_traces(traced, link) == (traces if lost is None else lost)


@pytest.mark.slow
@pytest.mark.parametrize("chosen", FILTERS)
def test_the_funnel_only_narrows_and_nothing_gets_lost_twice(traced: Store, chosen: TraceFilter) -> None:
    overview = load_overview(traced, chosen)
    funnel = make_funnel(overview)
    traces = dict(funnel.select("stage", "traces").rows())
    chain = [traces["attempts"], *(traces[stage] for stage in LOSSES)]
    assert chain == sorted(chain, reverse=True)
    assert funnel["lost"].sum() + traces["strict"] == traces["attempts"] == count_traces(traced, chosen) > 0
    assert traces["not_copied"] == traces["strict"] <= traces["paper"]
    assert overview.losses["traces"].sum() == overview.moves["traces"].sum() == traces["attempts"]
    by_time = overview.losses.group_by("first_failed_rule").agg(pl.col("traces").sum())
    at = dict(by_time.rows())
    assert [at.get(stage, 0) for stage in LOSSES] == funnel.drop_nulls("lost")["lost"].to_list()
    assert share_accepted(overview.attempts) == traces["paper"] / traces["attempts"]


class SharedStore(Store):
    """A store to which somebody adds a trace whenever a reader leaves it."""

    added = 0

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only transaction, and a write of somebody else."""
        with super().reading() as session:
            yield session
        SharedStore.added += 1
        with self.writing() as session:
            session.connection.execute(
                "insert into traces by name select * replace (trace_id || $1 as trace_id) from traces where rowid = 0",
                [f"-{self.added}"],
            )


def test_figures_agree_while_others_write_between_their_queries(traced: Store, tmp_path: Path) -> None:
    shared = SharedStore.open(shutil.copytree(traced.folder, tmp_path / "store"))
    expected = load_overview(Store.open(shared.folder), TraceFilter())
    SharedStore.added = 0
    found = load_overview(shared, TraceFilter())
    assert SharedStore.added >= len(fields(Overview))
    for field in fields(Overview):
        one, other = getattr(expected, field.name), getattr(found, field.name)
        if isinstance(one, pl.DataFrame):
            assert_frame_equal(one, other, check_row_order=False)
        else:
            assert one == other


def test_the_funnel_agrees_with_the_view_and_with_counting_each_trace(traced: Store) -> None:
    overview = load_overview(traced, TraceFilter())
    traces = dict(make_funnel(overview).select("stage", "traces").rows())
    view = browse(traced, "from acceptance_funnel")
    for stage, column in (
        *((name, name) for name in ("attempts", "answered", "parsed", "labelled")),
        ("paper", "accepted"),
    ):
        assert traces[stage] == view[column].sum() > 0
    browsed = browse(traced)
    assert overview.prompts == browsed["prompt_id"].n_unique()
    counted = dict(loss_of(browsed).value_counts().rows())
    assert dict(make_funnel(overview).drop_nulls("lost").select("stage", "lost").rows()) == {
        stage: counted.get(stage, 0) for stage in LOSSES
    }
    assert {"answered", "parsed", "target_first"} <= set(counted)
    for (teacher,), rows in view.group_by("teacher"):
        one = load_overview(traced, TraceFilter(teacher=str(teacher)))
        assert one.labelled == rows["labelled"].sum()
        assert share_accepted(one.attempts) == rows["accepted"].sum() / rows["attempts"].sum()
        if rows.height == 1:
            assert one.prompts == rows["prompts"].item()


def test_a_rule_that_was_added_to_strict_is_a_stage(traced: Store, write_module: Callable[[str, str], Path]) -> None:
    store = Store.open(shutil.copytree(traced.folder, write_module("nothing", "").parent / "store"))
    write_module(
        "own_stage",
        "from curate.traces.rules import Failure, Rule\n"
        "odd = Rule(1, lambda answer, parsed: Failure('even') if len(parsed.reasoning) % 2 == 0 else None)\n",
    )
    with store.reading() as session:
        strict = find_ruleset(session, "strict").rules
    add_ruleset(store, "strict", [*strict, "own_stage:odd"])
    for judged, stage in ((False, NOT_JUDGED), (True, "own_stage:odd")):
        if judged:
            verify(store, "shop")
        overview = load_overview(store, TraceFilter())
        funnel = make_funnel(overview)
        lost = dict(funnel.drop_nulls("lost").select("stage", "lost").rows())
        assert lost[stage] > 0
        assert other_losses(overview.attempts) == other_losses(overview.losses) == [stage]
        link = filter_stage(TraceFilter(), stage)
        assert link is not None
        assert count_traces(store, link) == lost[stage]
        assert sum(lost.values()) + funnel.filter(stage="strict")["traces"].item() == count_traces(store, TraceFilter())


def test_a_filter_that_asks_for_something_else_offers_no_link() -> None:
    chosen = TraceFilter(split="valid", passes="paper")
    assert narrow(chosen, first_failed_rule="cites") == TraceFilter(
        split="valid", passes="paper", first_failed_rule="cites"
    )
    assert filter_stage(chosen, "paper") == chosen
    assert filter_stage(chosen, "strict") is None
    assert filter_stage(chosen, "attempts") == chosen
    assert filter_stage(TraceFilter(label="bad"), LABELLED) is None
    assert narrow(TraceFilter(predicted_rank=0), predicted_rank=0, target_rank=3) == TraceFilter(
        predicted_rank=0, target_rank=3
    )
    assert narrow(TraceFilter(predicted_rank=0), predicted_rank=1) is None
    assert [filter_stage(TraceFilter(), ruleset) for ruleset in RULESETS] == [
        TraceFilter(passes="paper"),
        TraceFilter(passes="strict"),
    ]


@pytest.mark.parametrize("chosen", [TraceFilter(), TraceFilter(split="train")])
def test_shares_are_those_of_traces_counted_one_by_one(traced: Store, chosen: TraceFilter) -> None:
    attempts = load_overview(traced, chosen).attempts
    browsed = browse(traced).filter(pl.col("split") == chosen.split if chosen.split else pl.lit(True))
    orders = browsed.filter(pl.col("ranking").is_not_null())
    assert share_copied(attempts) == orders["copied"].mean()
    names = {
        "template": pl.col("template"),
        "teacher": pl.col("teacher") + "/" + pl.col("model"),
        "temperature": pl.format("T = {}", "temperature"),
    }
    for shares, rows, hit, dimensions in (
        (measure_acceptance(attempts), browsed, "accepted", ["template", "teacher", "temperature"]),
        (measure_copying(attempts), orders, "copied", ["teacher", "temperature"]),
    ):
        assert shares["by"].unique(maintain_order=True).to_list() == dimensions
        for dimension in dimensions:
            expected = rows.group_by(value=names[dimension]).agg(hits=pl.col(hit).sum(), n=pl.len())
            found = shares.filter(by=dimension).select("value", "hits", "n")
            assert sorted(found.rows()) == sorted(expected.rows())
            assert found["n"].is_sorted(descending=True)
    copier = measure_copying(attempts).filter(value="openai/copier").row(0, named=True)
    assert copier["share"] == copier["high"] == 1
    assert copier["low"] < 1


def test_only_values_with_the_most_attempts_have_a_bar() -> None:
    many = pl.DataFrame(
        {
            "template": "t",
            "teacher": "t",
            "model": [f"m{place:02}" for place in range(MOST_BARS + 5)],
            "temperature": 1.0,
            "attempts": range(1, MOST_BARS + 6),
            "accepted": True,
        }
    )
    bars = measure_acceptance(many).filter(by="teacher")
    assert bars["n"].to_list() == list(range(MOST_BARS + 5, 5, -1))


@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = wilson_interval(pl.col("hits"), pl.col("n"))
    found_low, found_high = pl.DataFrame({"hits": [hits], "n": [n]}).select(low.alias("low"), high.alias("high")).row(0)
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert math.isclose(found_low, expected.low, rel_tol=1e-5, abs_tol=1e-9)
    assert math.isclose(found_high, expected.high, rel_tol=1e-5, abs_tol=1e-9)
    assert 0 <= found_low <= hits / n + 1e-12
    assert hits / n - 1e-12 <= found_high <= 1


def test_wilson_by_hand() -> None:
    low, high = wilson_interval(pl.col("hits"), pl.col("n"), z=2.0)
    # p = 1/2, n = 4, z = 2: centre (1/2 + 1/2) / 2, half width 2 · sqrt(1/16 + 1/16) / 2.
    found = pl.DataFrame({"hits": [2], "n": [4]}).select(low.alias("low"), high.alias("high")).row(0)
    assert found == pytest.approx((0.5 - math.sqrt(1 / 8), 0.5 + math.sqrt(1 / 8)))


@pytest.mark.slow
@pytest.mark.parametrize("chosen", FILTERS)
def test_pass_rates_are_those_of_the_view(traced: Store, chosen: TraceFilter) -> None:
    fitting = find_traces(traced, chosen, limit=1_000).rows["group_id"].unique().to_list()
    view = browse(traced, "from pass_rates").filter(pl.col("group_id").is_in(fitting))
    rates = load_overview(traced, chosen).pass_rates
    assert rates["tenths"].to_list() == list(range(12))
    assert rates["groups"].sum() == view.height
    for tenths, groups in rates.rows():
        rate = pl.col("pass_rate")
        inside = (
            rate == 0
            if tenths == 0
            else rate == 1
            if tenths == 11
            else (rate > (tenths - 1) / 10) & (rate <= tenths / 10) & (rate < 1)
        )
        assert groups == view.filter(inside).height
    if chosen == TraceFilter():
        assert rates["groups"][0] > 0
        assert rates["groups"][1:11].sum() > 0
        assert rates["groups"][11] > 0


def test_each_cell_of_the_moves_counts_what_its_link_finds(traced: Store) -> None:
    overview = load_overview(traced, TraceFilter(split="train"))
    for target_rank, predicted_rank, traces in overview.moves.rows():
        link = narrow(TraceFilter(split="train"), target_rank=target_rank, predicted_rank=predicted_rank)
        assert link is not None
        assert count_traces(traced, link) == traces
    # Three that could not be parsed and two without an answer.
    assert overview.moves.filter(predicted_rank=0)["traces"].sum() == 5


@given(st.floats(0, 86_400), st.timedeltas(timedelta(0), timedelta(days=252 * 59)))
def test_a_span_has_20_to_60_buckets(seconds: float, span: timedelta) -> None:
    zero = datetime.fromisoformat("2000-01-03")
    first = zero + timedelta(seconds=seconds)
    width = timedelta(seconds=choose_bucket(first, first + span))
    buckets = (first + span - zero) // width - (first - zero) // width + 1
    assert buckets <= 60
    assert buckets >= 20 or width == timedelta(seconds=1)


def test_no_bucket_is_more_than_three_times_the_one_before() -> None:
    assert all(wide <= 3 * less for less, wide in pairwise(BUCKET_SECONDS))


def test_losses_lie_in_the_bucket_of_their_time(traced: Store, tmp_path: Path) -> None:
    spread = Store.open(shutil.copytree(traced.folder, tmp_path / "store"))
    # Over fifty hours: buckets of an hour, wherever the first and the last trace lie.
    with spread.writing() as session:
        session.connection.execute(
            "update traces set created_at = timestamp '2026-01-01 00:10' + to_minutes((hash(trace_id) % 3000)::bigint)"
        )
    losses = load_overview(spread, TraceFilter()).losses
    browsed = browse(spread).with_columns(loss=pl.Series(loss_of(browse(spread))))
    expected = browsed.group_by(start=pl.col("created_at").dt.truncate("1h"), first_failed_rule="loss").agg(
        traces=pl.len()
    )
    key = ["start", "first_failed_rule"]
    assert losses.select(*key, "traces").sort(key).rows() == expected.sort(key).rows()
    assert (losses["end"] - losses["start"]).unique().to_list() == [timedelta(hours=1)]


def test_usage_is_none_where_the_teacher_does_not_count(traced: Store) -> None:
    usage = measure_usage(load_overview(traced, TraceFilter()).attempts)
    each, total = usage[:-1], usage.row(-1, named=True)
    assert each["attempts"].is_sorted(descending=True)
    assert total["teacher"] is None
    assert total["attempts"] == each["attempts"].sum()
    assert total["accepted"] == each["accepted"].sum()
    copier = each.filter(teacher="openai").row(0, named=True)
    n, accepted = copier["attempts"], copier["accepted"]
    assert 0 < accepted < n
    assert (copier["prompt_tokens"], copier["completion_tokens"], copier["cost_usd"]) == (100 * n, 10 * n, 0.5 * n)
    assert copier["prompt_tokens_per_attempt"] == 100
    assert copier["cost_usd_per_accepted"] == 0.5 * n / accepted
    for teacher in ("fake", "failing"):
        row = each.filter(teacher=teacher).row(0, named=True)
        for name in USAGE:
            assert [row[name], row[f"{name}_per_attempt"], row[f"{name}_per_accepted"]] == [None] * 3
    # Those that count nothing are left out of the total's averages too.
    assert total["prompt_tokens_per_attempt"] == 100
    assert total["completion_tokens_per_accepted"] == 10 * n / accepted


def test_what_costs_but_is_never_accepted_has_no_price_per_accepted_trace(traced: Store) -> None:
    usage = measure_usage(load_overview(traced, TraceFilter(teacher="openai", fails="paper")).attempts)
    (row,) = usage.rows(named=True)
    assert row["cost_usd_per_attempt"] == 0.5
    assert row["cost_usd_per_accepted"] is None


def assert_empty(overview: Overview) -> None:
    assert overview.attempts.height == overview.prompts == overview.labelled == 0
    assert overview.losses.height == overview.moves.height == overview.pass_rates["groups"].sum() == 0
    assert make_funnel(overview)["traces"].sum() == 0
    assert share_accepted(overview.attempts) is None
    assert share_copied(overview.attempts) is None
    assert measure_acceptance(overview.attempts).height == measure_usage(overview.attempts).height == 0


def test_nothing_is_an_empty_overview(store: Store) -> None:
    assert_empty(load_overview(store, TraceFilter()))


def test_a_filter_that_nothing_fits_is_an_empty_overview(traced: Store) -> None:
    assert_empty(load_overview(traced, TraceFilter(dataset="nope")))


def test_what_cannot_be_asked_for_is_a_clear_error(traced: Store) -> None:
    with pytest.raises(InputError, match="no ruleset is called 'nice'"):
        load_overview(traced, TraceFilter(passes="nice"))
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        load_overview(traced, TraceFilter(pattern="("))
