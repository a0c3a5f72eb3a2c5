from datetime import datetime

import pytest

from curate.review.saved_queries import SavedQuery, list_queries, remove_query, save_query
from curate.review.sql_console import SCREEN, query_rows, run_sql
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import InputError, Store
from store.labels import Label, put_label


def own(store: Store) -> list[SavedQuery]:
    return [query for query in list_queries(store) if query.author is not None]


def test_examples_run_on_an_empty_store_and_give_rows_on_one_with_traces(store: Store, shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=20, temperature=0.5))
    put_label(shop, run_sql(shop, "select min(trace_id) from traces").item(), "ann", Label.GOOD)
    examples = [query for query in list_queries(store) if query.author is None]
    assert len(examples) == 6
    for example in examples:
        assert query_rows(store, example.query, SCREEN).rows.height == 0
        assert query_rows(shop, example.query, SCREEN).rows.height > 0, example.name


def test_examples_count_what_they_say(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=30, temperature=0.5))
    put_label(
        shop, run_sql(shop, "select min(trace_id) from traces where predicted_rank = 1").item(), "ann", Label.GOOD
    )
    examples = {query.name: run_sql(shop, query.query) for query in list_queries(shop)}
    traces = run_sql(shop, "from traces").height
    accepted = run_sql(shop, "from accepted_traces('paper')").height
    funnel = examples["Funnel by template and teacher"]
    assert funnel.select("attempts", "accepted").row(0) == (traces, accepted)
    assert examples["Target before and after"]["traces"].sum() == traces
    failed = run_sql(shop, "select count(*) from verdicts_current where not passed").item()
    assert examples["Why traces fail"]["traces"].sum() == failed
    assert examples["Cost per accepted trace"]["accepted"].sum() == accepted
    labels = examples["Labels against rulesets"]
    assert labels.filter(ruleset="paper").select("label", "verdict", "labels").row(0) == ("good", "accepted", 1)


def test_a_query_is_saved_replaced_and_removed(store: Store) -> None:
    save_query(store, " mine ", "select 1", "ann")
    save_query(store, "another", "select 2\n-- of two lines", "ben")
    assert own(store) == [
        SavedQuery("another", "select 2\n-- of two lines", "ben"),
        SavedQuery("mine", "select 1", "ann"),
    ]
    save_query(store, "mine", "select 3", "ben")
    assert own(store)[1] == SavedQuery("mine", "select 3", "ben")
    remove_query(store, "mine", "ann")
    assert [query.name for query in own(store)] == ["another"]
    save_query(store, "mine", "select 4", "ann")
    assert own(store)[1].query == "select 4"
    # Nothing is ever overwritten.
    assert run_sql(store, "from labels.saved_queries where name = 'mine'").height == 4


def test_names_and_queries_are_values_whatever_they_hold(store: Store) -> None:
    name = "'); drop table saved_queries; -- <script> **b** 🦆"
    save_query(store, name, "select '\ud800'", "'; --")
    assert own(store) == [SavedQuery(name, "select '\ufffd'", "'; --")]


@pytest.mark.parametrize(
    ("name", "query", "author", "message"),
    [
        ("", "select 1", "ann", "the name is empty"),
        ("  ", "select 1", "ann", "the name is empty"),
        ("mine", " \n ", "ann", "the query is empty"),
        ("mine", "select 1", " ", "the author is empty"),
        ("x" * 101, "select 1", "ann", "the name has 101 characters; at most 100"),
        ("mine", "x" * 10_001, "ann", "the query has 10,001 characters; at most 10,000"),
        ("mi\nne", "select 1", "ann", "line breaks"),
        ("mi\u202ene", "select 1", "ann", "invisible characters"),
        ("Hardest prompts", "select 1", "ann", "'Hardest prompts' is an example"),
    ],
)
def test_what_cannot_be_saved_says_why(store: Store, name: str, query: str, author: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        save_query(store, name, query, author)
    assert own(store) == []


def test_what_nobody_saved_cannot_be_removed(store: Store) -> None:
    for name in ("nope", "Hardest prompts"):
        with pytest.raises(InputError, match=f"no saved query is called '{name}'"):
            remove_query(store, name, "ann")


def test_the_query_that_was_saved_last_counts_even_if_the_clock_was_set_back(store: Store) -> None:
    save_query(store, "mine", "select 1", "ann")
    with store.labelling() as session:
        session.execute("save_query", name="mine", query="select 2", author="ann", created_at=datetime(2001, 1, 1))  # noqa: DTZ001
    assert [query.query for query in own(store)] == ["select 2"]
