"""Shared parts of all pages: titles, errors, links, and the escaping of others' text against Markdown."""

import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

import streamlit as st

from curate.traces.rulesets import describe_unjudged, unjudged_traces
from store import Gr2Error, Store

MISSING_VERDICTS_S = 10
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+.!|~$:<>&=-])")


def page(draw: Callable[[Store], None]) -> Callable[[], None]:
    """Return a page that draws the store of GR2_STORE."""

    def run() -> None:
        try:
            store = open_store(os.environ.get("GR2_STORE", "gr2-store"))
            for sentence in missing_verdicts(store):
                st.warning(escape_markdown(sentence), icon=":material/rule:")
            draw(store)
        except Gr2Error as error:
            draw_error("This page cannot be shown.", error)

    # Streamlit tells pages apart by this name.
    run.__name__ = draw.__name__
    return run


def draw_title(title: str, about: str) -> None:
    """Draw the head of a page: its title, and its purpose in a sentence or two. Both must be gr2's own words."""
    st.subheader(title, anchor=False)
    st.caption(about)


def draw_error(what: str, error: Gr2Error) -> None:
    """Say what failed, and show the error's message as plain text: it quotes values that may contain Markdown."""
    st.error(what, icon=":material/error:")
    st.code(str(error), language=None, wrap_lines=True)


def escape_markdown(text: str) -> str:
    """Escape text of others for elements that read Markdown: labels of widgets, metrics, captions.

    Streamlit still turns a bare address into a link, -> into an arrow and :material/home: into an icon. st.text shows
    text unchanged.

    >>> print(escape_markdown("*so* so"))
    \\*so\\* so
    """
    return _MARKDOWN.sub(r"\\\1", text)


@st.cache_data(ttl=MISSING_VERDICTS_S, show_spinner=False, hash_funcs={Store: lambda store: str(store.folder)})
def missing_verdicts(store: Store) -> list[str]:
    """Sentences on missing verdicts, which `gr2 verify` adds. They are at most MISSING_VERDICTS_S old."""
    with store.reading() as session:
        return describe_unjudged(unjudged_traces(session))


@st.cache_resource
def open_store(folder: str) -> Store:
    """Open the store. It holds no connection, and its schema is checked once in each process."""
    return Store.open(folder)


def to_page(path: str, query: Mapping[str, str] | None = None) -> str:
    """The link to a page by its path, such as "compare", with query parameters. It includes the base path."""
    return f"{base_path()}/{path}" + (f"?{urlencode(query)}" if query else "")


def to_traces(query: Mapping[str, str]) -> str:
    """The link to the page Traces with a filter's `to_query()`, or with one trace open: {"trace": its id}."""
    return to_page("traces", query)


def base_path() -> str:
    """The path below which a reverse proxy serves all pages, such as "/gr2", or "" for none."""
    path = str(st.get_option("server.baseUrlPath") or "").strip("/")
    return f"/{path}" if path else ""
