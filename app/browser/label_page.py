"""The page Label: queues of traces, and one trace at a time to label, by mouse or keyboard.

This module only draws; `curate.review.labelling` keeps queues, assignments and events. A label is stored before the
next trace appears, and a reload shows the same trace again. Keys have no effect while somebody types a note.
"""

import time
from collections.abc import Callable

import streamlit as st

from app.browser.annotator import ask_annotator, forget_annotator, signed_in
from app.browser.filter_bar import choose_filter
from app.browser.pages import draw_title, escape_markdown, to_page
from app.browser.trace_card import draw_heading, draw_trace
from curate.review.labelling import (
    ASSIGNMENT_TIMEOUT,
    DEFAULT_TAGS,
    Assignment,
    Order,
    Progress,
    Queue,
    QueueSettings,
    claim_next,
    find_queue,
    label_assigned,
    list_queues,
    make_queue,
    undo_last,
)
from curate.review.trace_pages import count_traces, load_trace
from curate.traces.filter import TraceFilter
from store import Gr2Error, Store
from store.labels import Label

QUEUE = "queue"
KEYS = {Label.GOOD: "G", Label.BAD: "B", Label.UNSURE: "U", Label.SKIP: "S"}
ICONS = {
    Label.GOOD: ":material/thumb_up:",
    Label.BAD: ":material/thumb_down:",
    Label.UNSURE: ":material/help:",
    Label.SKIP: ":material/skip_next:",
}
ORDERS = {
    Order.RANDOM: "random (by seed)",
    Order.LOWEST_PASS_RATE: "lowest pass rate first",
    Order.DISPUTED: "judges disagree first",
    Order.NEWEST: "newest first",
}
# A key pressed this soon after a trace was drawn was meant for the trace before.
UNSEEN_SECONDS = 0.3
# The bar of keys stays below the navigation while the page scrolls. The default tags fit beside the keys at 1280 px.
# The bar scrolls over the page, so it needs the theme's background, which every element around it hands down.
BAR = "label-bar"
# The note is always on the page, so that N needs no answer from the server. It is hidden while it is empty.
NOTE = "label-note"
BAR_STYLE = f"""<style>
[data-testid="stLayoutWrapper"]:has(> .st-key-{BAR}) {{position: sticky; top: 3.75rem; z-index: 90}}
[data-testid="stApp"] :has(.st-key-{BAR}), .st-key-{BAR} {{background-color: inherit}}
.st-key-{BAR} {{padding: .4rem 0; border-bottom: 1px solid rgba(128, 128, 128, .25)}}
.st-key-{BAR} button {{padding: .2rem .5rem; min-height: 2.1rem}}
.st-key-{BAR} button p {{font-size: .875rem}}
.st-key-{NOTE}:not(:focus-within):has(input:placeholder-shown) {{position: absolute; opacity: 0; pointer-events: none}}
</style>"""
# Streamlit cannot set the focus, so a script does. The script contains no text of others. From the keydown of N on,
# before any of Streamlit's shortcuts sees them, keys belong to the note, until Enter, Escape or a click gives them
# back. If the next trace arrives in the meantime, the text moves to the note of that trace.
NOTE_KEYS = """<script>
(() => {
    const field = () => document.querySelector('.st-key-label-note input');
    const isTyping = (target) => target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
    const known = window.gr2Note;
    if (known) {
        known.resume();
        return;
    }
    const note = (window.gr2Note = { open: false, text: "", of: null, resume() {
        const input = field();
        if (!note.open || !input) {
            // Enter would press a button again that was clicked.
            if (document.activeElement?.closest(".st-key-label-bar button")) document.activeElement.blur();
            return;
        }
        if (note.of !== input && note.text && !input.value) {
            Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, note.text);
            input.dispatchEvent(new Event("input", { bubbles: true }));
        }
        note.of = input;
        if (document.activeElement !== input) input.focus();
    } });
    const begin = () => {
        const input = field();
        Object.assign(note, { open: true, text: input.value, of: input });
        note.resume();
    };
    const end = () => Object.assign(note, { open: false, text: "", of: null });
    window.addEventListener("keydown", (pressed) => {
        const input = field();
        if (!input) return end();
        if (note.open && pressed.target !== input && !isTyping(pressed.target)) {
            // The note was replaced. This key goes to the new one, which has the focus when the letter is entered.
            pressed.stopImmediatePropagation();
            note.resume();
        } else if (!note.open && pressed.key.toLowerCase() === "n" && !isTyping(pressed.target)
                && !pressed.ctrlKey && !pressed.altKey && !pressed.metaKey) {
            pressed.stopImmediatePropagation();
            pressed.preventDefault();
            begin();
        }
    }, true);
    // After Streamlit, which stores the note on Enter and when the focus leaves.
    window.addEventListener("keydown", (pressed) => {
        if (pressed.target === field() && !pressed.isComposing && ["Enter", "Escape"].includes(pressed.key)) {
            end();
            pressed.target.blur();
        }
    });
    window.addEventListener("input", (typed) => {
        if (note.open && typed.target === note.of) note.text = typed.target.value;
    }, true);
    window.addEventListener("focusin", (entered) => {
        if (entered.target === field() && !note.open) begin();
    });
    window.addEventListener("pointerdown", (clicked) => {
        if (clicked.target !== field()) end();
    }, true);
    window.addEventListener("click", (clicked) => {
        if (field() && clicked.target.closest?.(".st-key-note-open")) begin();
    });
})(); // RUN
</script>"""


def draw_labels(store: Store) -> None:
    """Draw the page."""
    annotator = ask_annotator()
    if annotator is None:
        return
    queue_id = st.query_params.get(QUEUE)
    if queue_id:
        draw_queue(store, load_queue(store, queue_id), annotator)
    else:
        draw_queues(store, annotator)


@st.cache_data(show_spinner=False)
def load_queue(_store: Store, queue_id: str) -> Queue:
    """Load a queue.

    A queue never changes and its id is unique across stores, so it is cached: each key would read it again.
    """
    return find_queue(_store, queue_id)


def draw_queues(store: Store, annotator: str) -> None:
    """Draw all queues, and a form for a new queue of the filtered traces."""
    chosen = choose_filter(store)
    draw_title(
        "Label", "Open a queue to label its traces one by one, or make a new queue of the filtered traces below."
    )
    if not signed_in():
        with st.container(horizontal=True, vertical_alignment="center"):
            st.text(f"You label as {annotator}.", width="content")
            st.button("Change name", key="somebody-else", type="tertiary", on_click=forget_annotator)
    queues = list_queues(store, annotator)
    if queues.height == 0:
        if count_traces(store, TraceFilter()) == 0:
            st.info("This store has no traces to label. Run `gr2 trace NAME --teacher evidence` first.")
        else:
            st.info("There are no queues yet. Choose traces with the filter on the left, then make a queue below.")
    for row in queues.iter_rows(named=True):
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            st.text(row["name"], width=260)
            st.text(f"{row['finished']:,} of {row['traces']:,} finished, {row['mine']:,} by you", width=280)
            st.progress(row["finished"] / row["traces"])
            if st.button("Open", key=f"open-{row['queue_id']}"):
                st.query_params[QUEUE] = row["queue_id"]
                st.rerun()
    st.markdown("##### New queue")
    filter_text = ", ".join(f"{name} {value}" for name, value in chosen.to_query().items())
    st.text(f"Traces: {filter_text or 'all. Narrow them with the filter on the left.'}")
    with st.form("new-queue"):
        left, middle, right = st.columns(3)
        name = left.text_input("Name", key="queue-name")
        size = left.number_input("Maximum number of traces", 1, 100_000, 200, key="queue-size")
        order = middle.selectbox("Order", list(ORDERS), format_func=lambda order: ORDERS[order], key="queue-order")
        seed = middle.number_input("Seed", 0, None, 0, key="queue-seed")
        overlap = right.number_input("Labels per trace (by different people)", 1, 100, 1, key="queue-overlap")
        blind = right.toggle(
            "Blind", True, key="queue-blind", help="Hide the teacher, the verdicts and other people's labels."
        )
        tags = st.text_input("Tags (comma-separated)", ", ".join(DEFAULT_TAGS), key="queue-tags")
        if st.form_submit_button("Make queue", type="primary"):
            settings = QueueSettings(
                name=name,
                traces=chosen,
                order=order,
                size=int(size),
                seed=int(seed),
                overlap=int(overlap),
                blind=blind,
                tags=tuple(tag.strip() for tag in tags.split(",") if tag.strip()),
            )
            st.query_params[QUEUE] = make_queue(store, settings, annotator).queue_id
            st.rerun()


class Desk:
    """The work of one annotator, kept in Streamlit's session: the assignment, when it was shown, tags and a note.

    Buttons change it in callbacks, which run before the page is drawn again. A key that arrives before the annotator
    can have seen the trace has no effect.
    """

    def __init__(self, store: Store, queue: Queue, annotator: str) -> None:
        self.store = store
        self.queue = queue
        self.annotator = annotator
        # This is a plain dictionary, because the next key may interrupt a run at any access to Streamlit's session.
        # That must not happen between storing a label and moving to the next trace.
        self.state: dict[str, object] = st.session_state.setdefault(f"desk-{queue.queue_id}-{annotator}", {})

    def claim_first(self) -> None:
        """Claim a trace if there is none yet, as after a reload."""
        if self.state.get("assignment") is None:
            self._go_on(claim_next(self.store, self.queue, self.annotator))

    @property
    def assignment(self) -> Assignment | None:
        """The annotator's current trace, or None."""
        assignment = self.state.get("assignment")
        return assignment if isinstance(assignment, Assignment) else None

    @property
    def progress(self) -> Progress:
        """The queue's progress at the last step."""
        progress = self.state["progress"]
        assert isinstance(progress, Progress)
        return progress

    @property
    def tags(self) -> list[str]:
        """The chosen tags. Like the note, they belong to the trace, so an undo shows them again."""
        tags = self.state.setdefault(f"tags-{self.assignment}", [])
        assert isinstance(tags, list)
        return tags

    def toggle(self, assignment: Assignment, tag: str) -> None:
        """Add or remove a tag."""
        if assignment != self.assignment:
            return
        if tag in self.tags:
            self.tags.remove(tag)
        else:
            self.tags.append(tag)

    def label(self, assignment: Assignment, label: Label) -> None:
        """Store a label and move to the next trace."""
        note = st.session_state.get(self.note_key(assignment))
        since = self.state.get("shown-since")
        if assignment != self.assignment or not isinstance(since, float) or time.monotonic() - since < UNSEEN_SECONDS:
            return
        self._attempt(
            lambda: label_assigned(
                self.store,
                self.queue,
                self.annotator,
                assignment,
                label,
                tags=self.tags,
                note=note,
                seconds=round(time.monotonic() - since, 3),
                on_stale=self._say_stale,
            )
        )

    def _say_stale(self) -> None:
        self.state["stale"] = True

    def undo(self) -> None:
        """Undo the last label and show its trace again."""

        def go_back() -> tuple[Assignment | None, Progress]:
            assignment, progress = undo_last(self.store, self.queue, self.annotator)
            return assignment or self.assignment, progress

        self._attempt(go_back)

    def note_key(self, assignment: Assignment) -> str:
        """The key of the note's widget. A note belongs to one trace."""
        return f"note-{self.queue.queue_id}-{assignment.trace_id}"

    def _attempt(self, step: Callable[[], tuple[Assignment | None, Progress]]) -> None:
        """Take a step. If the store fails, keep the trace and remember the error."""
        self.state["stale"] = False
        try:
            self._go_on(step())
        except Gr2Error as error:
            self.state["trouble"] = str(error)

    def _go_on(self, step: tuple[Assignment | None, Progress]) -> None:
        self.state["assignment"], self.state["progress"] = step
        self.state["shown-since"] = None
        self.state["trouble"] = None


def draw_queue(store: Store, queue: Queue, annotator: str) -> None:
    """Draw one trace of a queue, and the keys to label it."""
    desk = Desk(store, queue, annotator)
    desk.claim_first()
    assignment, progress = desk.assignment, desk.progress
    st.html(BAR_STYLE)
    head = st.container(horizontal=True, vertical_alignment="center")
    with st.container(key=BAR, gap="xsmall"):
        draw_keys(desk, assignment)
    if trouble := desk.state.get("trouble"):
        st.error("The last label was not stored. The trace is still open: try again.")
        st.code(str(trouble), language=None, wrap_lines=True)
    if desk.state.get("stale"):
        st.warning(
            "The last label was not stored: the trace was no longer assigned to you. You labelled it in another "
            f"window, or left it for more than {ASSIGNMENT_TIMEOUT.total_seconds() / 60:.0f} minutes. "
            "Below is the trace that is assigned to you now."
            if assignment is not None
            else "The last label was not stored: the trace was no longer assigned to you. You labelled it in another "
            "window, or somebody else did."
        )
    if assignment is None:
        draw_end(progress)
    else:
        view = load_trace(store, assignment.trace_id, assignment.made_at, judged=not queue.settings.blind)
        if not queue.settings.blind:
            draw_heading(view)
        draw_trace(store, view)
        desk.state["shown-since"] = desk.state["shown-since"] or time.monotonic()
    # The head is drawn last: once the progress has changed, the trace and its keys are there.
    with head:
        st.subheader("Label", anchor=False, width="content")
        st.text(f"{queue.settings.name} ({annotator})", width="content")
        st.progress(
            progress.mine / progress.traces,
            text=f"{progress.mine:,} of {progress.traces:,} by you, {progress.finished:,} finished",
        )
        if st.button("All queues", key="all-queues", type="tertiary"):
            del st.query_params[QUEUE]
            st.rerun()


def draw_keys(desk: Desk, assignment: Assignment | None) -> None:
    """Draw labels, tags and the note. Each is a button that shows its key."""
    with st.container(horizontal=True, gap="xsmall"):
        for label, key in KEYS.items():
            st.button(
                label.value.capitalize(),
                key=f"label-{label.value}",
                shortcut=key,
                icon=ICONS[label],
                disabled=assignment is None,
                on_click=desk.label,
                args=(assignment, label),
            )
        st.button("Undo", key="label-undo", shortcut="Z", on_click=desk.undo, disabled=desk.progress.mine == 0)
        if assignment is None:
            return
        for place, tag in enumerate(desk.queue.settings.tags, 1):
            st.button(
                f"{'☑' if tag in desk.tags else '☐'} {escape_markdown(tag)}",
                key=f"tag-{place}",
                shortcut=str(place),
                on_click=desk.toggle,
                args=(assignment, tag),
            )
        st.button("Note", key="note-open", shortcut="N")
    draw_note(desk, assignment)


def draw_note(desk: Desk, assignment: Assignment) -> None:
    """Draw the note. N puts the cursor there. Enter, Escape or a click elsewhere gives the keys back."""
    with st.container(key=NOTE):
        st.text_input(
            "Note",
            key=desk.note_key(assignment),
            placeholder="Write a note. Enter keeps it.",
            label_visibility="collapsed",
            persist_state="session",
        )
    # The text differs in each run of the page, because the script runs only if its text is new.
    st.html(NOTE_KEYS.replace("RUN", str(time.time_ns())), unsafe_allow_javascript=True)


def draw_end(progress: Progress) -> None:
    """Say that no trace is left, for now or for good."""
    if progress.open:
        st.info(f"Other people are labelling the last {progress.open:,} traces. Reload the page later.")
    else:
        st.success("You have labelled every trace of this queue that is open to you.", icon=":material/done_all:")
        st.link_button("See the agreement", to_page("agreement"))
