from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest

from curate.review.trace_pages import find_traces
from curate.traces.filter import TraceFilter
from store import Store
from store.labels import Label, put_label

HOSTILE = "<b>ann</b> *x* [y](javascript:alert(1))"


def open_agreement(open_page: Callable[..., AppTest], **query: str) -> AppTest:
    page = open_page("agreement_page", "draw_agreement", **query)
    assert not page.exception
    return page


def headings(page: AppTest) -> list[str]:
    return [markdown.value for markdown in page.markdown if markdown.value.startswith("#####")]


def traces_of(store: Store, chosen: TraceFilter) -> list[str]:
    return find_traces(store, chosen).rows["trace_id"].to_list()


def test_a_store_without_labels_says_where_to_label(traced: Store, open_page: Callable[..., AppTest]) -> None:
    page = open_agreement(open_page)
    assert [info.value for info in page.info] == [
        "There are no labels yet. Make a queue and label traces on the page Label."
    ]
    put_label(traced, traces_of(traced, TraceFilter())[0], "ann", Label.SKIP)
    assert "There are no labels yet" in open_agreement(open_page).info[0].value


def test_one_annotator_sees_rules_and_no_agreement(traced: Store, open_page: Callable[..., AppTest]) -> None:
    for trace_id in traces_of(traced, TraceFilter(passes="paper"))[:3]:
        put_label(traced, trace_id, "ann", Label.BAD)
    page = open_agreement(open_page)
    assert "Only one person has labelled, and agreement needs two." in page.info[0].value
    assert "##### Traces that people disagree on" not in headings(page)
    rules, against, annotators = (table.value for table in page.dataframe)
    assert rules[rules["rule"] == "ruleset paper"]["recall"].to_list() == [0.0]
    assert len(against) == 3
    assert annotators["labels"].to_list() == [3]


@pytest.mark.slow
def test_two_annotators_see_figures_confusions_rules_and_disagreements(
    traced: Store, open_page: Callable[..., AppTest]
) -> None:
    accepted, refused = (
        traces_of(traced, TraceFilter(passes="paper"))[:6],
        traces_of(traced, TraceFilter(fails="paper")),
    )
    for annotator in ("ben", HOSTILE):
        for trace_id in accepted:
            put_label(traced, trace_id, annotator, Label.GOOD)
        put_label(traced, refused[0], annotator, Label.BAD)
        put_label(traced, refused[2], annotator, Label.GOOD)
    put_label(traced, accepted[0], "ben", Label.BAD, seconds=4)
    put_label(traced, refused[1], "ben", Label.UNSURE)
    put_label(traced, refused[1], HOSTILE, Label.BAD)
    page = open_agreement(open_page)
    figures, rules, split, against, annotators = (table.value for table in page.dataframe)
    assert figures["measure"].to_list() == ["Krippendorff's alpha", "Fleiss' kappa", "Cohen's kappa"]
    assert figures["traces"].to_list() == [9, 9, 9]
    assert (figures["low"] < figures["value"]).all()
    assert "ruleset strict" in rules["rule"].to_list()
    assert split["trace_id"].to_list() == [f"/traces?trace={accepted[0]}"]
    assert [list(names) for names in (split["good"][0], split["bad"][0])] == [[HOSTILE], ["ben"]]
    assert against["trace_id"].to_list() == [f"/traces?trace={refused[2]}"]
    assert sorted(annotators["annotator"]) == sorted(["ben", HOSTILE])
    # Names are nowhere Markdown.
    assert not any(HOSTILE in element.value for element in [*page.markdown, *page.caption, *page.info])
    page.toggle(key="agreement-unsure").set_value(False).run()
    assert page.dataframe[0].value["traces"].to_list() == [8, 8, 8]
    page.selectbox(key="agreement-first").set_value("ben").run()
    page.selectbox(key="agreement-rule").set_value("rule target_first").run()
    assert not page.exception
    assert page.selectbox(key="agreement-second").value == HOSTILE


def test_the_filter_and_undo_take_labels_away(traced: Store, open_page: Callable[..., AppTest]) -> None:
    trace_id = traces_of(traced, TraceFilter(teacher="evidence"))[0]
    for annotator, label in (("ann", Label.GOOD), ("ben", Label.BAD)):
        put_label(traced, trace_id, annotator, label)
    page = open_agreement(open_page, teacher="evidence")
    assert page.dataframe[2].value["trace_id"].to_list() == [f"/traces?trace={trace_id}"]
    put_label(traced, trace_id, "ben", Label.UNDO)
    page.run()
    assert "Only one person has labelled" in page.info[0].value
    put_label(traced, trace_id, "ann", Label.UNDO)
    page.run()
    assert "No labelled trace matches the filter and the queue" in page.info[0].value


def test_labels_of_one_queue_are_looked_at_alone(traced: Store, open_page: Callable[..., AppTest]) -> None:
    first, second = traces_of(traced, TraceFilter())[:2]
    for annotator in ("ann", "ben"):
        put_label(traced, first, annotator, Label.GOOD)
        put_label(traced, second, annotator, Label.BAD)
    with traced.labelling() as session:
        session.connection.execute(
            "insert into label_queues values ('q1', 'first look', '{}', 1, 'ann', timestamp '2026-11-25')"
        )
        session.connection.execute("update label_events set queue_id = 'q1' where trace_id = ?", [first])
    page = open_agreement(open_page)
    assert page.dataframe[0].value["value"].to_list()[0] == 1.0
    page.selectbox(key="agreement-queue").set_value("q1").run()
    assert not page.exception
    assert page.dataframe[0].value["traces"].to_list() == [1, 1, 1]
    assert all("undefined" in note for note in page.dataframe[0].value["note"])
