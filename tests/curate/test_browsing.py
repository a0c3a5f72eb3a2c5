import pytest

from curate.browsing import TraceFilter, find_traces, load_choices, load_trace
from curate.requests import SamplingSettings
from curate.sampling import sample
from curate.teachers.evidence import EvidenceTeacher
from store import InputError, Store
from store.labels import Label, put_label


@pytest.fixture
def traced(shop: Store) -> Store:
    """A shop with traces of two splits and two templates."""
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=30))
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", split="valid", template="rerank.v1", limit=10))
    return shop


def test_pages_go_through_all_traces_newest_first_without_gap_or_repeat(traced: Store) -> None:
    everything = find_traces(traced, TraceFilter(), limit=10_000)
    assert everything["created_at"].is_sorted(descending=True)
    seen: list[str] = []
    after = None
    while (page := find_traces(traced, TraceFilter(), after=after, limit=7)).height:
        seen += page["trace_id"].to_list()
        after = page.select("created_at", "trace_id").row(-1)
    assert seen == everything["trace_id"].to_list()


@pytest.mark.parametrize(
    ("chosen", "condition"),
    [
        (TraceFilter(split="valid"), "split = 'valid'"),
        (TraceFilter(template="rerank.v1"), "template = 'rerank.v1'"),
        (TraceFilter(accepted=True), "accepted"),
        (TraceFilter(accepted=False), "not accepted"),
        (TraceFilter(rule="target_first"), "list_contains(failed_rules, 'target_first')"),
        (TraceFilter(text="WAS BOUGHT"), "reasoning ilike '%was bought%'"),
        (TraceFilter(dataset="nope"), "false"),
        (TraceFilter(split="train", accepted=True, teacher="evidence"), "split = 'train' and accepted"),
    ],
)
def test_each_filter_keeps_what_it_says(traced: Store, chosen: TraceFilter, condition: str) -> None:
    with traced.reading() as session:
        rows = session.connection.execute(f"select trace_id from trace_browser where {condition}").fetchall()
    assert sorted(find_traces(traced, chosen, limit=10_000)["trace_id"]) == sorted(trace for (trace,) in rows)
    assert rows or chosen.dataset == "nope"


def test_signs_of_like_and_quotes_are_plain_text(traced: Store) -> None:
    everything = find_traces(traced, TraceFilter(), limit=10_000)["reasoning"]
    for text in ("%", "_", "s_a_", "'; drop table traces; --"):
        found = find_traces(traced, TraceFilter(text=text), limit=10_000)
        assert found.height == everything.str.contains(text, literal=True).sum()


def test_choices_are_what_the_store_holds(traced: Store) -> None:
    choices = load_choices(traced)
    assert choices["dataset"] == ["shop"]
    assert choices["template"] == ["rerank.v1", "rerank_evidence.v1"]
    assert choices["teacher"] == ["evidence"]
    assert "grounded" in choices["rule"]


def test_one_trace_comes_with_all_that_belongs_to_it(traced: Store) -> None:
    trace_id = find_traces(traced, TraceFilter(split="train"))["trace_id"][0]
    put_label(traced, trace_id, "ann", Label.GOOD, note="clear")
    view = load_trace(traced, trace_id)
    assert view.trace["trace_id"] == trace_id
    assert [message["role"] for message in view.messages] == ["system", "user"]
    assert view.verdicts.height == 9
    assert view.labels["note"].to_list() == ["clear"]
    assert len(view.listed.task.candidates) == 10


def test_an_unknown_trace_is_a_clear_error(traced: Store) -> None:
    with pytest.raises(InputError, match="no trace 'nope'"):
        load_trace(traced, "nope")
