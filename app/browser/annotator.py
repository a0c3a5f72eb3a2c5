"""Who is labelling: asked once, then kept in a cookie of the browser; a sign-in (`st.login`) goes before.

A link never carries the name, so that whoever opens it labels under their own.
"""

from urllib.parse import quote, unquote

import streamlit as st

from curate.review.labelling import check_annotator
from store import InputError

COOKIE = "gr2_annotator"
YEAR_SECONDS = 31_536_000


def ask_annotator() -> str | None:
    """The annotator's name; where it is not known yet, draws the question and returns None."""
    name = known_annotator()
    if name is not None:
        if unquote(st.context.cookies.get(COOKIE, "")) != name and not signed_in():
            remember(name)
        return name
    with st.form("annotator"):
        asked = st.text_input("Your name, as it will stand beside your labels", key="annotator-name")
        if st.form_submit_button("Begin", type="primary"):
            try:
                check_annotator(asked)
            except InputError as error:
                st.code(str(error), language=None, wrap_lines=True)
            else:
                st.session_state["annotator-known"] = asked
                st.rerun()
    return None


def known_annotator() -> str | None:
    """The name that a sign-in, this session or the cookie gives; None where none does, or it cannot be one."""
    signed = str(st.user.get("email") or st.user.get("name") or "") if signed_in() else ""
    name = signed or st.session_state.get("annotator-known", unquote(st.context.cookies.get(COOKIE, "")))
    try:
        check_annotator(name)
    except InputError:
        return None
    return str(name)


def forget_annotator() -> None:
    """Ask for the name again: somebody else sits down here."""
    st.session_state["annotator-known"] = ""


def signed_in() -> bool:
    """Whether somebody signed in by `st.login`; False where no provider is set up."""
    return bool(st.user.get("is_logged_in", False))


def remember(name: str) -> None:
    """Keep the name for later visits. Percent-encoded it is letters, digits and -._~%, which no script can break."""
    st.html(
        f"<script>document.cookie = '{COOKIE}={quote(name, safe='')}; path=/; max-age={YEAR_SECONDS}; "
        "SameSite=Lax'</script>",
        unsafe_allow_javascript=True,
    )
