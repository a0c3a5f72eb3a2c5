"""The trace browser: its pages and their navigation."""

import streamlit as st

from app.browser.agreement_page import draw_agreement
from app.browser.annotator import signed_in
from app.browser.compare_page import draw_comparison
from app.browser.label_page import draw_labels
from app.browser.overview_page import draw_overview
from app.browser.pages import page
from app.browser.sid_page import draw_sids
from app.browser.snapshot_page import draw_snapshots
from app.browser.sql_page import draw_sql
from app.browser.trace_page import draw_traces
from app.browser.training_page import draw_trainings

SIDEBAR_PX = 250
# Streamlit leaves 6 rem empty above a page and 5 rem beside it.
LAYOUT = """<style>
[data-testid="stMainBlockContainer"] {padding: 4.5rem 2.5rem 3rem}
[data-testid="stSidebarHeader"] {height: 3rem; padding-bottom: 0; margin-bottom: 0}
</style>"""
# The first page is the default, so it has no path.
PAGES = (
    (draw_overview, "Overview", None),
    (draw_traces, "Traces", "traces"),
    (draw_comparison, "Compare", "compare"),
    (draw_labels, "Label", "label"),
    (draw_agreement, "Agreement", "agreement"),
    (draw_snapshots, "Snapshots", "snapshots"),
    (draw_sql, "SQL", "sql"),
    (draw_sids, "Semantic IDs", "semantic-ids"),
    (draw_trainings, "Training", "training"),
)


def main() -> None:
    """Draw the requested page."""
    st.set_page_config(page_title="gr2", layout="wide", initial_sidebar_state=SIDEBAR_PX)
    st.html(LAYOUT)
    if must_sign_in():
        st.subheader("gr2", anchor=False)
        st.text("Sign in to see the traces. Labels are stored under your email address.")
        st.button("Sign in", type="primary", on_click=st.login, key="sign-in")
        return
    st.navigation(
        [st.Page(page(draw), title=title, url_path=path, default=path is None) for draw, title, path in PAGES],
        position="top",
    ).run()


def must_sign_in() -> bool:
    """Whether Streamlit's secrets name a sign-in provider and this user has not signed in yet."""
    return st.secrets.load_if_toml_exists() and "auth" in st.secrets and not signed_in()


main()
