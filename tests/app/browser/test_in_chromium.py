"""What only a real browser shows: clicks, keys, links, and that hostile text does no harm."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from app.browser.label_page import UNSEEN_SECONDS
from curate.review.labelling import DEFAULT_TAGS, QueueSettings, make_queue
from curate.review.trace_pages import count_traces, find_traces
from curate.traces.filter import TraceFilter
from store import Store

Open = Callable[..., Page]


@pytest.mark.slow
def test_a_trace_can_be_found_and_read(server: str, traced: Store, open_browser: Open) -> None:
    page = open_browser()
    page.goto(f"{server}/traces?passes=paper&split=train")
    fitting = find_traces(traced, TraceFilter(passes="paper", split="train"), limit=1_000).rows
    expect(page.get_by_text(f"{fitting.height} traces")).to_be_visible()
    trace_id = fitting["trace_id"][0]
    page.goto(f"{server}/traces?trace={trace_id}")
    expect(page.get_by_text("Candidates before and after")).to_be_visible()
    expect(page.get_by_text(trace_id)).to_be_visible()
    page.get_by_text("Prompt as sent").click()
    expect(page.get_by_text("Re-rank the candidates so that").first).to_be_visible()


@pytest.mark.slow
def test_the_pages_are_one_click_apart(server: str, open_browser: Open) -> None:
    page = open_browser()
    page.goto(server)
    page.get_by_role("link", name="Semantic IDs").click()
    expect(page.get_by_text("Prefix tree")).to_be_visible()
    expect(page.locator("canvas").first).to_be_visible()


@pytest.mark.slow
def test_the_first_screen_of_each_page_begins_with_its_title_and_cuts_nothing(
    server: str, traced: Store, open_browser: Open
) -> None:
    page = open_browser()
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(f"{server}/label")
    page.get_by_label("Your name").fill("ann")
    page.keyboard.press("Enter")
    queue = make_queue(traced, QueueSettings("first", size=5), "ann")
    for path, title in (
        ("", "Overview"),
        ("traces", f"{count_traces(traced, TraceFilter())} traces"),
        ("compare", "Compare"),
        ("label", "Label"),
        (f"label?queue={queue.queue_id}", "Label"),
        ("agreement", "Agreement"),
        ("snapshots", "Snapshots"),
        ("sql", "SQL"),
        ("semantic-ids", "Semantic IDs"),
        ("training", "Training"),
    ):
        page.goto(f"{server}/{path}")
        heading = page.get_by_role("heading", name=title, exact=True)
        expect(heading).to_be_visible()
        # Streamlit may draw the title a moment before the page's style.
        page.wait_for_function("heading => heading.getBoundingClientRect().top < 90", arg=heading.element_handle())
        # No page scrolls sideways.
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 1280


@pytest.mark.slow
def test_the_keys_are_one_row_that_stays_in_view(server: str, traced: Store, open_browser: Open) -> None:
    queue = make_queue(traced, QueueSettings("bar", TraceFilter(teacher="evidence"), size=5, blind=False), "ann")
    page = open_browser()
    page.set_viewport_size({"width": 1280, "height": 500})
    page.goto(f"{server}/label?queue={queue.queue_id}")
    page.get_by_label("Your name").fill("ann")
    page.keyboard.press("Enter")
    expect(page.get_by_text("Completion as received")).to_be_visible()
    buttons = page.locator(".st-key-label-bar button")
    # Five keys, the default tags and the note.
    expect(buttons).to_have_count(6 + len(DEFAULT_TAGS))
    tops = {round(button.bounding_box()["y"]) for button in buttons.all()}  # type: ignore[index]
    assert len(tops) == 1
    page.get_by_text("Completion as received").scroll_into_view_if_needed()
    expect(page.get_by_text("by you,")).not_to_be_in_viewport()
    ground = "element => getComputedStyle(element).backgroundColor"
    assert page.locator(".st-key-label-bar").evaluate(ground) == page.get_by_test_id("stApp").evaluate(ground)
    expect(buttons.first).to_be_in_viewport()
    expect(buttons.last).to_be_in_viewport()


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["hostile", "megabyte", "broken"])
def test_hostile_text_is_shown_and_not_executed(server: str, traced: Store, open_browser: Open, teacher: str) -> None:
    trace_id = find_traces(traced, TraceFilter(teacher=teacher)).rows["trace_id"][0]
    page = open_browser()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(f"{server}/traces?trace={trace_id}")
    shown = "A long story about soap." if teacher == "megabyte" else "<script>document.title='owned'</script> **bold**"
    expect(page.get_by_text("Completion as received")).to_be_visible()
    page.get_by_text("Completion as received").click()
    # The table above draws its texts on a canvas, and names them in cells that are hidden.
    expect(page.get_by_text(shown).filter(visible=True).first).to_be_visible()
    assert page.title() == "gr2"
    assert dialogs == []
    assert page.locator("img[src=x]").count() == 0
    if teacher == "megabyte":
        page.get_by_text("Full reasoning").click()
        expect(page.get_by_text("975,000 characters").first).to_be_visible()


def look(page: Page, done: int) -> None:
    """Wait until the trace after so many labels is drawn, and then as long as a person must have seen it."""
    expect(page.get_by_text(f"{done} of 20 by you")).to_be_visible()
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    page.wait_for_timeout(1_000 * UNSEEN_SECONDS)


@pytest.mark.slow
def test_twenty_traces_are_labelled_by_keyboard_alone(server: str, traced: Store, open_browser: Open) -> None:
    queue = make_queue(traced, QueueSettings("keys", size=20, tags=("odd", "nice")), "ann")
    page = open_browser()
    page.goto(f"{server}/label?queue={queue.queue_id}")
    page.get_by_label("Your name").fill("ann")
    page.keyboard.press("Enter")
    done = 0

    def press(key: str, *, steps: int = 1) -> None:
        nonlocal done
        page.keyboard.press(key)
        done += steps
        look(page, done)

    look(page, done)
    for key in ("g", "b", "u", "s", "g"):
        press(key)
    # A note with letters that are keys elsewhere, and a tag.
    page.keyboard.press("1")
    expect(page.get_by_role("button", name="☑ odd")).to_be_visible()
    page.keyboard.press("n")
    expect(page.get_by_label("Note")).to_be_focused()
    page.keyboard.type("bugs 2z")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Note")).not_to_be_focused()
    # An empty note gives the keys back too.
    page.keyboard.press("n")
    expect(page.get_by_label("Note")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_label("Note")).not_to_be_focused()
    press("b")
    press("z", steps=-1)
    press("u")
    # A reload in the middle shows the same trace again, and asks for no name.
    page.reload()
    look(page, done)
    while done < 19:
        press("g")
    page.keyboard.press("g")
    expect(page.get_by_text("You have labelled every trace of this queue")).to_be_visible()
    with traced.reading() as session:
        rows = session.connection.execute(
            "select label, tags, note from labels.label_events where annotator = 'ann' order by created_at"
        ).fetchall()
        current = session.connection.execute("select count(*) from labels_current").fetchall()
    assert [label for label, *_ in rows[:8]] == ["good", "bad", "unsure", "skip", "good", "bad", "undo", "unsure"]
    assert rows[7] == ("unsure", ["odd"], "bugs 2z")
    assert len(rows) == 22
    assert current == [(20,)]


@pytest.mark.slow
def test_a_trace_leads_to_all_attempts_on_its_prompt(server: str, traced: Store, open_browser: Open) -> None:
    trace_id = find_traces(traced, TraceFilter(passes="paper")).rows["trace_id"][0]
    page = open_browser()
    page.goto(f"{server}/traces?trace={trace_id}")
    link = page.get_by_role("link", name="All attempts on this prompt")
    page.goto(server + str(link.get_attribute("href")))
    expect(page.get_by_text("1 accepted")).to_be_visible()
    expect(page.get_by_text("Tau between orders")).to_be_visible()


@pytest.mark.slow
def test_a_snapshot_is_published_from_the_filter(server: str, traced: Store, open_browser: Open) -> None:
    page = open_browser()
    page.goto(f"{server}/snapshots?passes=strict&teacher=evidence")
    page.get_by_text("Publish from the filter", exact=True).click()
    page.get_by_label("Name").fill("good")
    page.get_by_label("Name").press("Enter")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Publish", exact=True).click()
    expect(page.get_by_text("Published.", exact=True)).to_be_visible()
    fitting = find_traces(traced, TraceFilter(passes="strict", teacher="evidence"), limit=1_000).rows
    with traced.reading() as session:
        ((name, rows),) = session.connection.execute("select name, rows from snapshots").fetchall()
    assert (name, rows) == ("good", fitting.height)


@pytest.mark.slow
def test_a_key_pressed_twice_labels_one_trace(server: str, traced: Store, open_browser: Open) -> None:
    queue = make_queue(traced, QueueSettings("double", size=20), "ann")
    page = open_browser()
    page.goto(f"{server}/label?queue={queue.queue_id}")
    page.get_by_label("Your name").fill("ann")
    page.keyboard.press("Enter")
    look(page, 0)
    for done, gap_ms in enumerate((0, 30, 80, 160), 1):
        page.keyboard.press("g")
        page.wait_for_timeout(gap_ms)
        page.keyboard.press("g")
        look(page, done)
        page.wait_for_timeout(1_000)
        expect(page.get_by_text(f"{done} of 20 by you")).to_be_visible()
    with traced.reading() as session:
        events = session.connection.execute("select count(*) from labels.label_events").fetchone()
    assert events == (4,)


@pytest.mark.slow
def test_keys_belong_to_the_note_from_n_on_whatever_the_network_takes(
    distant_server: str, traced: Store, open_browser: Open
) -> None:
    queue = make_queue(traced, QueueSettings("distant", size=20), "ann")
    page = open_browser()
    page.goto(f"{distant_server}/label?queue={queue.queue_id}")
    page.get_by_label("Your name").fill("ann")
    page.keyboard.press("Enter")
    look(page, 0)
    # Every letter of it is a key elsewhere.
    page.keyboard.type("nbugs 12z")
    expect(page.get_by_label("Note")).to_have_value("bugs 12z")
    # The keys are back at once, and the label comes after the note.
    page.keyboard.press("Enter")
    page.keyboard.press("g")
    look(page, 1)
    # The note that is begun while the label before it is on its way belongs to the next trace.
    expect(page.get_by_label("Note")).to_have_value("")
    page.keyboard.press("b")
    page.keyboard.type("nsun")
    look(page, 2)
    page.keyboard.type("ny")
    expect(page.get_by_label("Note")).to_have_value("sunny")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Note")).not_to_be_focused()
    page.keyboard.press("u")
    look(page, 3)
    # A click on the button opens it too, and a click elsewhere gives the keys back.
    page.get_by_role("button", name="Note").click()
    expect(page.get_by_label("Note")).to_be_focused()
    page.keyboard.type("gs")
    page.get_by_role("heading", name="Label").click()
    page.keyboard.press("s")
    look(page, 4)
    with traced.reading() as session:
        rows = session.connection.execute(
            "select label, tags, note from labels.label_events order by created_at"
        ).fetchall()
    assert rows == [("good", [], "bugs 12z"), ("bad", [], None), ("unsure", [], "sunny"), ("skip", [], "gs")]
