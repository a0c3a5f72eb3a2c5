from collections.abc import Callable
from pathlib import Path

import pytest

from curate.review import trace_pages as browsing
from curate.review.trace_pages import count_traces, find_traces, load_choices, load_messages, load_trace
from curate.traces.filter import TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import InputError, Store
from store.labels import Label, put_label


def sample_two_splits(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=30))
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", split="valid", template="rerank.v1", limit=10))


@pytest.fixture
def traced(prepare: Callable[..., Store], built_shop: Path) -> Store:
    """A shop with traces of two splits and two templates."""
    return prepare(built_shop, sample_two_splits)


def all_traces(store: Store, chosen: TraceFilter) -> list[str]:
    return find_traces(store, chosen, limit=10_000).rows["trace_id"].to_list()


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [TraceFilter(), TraceFilter(text="the"), TraceFilter(split="train", pattern="t.e")])
def test_pages_go_through_all_traces_newest_first_without_gap_or_repeat(
    traced: Store, chosen: TraceFilter, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = find_traces(traced, chosen, limit=10_000)
    assert everything.rows["created_at"].is_sorted(descending=True)
    assert everything.next is None
    # As if the store were large and the search slow: windows of two traces, one at a time.
    monkeypatch.setattr(browsing, "WHOLE_SEARCH_TRACES", 0)
    monkeypatch.setattr(browsing, "SEARCH_SECONDS", 0)
    seen: list[str] = []
    after = None
    while True:
        page = find_traces(traced, chosen, after=after, limit=7)
        assert page.rows.height <= 7
        seen += page.rows["trace_id"].to_list()
        after = page.next
        if after is None:
            break
    assert seen == everything.rows["trace_id"].to_list()
    assert len(seen) == count_traces(traced, chosen) > 20


def test_a_search_that_runs_out_of_time_says_how_far_it_came(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browsing, "WHOLE_SEARCH_TRACES", 0)
    monkeypatch.setattr(browsing, "SEARCH_SECONDS", 0)
    page = find_traces(traced, TraceFilter(text="stands nowhere"))
    assert page.rows.height == 0
    assert page.unfinished
    assert page.next is not None
    newest = find_traces(traced, TraceFilter()).rows["created_at"][0]
    assert page.next.created_at <= newest


@pytest.mark.parametrize(
    ("chosen", "condition"),
    [
        (TraceFilter(split="valid"), "split = 'valid'"),
        (TraceFilter(template="rerank.v1"), "template = 'rerank.v1'"),
        (TraceFilter(strategy="rejection", model="evidence.v1", temperature=1.0), "temperature = 1.0"),
        (TraceFilter(passes="paper"), "accepted"),
        (TraceFilter(fails="paper"), "not accepted"),
        (TraceFilter(passes="strict"), "first_failed_rule is null"),
        (TraceFilter(rule="target_first"), "list_contains(failed_rules, 'target_first')"),
        (TraceFilter(reason="target_not_first"), "list_contains(reasons, 'target_not_first')"),
        (TraceFilter(first_failed_rule="target_first"), "first_failed_rule = 'target_first'"),
        (TraceFilter(copied=False), "not copied"),
        (TraceFilter(target_rank=2, predicted_rank=1), "target_rank = 2 and predicted_rank = 1"),
        (TraceFilter(text="WAS BOUGHT"), "reasoning ilike '%was bought%'"),
        (TraceFilter(pattern="bought .* \\d+ TIMES"), "regexp_matches(reasoning, 'bought .* [0-9]+ times')"),
        (TraceFilter(max_pass_rate=0.0), "group_id in (select group_id from pass_rates where pass_rate = 0)"),
        (TraceFilter(min_pass_rate=0.5), "group_id in (select group_id from pass_rates where pass_rate >= 0.5)"),
        (TraceFilter(label="none"), "true"),
        (TraceFilter(dataset="nope"), "false"),
        (TraceFilter(split="train", passes="paper", teacher="evidence"), "split = 'train' and accepted"),
    ],
)
def test_each_filter_keeps_what_it_says(traced: Store, chosen: TraceFilter, condition: str) -> None:
    with traced.reading() as session:
        rows = session.connection.execute(f"select trace_id from trace_browser where {condition}").fetchall()
    assert sorted(all_traces(traced, chosen)) == sorted(trace for (trace,) in rows)
    assert count_traces(traced, chosen) == len(rows)
    assert rows or chosen.dataset == "nope"


def test_traces_are_found_by_what_people_say_of_them(traced: Store) -> None:
    first, second, third = all_traces(traced, TraceFilter())[:3]
    put_label(traced, first, "ann", Label.GOOD)
    put_label(traced, first, "ben", Label.BAD)
    put_label(traced, second, "ann", Label.BAD)
    put_label(traced, third, "ann", Label.GOOD)
    put_label(traced, third, "ann", Label.UNDO)
    for chosen, expected in (
        (TraceFilter(label="any"), {first, second}),
        (TraceFilter(label="bad"), {first, second}),
        (TraceFilter(label="split"), {first}),
        (TraceFilter(annotator="ben"), {first}),
    ):
        assert set(all_traces(traced, chosen)) == expected
    assert third in all_traces(traced, TraceFilter(label="none"))


def test_signs_of_like_and_quotes_are_plain_text(traced: Store) -> None:
    everything = find_traces(traced, TraceFilter(), limit=10_000)
    with traced.reading() as session:
        texts = [text for (text,) in session.connection.execute("select reasoning from traces").fetchall()]
    assert len(texts) == everything.rows.height
    for text in ("%", "_", "s_a_", "'; drop table traces; --"):
        assert len(all_traces(traced, TraceFilter(text=text))) == sum(text in reasoning for reasoning in texts)


def test_what_cannot_be_searched_for_is_a_clear_error(traced: Store) -> None:
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        find_traces(traced, TraceFilter(pattern="("))
    with pytest.raises(InputError, match="no ruleset is called 'nice'; there are: answered, paper, strict"):
        find_traces(traced, TraceFilter(passes="nice"))


def test_choices_are_what_the_store_holds(traced: Store) -> None:
    choices = load_choices(traced)
    assert choices["dataset"] == ["shop"]
    assert choices["template"] == ["rerank.v1", "rerank_evidence.v1"]
    assert choices["teacher"] == ["evidence"]
    assert "target_first" in choices["rule"]


def test_one_trace_comes_with_all_that_belongs_to_it(traced: Store) -> None:
    trace_id = all_traces(traced, TraceFilter(split="train"))[0]
    put_label(traced, trace_id, "ann", Label.GOOD, note="clear")
    view = load_trace(traced, trace_id)
    assert view.trace["trace_id"] == trace_id
    assert view.judgement is not None
    assert view.judgement.verdicts.height == 9
    assert view.judgement.labels["note"].to_list() == ["clear"]
    assert len(view.listed.task.candidates) == 10
    assert load_trace(traced, trace_id, judged=False).judgement is None
    assert [message["role"] for message in load_messages(traced, view.trace["prompt_id"])] == ["system", "user"]


def test_an_unknown_trace_is_a_clear_error(traced: Store) -> None:
    with pytest.raises(InputError, match="no trace 'nope'"):
        load_trace(traced, "nope")
    with pytest.raises(InputError, match="no prompt 'nope'"):
        load_messages(traced, "nope")
