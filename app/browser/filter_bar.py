"""The filter of traces in the sidebar, the same on every page that shows a selection of them.

Its widgets are bound to the link's parameters under the names of TraceFilter's fields, so that a link opens the same
selection, and keep their values from page to page.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import streamlit as st

from curate.review.trace_pages import load_choices
from curate.traces.filter import ANSWERED, LABELS, TraceFilter
from curate.traces.rules import RULE_NAMES
from store import Store

MOST_CANDIDATES = 20
CHOICES_S = 10.0


def choose_filter(store: Store) -> TraceFilter:
    """Draw the filter; returns what it lets through. Raises InputError where a link or a time means nothing."""
    choices = known_choices(store)
    ranks = [str(rank) for rank in range(MOST_CANDIDATES + 1)]
    with st.sidebar:
        st.button(
            "Clear the filter", on_click=clear_filter, key="clear-filter", type="tertiary", icon=":material/close:"
        )
        _text("text", "Text in the reasoning")
        _select("dataset", "Dataset", choices["dataset"])
        for name in ("split", "template", "teacher"):
            _select(name, name.capitalize(), choices[name])
        _select("passes", "Passes ruleset", choices["ruleset"])
        _select("fails", "Fails ruleset", choices["ruleset"])
        _select("label", "Labelled", LABELS)
        with st.expander("More", expanded=any(st.session_state.get(name) for name in MORE)):
            _text("pattern", "Regular expression")
            _select("rule", "Failed rule", choices["rule"])
            _select("reason", "Reason", choices["reason"])
            _select("first_failed_rule", "Lost at", (ANSWERED, *RULE_NAMES))
            _select("copied", "Order copied", ("yes", "no"))
            _select("target_rank", "Rank before (0: absent)", ranks)
            _select("predicted_rank", "Rank after (0: left out)", ranks)
            _text("min_pass_rate", "Pass rate at least")
            _text("max_pass_rate", "Pass rate at most")
            _select("strategy", "Strategy", choices["strategy"])
            _select("model", "Model", choices["model"])
            _select("temperature", "Temperature", choices["temperature"])
            _select("annotator", "Labelled by", choices["annotator"])
            _text("since", "Since (UTC)", "2026-11-25 08:00")
            _text("until", "Until (UTC)", "2026-11-26")
            for name in ("run_id", "user_id", "list_id", "prompt_id"):
                _text(name, name.removesuffix("_id").capitalize() + " id")
    return TraceFilter.from_query({name: st.session_state.get(name) or "" for name in NAMES})


@st.cache_data(ttl=CHOICES_S, show_spinner=False, hash_funcs={Store: lambda store: str(store.folder)})
def known_choices(store: Store) -> dict[str, list[Any]]:
    """The values to filter by, a few seconds old at most: in a large store they take a tenth of one to find."""
    return load_choices(store)


NAMES = tuple(field.name for field in fields(TraceFilter))
FIRST = ("text", "dataset", "split", "template", "teacher", "passes", "fails", "label")
MORE = tuple(name for name in NAMES if name not in FIRST)


def clear_filter() -> None:
    """Let everything through again."""
    for name in NAMES:
        st.session_state[name] = None


def _select(name: str, label: str, values: Sequence[Any] | None) -> None:
    """A choice. What a link carries is the text that is shown, so that must be what TraceFilter reads.

    What a link asks for is always among the options: Streamlit would take away what is not, and show everything.
    """
    options = [str(value) for value in values or ()]
    for asked in (st.query_params.get(name), st.session_state.get(name)):
        if asked and asked not in options:
            options.append(asked)
    st.selectbox(label, options, index=None, placeholder="any", key=name, bind="query-params", persist_state="session")


def _text(name: str, label: str, placeholder: str = "") -> None:
    st.text_input(label, value=None, placeholder=placeholder, key=name, bind="query-params", persist_state="session")
