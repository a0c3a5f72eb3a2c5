"""Publishing a snapshot from the filter: the settings, a preview, and the button that publishes.

This module only draws; `curate.snapshots.publishing` counts, refuses and writes. Rows and refusals are shown as text,
never as HTML or Markdown.
"""

import streamlit as st

from app.browser.pages import draw_error, escape_markdown
from curate.snapshots import KINDS, Counts, SnapshotSettings
from curate.snapshots.kind import DEFAULT_RULESET
from curate.snapshots.publishing import Preview, load_options, load_snapshots, preview, publish
from curate.traces.filter import TraceFilter
from store import Gr2Error, Store
from store.snapshots import Snapshot

# The link's parameter for the open snapshot.
CHOSEN = "snapshot"


def draw_publishing(store: Store, chosen: TraceFilter) -> None:
    """Draw the settings of a snapshot, its preview, and the button that publishes it."""
    options = load_options(store)
    if not options.datasets:
        st.info("There is no dataset yet. Run `gr2 ingest` with your logs, or `gr2 simulate NAME`.")
        return
    fields = st.columns([3, 2, 2, 2, 3])
    datasets = [chosen.dataset] if chosen.dataset else options.datasets
    dataset: str = fields[1].selectbox("Dataset", datasets, key=f"snapshot-dataset-{chosen.dataset}")
    name = fields[0].text_input("Name", placeholder=dataset, key="snapshot-name", max_chars=100) or dataset
    kind: str = fields[2].selectbox(
        "Kind",
        KINDS.names(),
        help="\n\n".join(f"{name}: {KINDS.find(name).about}" for name in KINDS.builtin),
        key="snapshot-kind",
    )
    try:
        made_of_traces = KINDS.find(kind).filters is None
    except Gr2Error as error:
        draw_error("This kind cannot be used.", error)
        return
    passes = chosen.passes if chosen.passes in options.rulesets else DEFAULT_RULESET
    ruleset: str = fields[3].selectbox(
        "Ruleset",
        options.rulesets,
        index=options.rulesets.index(passes),
        disabled=not made_of_traces,
        help="Of the traces that match the filter, only those that the ruleset accepts are published.",
        key=f"snapshot-ruleset-{passes}",
    )
    splits = fields[4].multiselect("Splits", ["train", "valid"], default=["train", "valid"], key="snapshot-splits")
    draw_chosen(chosen)
    try:
        # A kind that is not made of traces keeps the default ruleset, so its version does not depend on the choice.
        used = ruleset if made_of_traces else DEFAULT_RULESET
        settings = SnapshotSettings(dataset, ruleset=used, kind=kind, splits=tuple(splits), traces=chosen)
        seen = find_preview(store, settings)
        if seen is not None:
            draw_preview(seen)
            if st.button("Publish", type="primary", key="publish", disabled=seen.refusal is not None):
                publish_selection(store, name, settings)
    except Gr2Error as error:
        draw_error("This selection cannot be published.", error)
    draw_done()


def draw_chosen(chosen: TraceFilter) -> None:
    """Draw the filter as text, because the sidebar may be collapsed."""
    query = chosen.to_query()
    if query:
        st.code("\n".join(f"{name}: {value}" for name, value in query.items()), language=None, wrap_lines=True)
    else:
        st.caption("The filter in the sidebar selects all traces.")


def find_preview(store: Store, settings: SnapshotSettings) -> Preview | None:
    """Return the preview of this selection, or None until Preview is pressed for it."""
    if st.button("Preview", key="preview"):
        st.session_state.pop("preview-of", None)
        with st.spinner("Counting the selected rows"):
            st.session_state["previewed"] = preview(store, settings)
        st.session_state["preview-of"] = settings
    seen: Preview | None = st.session_state["previewed"] if st.session_state.get("preview-of") == settings else None
    return seen


def draw_preview(seen: Preview) -> None:
    """Draw the number of rows, whether publishing would be refused, and the first rows."""
    counts = seen.counts
    for figure, (label, value) in zip(st.columns(5), figures_of(counts).items(), strict=False):
        figure.metric(label, value)
    st.dataframe(
        counts.groups,
        hide_index=True,
        height="content",
        placeholder="–",
        column_config={
            "rows": st.column_config.NumberColumn(format="localized"),
            "labelled_bad": st.column_config.NumberColumn("excluded (labelled bad)", format="localized"),
            "mean_tokens": st.column_config.NumberColumn("mean tokens", format="%.1f"),
            "pass_rate_model": st.column_config.TextColumn(
                "pass rates of", help="The model with most attempts on the prompt. A dash: no model tried it."
            ),
        },
    )
    if seen.refusal is not None:
        st.error("This selection would be refused.", icon=":material/block:")
        st.code(seen.refusal, language=None, wrap_lines=True)
    for place, (split, row) in enumerate(seen.first, 1):
        with st.expander(f"Row {place} as it would be written (split {escape_markdown(split)})"):
            st.json(row)


def figures_of(counts: Counts) -> dict[str, str]:
    """Return the totals by name."""
    figures = {"Rows": f"{counts.rows:,}", "Users": f"{counts.users:,}"}
    if counts.prompts is not None:
        figures["Prompts"] = f"{counts.prompts:,}"
    if "labelled_bad" in counts.groups.columns:
        figures["Excluded (labelled bad)"] = f"{counts.labelled_bad:,}"
        figures["Mean tokens"] = "–" if counts.mean_tokens is None else f"{counts.mean_tokens:,.1f}"
    return figures


def publish_selection(store: Store, name: str, settings: SnapshotSettings) -> None:
    """Publish and draw the page again. `draw_done` then shows the result."""
    versions = load_snapshots(store).filter(name=name)["version"].to_list()
    with st.spinner("Writing every row"):
        snapshot = publish(store, name, settings)
    st.session_state["publish-done"] = (reference_of(snapshot), snapshot.version in versions)
    st.query_params[CHOSEN] = reference_of(snapshot)
    st.rerun()


def draw_done() -> None:
    """Show the result of publishing once."""
    reference, was_there = st.session_state.pop("publish-done", (None, False))
    if reference is None:
        return
    if was_there:
        st.info("This version was published before, with the same rows. Nothing was written.")
    else:
        st.success("Published.", icon=":material/check:")
    st.code(reference, language=None)


def reference_of(snapshot: Snapshot) -> str:
    """The reference of a snapshot, as NAME@VERSION."""
    return f"{snapshot.manifest['name']}@{snapshot.version}"
