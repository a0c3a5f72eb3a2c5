"""The app in the browser: opens the store, and lets people go from page to page."""

import os
from collections.abc import Callable

import streamlit as st

from app.browser.sid_page import draw_sids
from app.browser.trace_page import draw_traces
from app.browser.training_page import draw_trainings
from store import Gr2Error, Store


def main() -> None:
    """Draw the page that was asked for."""
    st.set_page_config(page_title="gr2", layout="wide")
    st.navigation(
        [
            st.Page(page(draw_traces), title="Traces", url_path="traces", default=True),
            st.Page(page(draw_sids), title="Semantic IDs", url_path="semantic-ids"),
            st.Page(page(draw_trainings), title="Training", url_path="training"),
        ],
        position="top",
    ).run()


def page(draw: Callable[[Store], None]) -> Callable[[], None]:
    """A page that draws a store, opened anew each time; what goes wrong is a line on the page."""

    def run() -> None:
        try:
            draw(Store.open(os.environ.get("GR2_STORE", "gr2-store")))
        except Gr2Error as error:
            st.error(str(error))

    return run


main()
