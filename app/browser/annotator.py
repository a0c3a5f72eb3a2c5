"""The annotator's name, which is asked for once and then kept in a cookie. A sign-in (`st.login`) takes precedence.

A link never carries the name, so everybody labels under their own name.
"""

from urllib.parse import quote, unquote

import streamlit as st

from app.browser.pages import base_path, draw_title
from curate.review.labelling import check_annotator
from store import InputError

COOKIE = "gr2_annotator"
YEAR_SECONDS = 31_536_000


def ask_annotator() -> str | None:
    """Return the annotator's name. If it is unknown, draw the form that asks for it and return None."""
    name = known_annotator()
    if name is not None:
        if unquote(st.context.cookies.get(COOKIE, "")) != name and not signed_in():
            remember(name)
        return name
    draw_title("Label", "Read traces one by one and say which are good. Labels can select the traces of a snapshot.")
    with st.form("annotator"):
        new_name = st.text_input("Your name (stored with your labels)", key="annotator-name")
        if st.form_submit_button("Start", type="primary"):
            try:
                check_annotator(new_name)
            except InputError as error:
                st.code(str(error), language=None, wrap_lines=True)
            else:
                st.session_state["annotator-known"] = new_name
                st.rerun()
    return None


def known_annotator() -> str | None:
    """The name from the sign-in, this session or the cookie. None if there is none, or it is not a valid name."""
    signed = str(st.user.get("email") or st.user.get("name") or "") if signed_in() else ""
    name = signed or st.session_state.get("annotator-known", unquote(st.context.cookies.get(COOKIE, "")))
    try:
        check_annotator(name)
    except InputError:
        return None
    return str(name)


def forget_annotator() -> None:
    """Ask for the name again, for another person at this browser."""
    st.session_state["annotator-known"] = ""


def signed_in() -> bool:
    """Whether somebody signed in with `st.login`. False if no provider is set up."""
    return bool(st.user.get("is_logged_in", False))


def remember(name: str) -> None:
    """Keep the name for later visits. It is percent-encoded, so it cannot break out of the script."""
    cookie = f"{COOKIE}={quote(name, safe='')}; path={base_path() or '/'}; max-age={YEAR_SECONDS}; SameSite=Lax"
    st.html(f"<script>document.cookie = '{cookie}'</script>", unsafe_allow_javascript=True)
