from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.traces.filter import LABELS, TraceFilter, check_filter
from store import InputError, Store

texts = st.none() | st.text(min_size=1)
numbers = st.none() | st.floats(0, 1)


@given(
    st.builds(
        TraceFilter,
        dataset=texts,
        passes=texts,
        text=texts,
        temperature=numbers,
        min_pass_rate=numbers,
        copied=st.none() | st.booleans(),
        predicted_rank=st.none() | st.integers(0, 10),
        label=st.none() | st.sampled_from(LABELS),
        since=st.none() | st.datetimes(),
    )
)
def test_a_filter_goes_into_a_link_and_comes_back(chosen: TraceFilter) -> None:
    assert TraceFilter.from_query(chosen.to_query()) == chosen


def test_other_parameters_of_a_link_are_left_alone() -> None:
    assert TraceFilter.from_query({"trace": "x", "split": "valid", "text": ""}) == TraceFilter(split="valid")


@pytest.mark.parametrize(
    "query",
    [
        {"temperature": "warm"},
        {"temperature": "nan"},
        {"copied": "perhaps"},
        {"predicted_rank": "first"},
        {"since": "yesterday"},
        {"label": "nice"},
    ],
)
def test_a_link_without_meaning_is_a_clear_error(query: dict[str, str]) -> None:
    ((name, value),) = query.items()
    with pytest.raises(InputError, match=f"the filter says {name}='{value}'"):
        TraceFilter.from_query(query)


@pytest.mark.parametrize("name", ["rule", "first_failed_rule"])
def test_a_rule_that_the_store_does_not_know_is_a_clear_error(name: str, store: Store) -> None:
    for rule, known in (("parsed", True), ("answered", True), ("nice", False), ("os:getcwd", False)):
        chosen = TraceFilter.from_query({name: rule})
        with store.reading() as session:
            if known:
                check_filter(session, chosen)
                continue
            with pytest.raises(
                InputError, match=f"the filter says {name}='{rule}'; it must be one of answered, parsed"
            ):
                check_filter(session, chosen)


def test_only_what_is_asked_is_a_condition() -> None:
    chosen = TraceFilter(split="valid", copied=False, since=datetime.fromisoformat("2026-01-01"))
    assert chosen.where == ("where_by_teachers", "where_split", "where_copied", "where_since")
    # Whoever names a source gets its traces, and a student is one.
    assert TraceFilter(teacher="student").where == ("where_teacher",)
    assert TraceFilter(run_id="r", step=3).where == ("where_run_id", "where_step")
    assert not chosen.reads_texts
    assert TraceFilter(pattern="x").reads_texts


def test_a_moment_with_an_offset_is_kept_in_utc() -> None:
    chosen = TraceFilter.from_query({"since": "2026-11-25 08:00+02:00"})
    assert chosen.since == datetime.fromisoformat("2026-11-25 06:00")
