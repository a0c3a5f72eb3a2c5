from collections.abc import Callable

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from app.browser import label_page
from curate.review.labelling import QueueSettings, claim_next, label_assigned, make_queue
from curate.traces.filter import TraceFilter
from store import Store, StoreBusyError
from store.labels import Label

Open = Callable[..., AppTest]


@pytest.fixture
def open_labels(open_page: Open, monkeypatch: pytest.MonkeyPatch) -> Open:
    """The page, as ann has it open, who presses keys as fast as a test does."""
    monkeypatch.setattr(label_page, "UNSEEN_SECONDS", 0)

    def run(**query: str) -> AppTest:
        page = open_page("label_page", "draw_labels", **query)
        page.session_state["annotator-known"] = "ann"
        page.run()
        assert not page.exception
        return page

    return run


def key_of(page: AppTest, label: str) -> Button:
    """The button of that name; its key names the trace too."""
    return next(button for button in page.button if button.label == label)


def events(store: Store) -> list[tuple[object, ...]]:
    with store.reading() as session:
        return session.connection.execute(
            "select annotator, label, tags, note from labels.label_events order by created_at"
        ).fetchall()


def test_the_name_is_asked_before_anything_else(open_page: Open) -> None:
    page = open_page("label_page", "draw_labels")
    assert [widget.label for widget in page.text_input] == ["Your name (stored with your labels)"]
    page.text_input[0].set_value(" ")
    page.button[0].click().run()
    assert "cannot be an annotator's name" in page.code[0].value
    page.text_input[0].set_value("ann")
    page.button[0].click().run()
    assert page.info[0].value.startswith("There are no queues yet.")


def test_a_queue_is_made_from_the_filter_and_opens(open_labels: Open, traced: Store) -> None:
    page = open_labels(passes="paper")
    assert "Traces: passes paper" in [text.value for text in page.text]
    page.text_input(key="queue-name").set_value("good-ones")
    page.number_input(key="queue-size").set_value(3)
    page.text_input(key="queue-tags").set_value("odd, n_ice")
    next(button for button in page.button if button.label == "Make queue").click().run()
    assert not page.exception
    assert page.text[0].value == "good-ones (ann)"
    with traced.reading() as session:
        (row,) = session.connection.execute("select settings, traces from labels.label_queues").fetchall()
    assert row[1] == 3
    assert '"tags":["odd","n_ice"]' in row[0]
    assert [button.label for button in page.button if "☐" in button.label] == ["☐ odd", "☐ n\\_ice"]


def test_labels_tags_notes_and_undo_are_events(open_labels: Open, traced: Store) -> None:
    queue = make_queue(traced, QueueSettings("short", size=4, tags=("odd",)), "ann")
    page = open_labels(queue=queue.queue_id)
    key_of(page, "Good").click().run()
    key_of(page, "☐ odd").click().run()
    page.button(key="note-open").click().run()
    page.text_input[0].set_value("strange").run()
    key_of(page, "Bad").click().run()
    key_of(page, "Undo").click().run()
    # Tags and note stay with the trace.
    key_of(page, "Unsure").click().run()
    key_of(page, "Skip").click().run()
    assert not page.exception
    assert events(traced) == [
        ("ann", "good", [], None),
        ("ann", "bad", ["odd"], "strange"),
        ("ann", "undo", [], None),
        ("ann", "unsure", ["odd"], "strange"),
        ("ann", "skip", [], None),
    ]
    key_of(page, "Good").click().run()
    assert "You have labelled every trace" in page.success[0].value
    assert key_of(page, "Good").disabled


def test_blind_hides_teacher_verdicts_and_labels(open_labels: Open, traced: Store) -> None:
    for blind in (True, False):
        queue_of_two = make_queue(
            traced, QueueSettings("two", TraceFilter(teacher="evidence"), size=1, overlap=2, blind=blind), "ann"
        )
        assignment, _ = claim_next(traced, queue_of_two, "ben")
        assert assignment is not None
        label_assigned(traced, queue_of_two, "ben", assignment, Label.BAD)
        page = open_labels(queue=queue_of_two.queue_id)
        everything = " ".join(element.value for kind in (page.text, page.markdown) for element in kind)
        everything += "".join(element.proto.body.split("</style>")[-1] for element in page.get("html"))
        for hidden in ("Verdicts", "evidence.v1", "ben", "target_first", "✓"):
            assert (hidden in everything) is not blind


def test_a_label_that_cannot_be_stored_is_told_and_the_trace_stays(
    open_labels: Open, traced: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue(traced, QueueSettings("short", size=4), "ann")
    page = open_labels(queue=queue.queue_id)

    def busy(*_: object, **__: object) -> None:
        raise StoreBusyError("labels.duckdb has been in use by process 1")

    monkeypatch.setattr(label_page, "label_assigned", busy)
    key_of(page, "Good").click().run()
    assert "The last label was not stored" in page.error[0].value
    assert "in use by process 1" in page.code[0].value
    monkeypatch.undo()
    monkeypatch.setattr(label_page, "UNSEEN_SECONDS", 0)
    monkeypatch.setenv("GR2_STORE", str(traced.folder))
    key_of(page, "Good").click().run()
    assert not page.error
    assert events(traced) == [("ann", "good", [], None)]


def test_somebody_else_can_claim_first(open_labels: Open) -> None:
    page = open_labels()
    assert "You label as ann." in [text.value for text in page.text]
    page.button(key="somebody-else").click().run()
    assert page.text_input[0].label.startswith("Your name")


def test_without_traces_the_page_says_how_to_make_some(open_labels: Open, traced: Store) -> None:
    with traced.writing() as session:
        session.connection.execute("delete from traces")
    assert "gr2 trace NAME" in open_labels().info[0].value


def test_an_unknown_queue_is_a_line(open_labels: Open) -> None:
    assert "no label queue 'nope'" in open_labels(queue="nope").code[0].value


def test_a_key_in_a_stale_window_says_why_nothing_was_stored(open_labels: Open, traced: Store) -> None:
    queue = make_queue(traced, QueueSettings("windows", size=3), "ann")
    page, other = (open_labels(queue=queue.queue_id) for _ in range(2))
    key_of(other, "Good").click().run()
    assert not other.warning
    key_of(page, "Bad").click().run()
    assert not page.exception
    assert "was not stored: the trace was no longer assigned to you" in page.warning[0].value
    assert [label for _, label, *_ in events(traced)] == ["good"]
    # The page has gone on to the next trace, whose label is stored.
    key_of(page, "Unsure").click().run()
    assert not page.warning
    assert [label for _, label, *_ in events(traced)] == ["good", "unsure"]
    # Of the last trace too.
    key_of(other, "Good").click().run()
    key_of(other, "Good").click().run()
    key_of(page, "Bad").click().run()
    assert "was not stored" in page.warning[0].value
    assert [label for _, label, *_ in events(traced)] == ["good", "unsure", "good"]
