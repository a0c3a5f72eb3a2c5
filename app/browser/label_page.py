"""The page of labels: queues, and one trace after the other to be judged, by keyboard alone if one likes.

It draws; queues, assignments and events are `curate.review.labelling`'s. A label is stored before the next trace
appears; after a reload the same trace is there again. Keys wait while somebody types a note.
"""

import time
from collections.abc import Callable

import streamlit as st

from app.browser.annotator import ask_annotator, forget_annotator, signed_in
from app.browser.filter_bar import choose_filter
from app.browser.pages import escape_markdown
from app.browser.trace_card import draw_heading, draw_trace
from curate.review.labelling import (
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
from curate.review.trace_pages import load_trace
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
    Order.RANDOM: "at random, by seed",
    Order.LOWEST_PASS_RATE: "lowest pass rate first",
    Order.DISPUTED: "where judges disagree first",
    Order.NEWEST: "newest first",
}
# So soon after a trace was drawn a key is meant for the one before.
UNSEEN_SECONDS = 0.3
# Streamlit gives no element the focus, so a line of script does. It holds nothing of anybody's text.
FOCUS_NOTE = """<script>
{
    const note = document.querySelector('input[aria-label="Note"]');
    note?.focus();
    note?.addEventListener("keydown", (pressed) => {
        if (pressed.key === "Enter" || pressed.key === "Escape") setTimeout(() => note.blur(), 50);
    });
} // RUN
</script>"""
LEAVE_NOTE = "<script>document.activeElement?.blur() // RUN\n</script>"


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
    """The queue, read once: it never changes, and each key would read it again. Its id is of one store alone."""
    return find_queue(_store, queue_id)


def draw_queues(store: Store, annotator: str) -> None:
    """All queues, and a form for a new one from the filter in the sidebar."""
    chosen = choose_filter(store)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.subheader("Label queues")
        if not signed_in():
            st.text(f"You are {annotator}.", width="content")
            st.button("Somebody else?", key="somebody-else", type="tertiary", on_click=forget_annotator)
    queues = list_queues(store, annotator)
    if queues.height == 0:
        st.info("No queue yet. Choose traces by the filter at the left, then make one.")
    for row in queues.iter_rows(named=True):
        with st.container(border=True, horizontal=True, vertical_alignment="center"):
            st.text(row["name"], width=260)
            st.text(f"{row['finished']:,} of {row['traces']:,} finished, {row['mine']:,} by you", width=260)
            st.progress(row["finished"] / row["traces"])
            if st.button("Open", key=f"open-{row['queue_id']}"):
                st.query_params[QUEUE] = row["queue_id"]
                st.rerun()
    st.subheader("New queue")
    asked = ", ".join(f"{name} {value}" for name, value in chosen.to_query().items())
    st.text(f"Traces: {asked or 'all; the filter at the left narrows them'}")
    with st.form("new-queue"):
        left, middle, right = st.columns(3)
        name = left.text_input("Name", key="queue-name")
        size = left.number_input("Traces", 1, 100_000, 200, key="queue-size")
        order = middle.selectbox("Order", list(ORDERS), format_func=lambda order: ORDERS[order], key="queue-order")
        seed = middle.number_input("Seed", 0, None, 0, key="queue-seed")
        overlap = right.number_input("People for each trace", 1, 100, 1, key="queue-overlap")
        blind = right.toggle("Blind: hide teacher, verdicts, others' labels", True, key="queue-blind")
        tags = st.text_input("Tags, by comma", ", ".join(DEFAULT_TAGS), key="queue-tags")
        if st.form_submit_button("Make the queue", type="primary"):
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
    """What one annotator has before them, in Streamlit's session: the assignment, since when, tags and a note.

    Buttons act on it in callbacks, which run before the page is drawn again. A second press that reaches the next
    trace before anybody can have seen it does nothing.
    """

    def __init__(self, store: Store, queue: Queue, annotator: str) -> None:
        self.store = store
        self.queue = queue
        self.annotator = annotator
        # A plain dictionary: each access to Streamlit's session is a place where the next key may break a run off, and
        # between a stored label and the step to the next trace there must be none.
        self.state: dict[str, object] = st.session_state.setdefault(f"desk-{queue.queue_id}-{annotator}", {})

    def claim_first(self) -> None:
        """Take a assignment where there is none yet, as after a reload."""
        if self.state.get("assignment") is None:
            self._go_on(claim_next(self.store, self.queue, self.annotator))

    @property
    def assignment(self) -> Assignment | None:
        """What is looked at."""
        assignment = self.state.get("assignment")
        return assignment if isinstance(assignment, Assignment) else None

    @property
    def progress(self) -> Progress:
        """How far the queue was at the last step."""
        progress = self.state["progress"]
        assert isinstance(progress, Progress)
        return progress

    @property
    def tags(self) -> list[str]:
        """The tags that are set; like the note they stay with the trace, and are there again after an undo."""
        tags = self.state.setdefault(f"tags-{self.assignment}", [])
        assert isinstance(tags, list)
        return tags

    def toggle(self, assignment: Assignment, tag: str) -> None:
        """Set a tag, or take it away."""
        if assignment != self.assignment:
            return
        if tag in self.tags:
            self.tags.remove(tag)
        else:
            self.tags.append(tag)

    def label(self, assignment: Assignment, label: Label) -> None:
        """Store a judgement and go on."""
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
            )
        )

    def undo(self) -> None:
        """Take back the last label and show its trace again."""

        def go_back() -> tuple[Assignment | None, Progress]:
            assignment, progress = undo_last(self.store, self.queue, self.annotator)
            return assignment or self.assignment, progress

        self._attempt(go_back)

    def note_key(self, assignment: Assignment) -> str:
        """The key of the note's widget: a note belongs to one trace."""
        return f"note-{self.queue.queue_id}-{assignment.trace_id}"

    def _attempt(self, step: Callable[[], tuple[Assignment | None, Progress]]) -> None:
        """Take a step; where the store cannot take it, say so and stay where we are."""
        try:
            self._go_on(step())
        except Gr2Error as error:
            self.state["trouble"] = str(error)

    def _go_on(self, step: tuple[Assignment | None, Progress]) -> None:
        self.state["assignment"], self.state["progress"] = step
        self.state["shown-since"] = None
        self.state["trouble"] = None


def draw_queue(store: Store, queue: Queue, annotator: str) -> None:
    """One trace of a queue, and the keys to judge it."""
    desk = Desk(store, queue, annotator)
    desk.claim_first()
    assignment, progress = desk.assignment, desk.progress
    head = st.container(horizontal=True, vertical_alignment="center")
    if trouble := desk.state.get("trouble"):
        st.error("Nothing was stored by the last key; the trace is still here, try again.")
        st.code(str(trouble), language=None, wrap_lines=True)
    draw_keys(desk, assignment)
    if assignment is None:
        draw_end(progress)
    else:
        view = load_trace(store, assignment.trace_id, assignment.made_at, judged=not queue.settings.blind)
        if not queue.settings.blind:
            draw_heading(view)
        draw_trace(store, view)
        desk.state["shown-since"] = desk.state["shown-since"] or time.monotonic()
    # Last: where the progress has moved on, the trace and its keys are there.
    with head:
        st.text(f"{queue.settings.name}, {annotator}", width=280)
        st.progress(
            progress.mine / progress.traces,
            text=f"{progress.mine:,} of {progress.traces:,} by you, {progress.finished:,} finished",
        )
        if st.button("All queues", key="all-queues", type="tertiary"):
            del st.query_params[QUEUE]
            st.rerun()


def draw_keys(desk: Desk, assignment: Assignment | None) -> None:
    """Verdicts, tags and the note; each is a button with its key."""
    with st.container(horizontal=True):
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
        st.button(
            "Undo",
            key="label-undo",
            shortcut="Z",
            icon=":material/undo:",
            on_click=desk.undo,
            disabled=desk.progress.mine == 0,
        )
        if assignment is not None:
            for place, tag in enumerate(desk.queue.settings.tags, 1):
                st.button(
                    f"{'☑' if tag in desk.tags else '☐'} {escape_markdown(tag)}",
                    key=f"tag-{place}",
                    shortcut=str(place),
                    on_click=desk.toggle,
                    args=(assignment, tag),
                )
    if assignment is not None:
        draw_note(desk, assignment)


def draw_note(desk: Desk, assignment: Assignment) -> None:
    """N opens the note and puts the cursor there; Enter, Escape or any other step gives the keys back."""
    key = desk.note_key(assignment)

    def begin() -> None:
        desk.state["noting"] = assignment
        desk.state["typing"] = True

    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button("Note", key="note-open", shortcut="N", icon=":material/edit:", on_click=begin)
        if desk.state.get("noting") == assignment or st.session_state.get(key):
            st.text_input(
                "Note",
                key=key,
                placeholder="Enter keeps it",
                label_visibility="collapsed",
                persist_state="session",
            )
    script = FOCUS_NOTE if desk.state.pop("typing", False) else LEAVE_NOTE
    st.html(script.replace("RUN", str(time.time_ns())), unsafe_allow_javascript=True)


def draw_end(progress: Progress) -> None:
    """Nothing is left, for now or for good."""
    if progress.open:
        st.info(f"Others are looking at the last {progress.open:,} traces. Reload the page in a while.")
    else:
        st.success("Nothing is left for you in this queue.", icon=":material/done_all:")
        st.link_button("Agreement", "/agreement")
