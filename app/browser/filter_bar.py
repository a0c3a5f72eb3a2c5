"""The filter of traces in the sidebar. It is the same on every page that shows a selection of traces.

Its widgets are bound to the link's parameters, which are named like the fields of TraceFilter, so a link opens the same
selection. The widgets keep their values from page to page.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import streamlit as st

from curate.review.trace_pages import load_choices
from curate.traces.filter import ANSWERED, LABELS, TraceFilter
from store import Store

MOST_CANDIDATES = 20
CHOICES_S = 10.0


def choose_filter(store: Store) -> TraceFilter:
    """Draw the filter and return it. Raises InputError if a link or a typed time cannot be read."""
    choices = known_choices(store)
    ranks = [str(rank) for rank in range(MOST_CANDIDATES + 1)]
    with st.sidebar:
        with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
            st.markdown("**Filter traces**", width="content")
            st.button("Clear", on_click=clear_filter, key="clear-filter", type="tertiary", icon=":material/close:")
        _text("text", "Reasoning contains")
        _select("dataset", "Dataset", choices["dataset"])
        for name in ("split", "template", "teacher"):
            _select(name, name.capitalize(), choices[name])
        _select("passes", "Passes ruleset", choices["ruleset"])
        _select("fails", "Fails ruleset", choices["ruleset"])
        _select("label", "Label", LABELS)
        with st.expander("More filters", expanded=any(st.session_state.get(name) for name in MORE)):
            _text("pattern", "Regular expression")
            _select("rule", "Failed rule", choices["rule"])
            _select("reason", "Reason of failure", choices["reason"])
            _select("first_failed_rule", "First failed rule", (ANSWERED, *(choices["first_failed_rule"] or ())))
            _select("copied", "Order copied", ("yes", "no"))
            _text("step", "Step of the training (rollouts)")
            _select("kept", "Learned from (rollouts)", ("yes", "no"))
            _select("target_rank", "Target's rank in the prompt (0: absent)", ranks)
            _select("predicted_rank", "Target's rank in the answer (0: absent)", ranks)
            _text("min_pass_rate", "Minimum pass rate")
            _text("max_pass_rate", "Maximum pass rate")
            _select("strategy", "Strategy", choices["strategy"])
            _select("model", "Model", choices["model"])
            _select("temperature", "Temperature", choices["temperature"])
            _select("annotator", "Labelled by", choices["annotator"])
            _text("since", "Since (UTC)", "2026-11-25 08:00")
            _text("until", "Until (UTC)", "2026-11-26")
            for name in ("run_id", "user_id", "list_id", "prompt_id"):
                _text(name, name.removesuffix("_id").capitalize() + " ID")
    return TraceFilter.from_query({name: st.session_state.get(name) or "" for name in NAMES})


@st.cache_data(ttl=CHOICES_S, show_spinner=False, hash_funcs={Store: lambda store: str(store.folder)})
def known_choices(store: Store) -> dict[str, list[Any]]:
    """The values to filter by, at most CHOICES_S old, because finding them takes 0.1 s in a large store."""
    return load_choices(store)


NAMES = tuple(field.name for field in fields(TraceFilter))
FIRST = ("text", "dataset", "split", "template", "teacher", "passes", "fails", "label")
MORE = tuple(name for name in NAMES if name not in FIRST)


def clear_filter() -> None:
    """Reset every field, so that all traces pass."""
    for name in NAMES:
        st.session_state[name] = None


def _select(name: str, label: str, values: Sequence[Any] | None) -> None:
    """Draw a choice. A link carries the option's text, so the text must be readable for TraceFilter.

    A value that the link names is always added to the options. Otherwise Streamlit would drop it, and the page would
    show all traces.
    """
    options = [str(value) for value in values or ()]
    for choice in (st.query_params.get(name), st.session_state.get(name)):
        if choice and choice not in options:
            options.append(choice)
    st.selectbox(label, options, index=None, placeholder="any", key=name, bind="query-params", persist_state="session")


def _text(name: str, label: str, placeholder: str = "") -> None:
    st.text_input(label, value=None, placeholder=placeholder, key=name, bind="query-params", persist_state="session")
