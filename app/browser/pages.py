"""What every page shares: it draws a store, what goes wrong is a line on it, and nobody's text is read as Markdown."""

import os
import re
from collections.abc import Callable, Mapping
from urllib.parse import urlencode

import streamlit as st

from store import Gr2Error, Store

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+.!|~$:<>&=-])")


def page(draw: Callable[[Store], None]) -> Callable[[], None]:
    """A page that draws the store of GR2_STORE."""

    def run() -> None:
        try:
            draw(open_store(os.environ.get("GR2_STORE", "gr2-store")))
        except Gr2Error as error:
            draw_error("Something is wrong.", error)

    # Streamlit tells pages apart by it.
    run.__name__ = draw.__name__
    return run


def draw_error(what: str, error: Gr2Error) -> None:
    """A line of ours, and the error's, which names what was seen and so may be anybody's text: no Markdown."""
    st.error(what, icon=":material/error:")
    st.code(str(error), language=None, wrap_lines=True)


def escape_markdown(text: str) -> str:
    """Words that are not ours, for what reads Markdown: labels of widgets, figures, captions.

    Streamlit still makes a bare address a link, -> an arrow and :material/home: an icon; st.text shows all as it is.

    >>> print(escape_markdown("*so* so"))
    \\*so\\* so
    """
    return _MARKDOWN.sub(r"\\\1", text)


@st.cache_resource
def open_store(folder: str) -> Store:
    """The store, which holds no connection; its schema is looked at once for each process."""
    return Store.open(folder)


def to_traces(query: Mapping[str, str]) -> str:
    """The link to the page of traces with a filter's `to_query()`, or one trace open: {"trace": its id}."""
    return "/traces?" + urlencode(query)
