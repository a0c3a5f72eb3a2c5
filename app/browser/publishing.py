"""Publishing a snapshot from the filter: what to publish, what it would be, and the button that does it.

It draws; counting, refusing and writing are `curate.snapshots.publishing`'. Rows and refusals are shown as text, never
as HTML or Markdown.
"""

import streamlit as st

from app.browser.pages import draw_error, escape_markdown
from curate.snapshots import KINDS, Counts, SnapshotSettings
from curate.snapshots.kind import DEFAULT_RULESET
from curate.snapshots.publishing import Preview, load_options, load_snapshots, preview, publish
from curate.traces.filter import TraceFilter
from store import Gr2Error, Store
from store.snapshots import Snapshot

# A link's parameter: the snapshot that is looked at.
CHOSEN = "snapshot"


def draw_publishing(store: Store, chosen: TraceFilter) -> None:
    """What to publish, what it would be, and the button that does it."""
    options = load_options(store)
    if not options.datasets:
        st.info("No dataset yet. gr2 ingest and gr2 simulate make one.")
        return
    fields = st.columns([3, 2, 2, 2, 3])
    datasets = [chosen.dataset] if chosen.dataset else options.datasets
    dataset: str = fields[1].selectbox("Dataset", datasets, key=f"snapshot-dataset-{chosen.dataset}")
    name = fields[0].text_input("Name", placeholder=dataset, key="snapshot-name", max_chars=100) or dataset
    kind: str = fields[2].selectbox(
        "Kind",
        ["sft", *(kind for kind in KINDS if kind != "sft")],
        help="\n\n".join(f"{kind.name}: {kind.about}" for kind in KINDS.values()),
        key="snapshot-kind",
    )
    passes = chosen.passes if chosen.passes in options.rulesets else DEFAULT_RULESET
    ruleset: str = fields[3].selectbox(
        "Ruleset",
        options.rulesets,
        index=options.rulesets.index(passes),
        disabled=kind != "sft",
        help="Traces that it does not accept are left out, besides what the filter leaves out.",
        key=f"snapshot-ruleset-{passes}",
    )
    splits = fields[4].multiselect("Splits", ["train", "valid"], default=["train", "valid"], key="snapshot-splits")
    draw_chosen(chosen)
    try:
        # A kind that is not made of traces keeps the default, so that its version does not depend on what is unused.
        used = ruleset if kind == "sft" else DEFAULT_RULESET
        settings = SnapshotSettings(dataset, ruleset=used, kind=kind, splits=tuple(splits), traces=chosen)
        seen = find_preview(store, settings)
        if seen is not None:
            draw_preview(seen)
            if st.button("Publish", type="primary", key="publish", disabled=seen.refusal is not None):
                publish_selection(store, name, settings)
    except Gr2Error as error:
        draw_error("It cannot be published.", error)
    draw_done()


def draw_chosen(chosen: TraceFilter) -> None:
    """The filter in words, since the sidebar may be folded."""
    asked = chosen.to_query()
    if asked:
        st.code("\n".join(f"{name}: {value}" for name, value in asked.items()), language=None, wrap_lines=True)
    else:
        st.caption("The filter in the sidebar lets every trace through.")


def find_preview(store: Store, settings: SnapshotSettings) -> Preview | None:
    """The preview that was asked for; None before it is, and once the selection is another."""
    if st.button("Preview", key="preview"):
        st.session_state.pop("preview-of", None)
        with st.spinner("Counting what this selects"):
            st.session_state["previewed"] = preview(store, settings)
        st.session_state["preview-of"] = settings
    seen: Preview | None = st.session_state["previewed"] if st.session_state.get("preview-of") == settings else None
    return seen


def draw_preview(seen: Preview) -> None:
    """How much it is, whether it would be refused, and its first rows."""
    counts = seen.counts
    for figure, (label, value) in zip(st.columns(5), figures_of(counts).items(), strict=False):
        figure.metric(label, value)
    st.dataframe(
        counts.groups,
        hide_index=True,
        height="content",
        column_config={
            "rows": st.column_config.NumberColumn(format="localized"),
            "labelled_bad": st.column_config.NumberColumn("left out: labelled bad", format="localized"),
            "mean_tokens": st.column_config.NumberColumn("mean tokens", format="%.1f"),
            "pass_rate_model": st.column_config.TextColumn(
                "pass rates of", help="Who tried a prompt most often; None where nobody did"
            ),
        },
    )
    if seen.refusal is not None:
        st.error("It would be refused.", icon=":material/block:")
        st.code(seen.refusal, language=None, wrap_lines=True)
    for place, (split, row) in enumerate(seen.first, 1):
        with st.expander(f"Row {place} as it would be written, of split {escape_markdown(split)}"):
            st.json(row)


def figures_of(counts: Counts) -> dict[str, str]:
    """The totals by what they are called."""
    figures = {"rows": f"{counts.rows:,}", "users": f"{counts.users:,}"}
    if counts.prompts is not None:
        figures["prompts"] = f"{counts.prompts:,}"
    if "labelled_bad" in counts.groups.columns:
        figures["left out: labelled bad"] = f"{counts.labelled_bad:,}"
        figures["mean tokens"] = "?" if counts.mean_tokens is None else f"{counts.mean_tokens:,.1f}"
    return figures


def publish_selection(store: Store, name: str, settings: SnapshotSettings) -> None:
    """Publish, and draw the page anew; what came out is drawn by `draw_done`."""
    known = load_snapshots(store).filter(name=name)["version"].to_list()
    with st.spinner("Writing every row"):
        snapshot = publish(store, name, settings)
    st.session_state["publish-done"] = (reference_of(snapshot), snapshot.version in known)
    st.query_params[CHOSEN] = reference_of(snapshot)
    st.rerun()


def draw_done() -> None:
    """What publishing came to, once."""
    reference, was_there = st.session_state.pop("publish-done", (None, False))
    if reference is None:
        return
    if was_there:
        st.info("It was published before: the same selection is the same version. Nothing was written.")
    else:
        st.success("Published.", icon=":material/check:")
    st.code(reference, language=None)


def reference_of(snapshot: Snapshot) -> str:
    """NAME@VERSION."""
    return f"{snapshot.manifest['name']}@{snapshot.version}"
