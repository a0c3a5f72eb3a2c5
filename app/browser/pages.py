"""What every page shares: it draws a store, and what goes wrong is a line on it."""

import os
from collections.abc import Callable

import streamlit as st

from store import Gr2Error, Store


def page(draw: Callable[[Store], None]) -> Callable[[], None]:
    """A page that draws the store of GR2_STORE."""

    def run() -> None:
        try:
            draw(open_store(os.environ.get("GR2_STORE", "gr2-store")))
        except Gr2Error as error:
            st.error("Something is wrong.", icon=":material/error:")
            # Messages name what was seen, which may be anybody's text: no Markdown.
            st.code(str(error), language=None, wrap_lines=True)

    # Streamlit tells pages apart by it.
    run.__name__ = draw.__name__
    return run


@st.cache_resource
def open_store(folder: str) -> Store:
    """The store, which holds no connection; its schema is looked at once for each process."""
    return Store.open(folder)
