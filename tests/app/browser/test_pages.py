import re

from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.browser.pages import escape_markdown


@given(st.text())
def test_an_escaped_text_is_the_text_without_its_backslashes(text: str) -> None:
    assert re.sub(r"\\(.)", r"\1", escape_markdown(text)) == text


def test_nothing_that_means_something_to_markdown_is_left_alone() -> None:
    assert escape_markdown("**b** <i> [x](y) $x$ :red[z]\n===") == (
        r"\*\*b\*\* \<i\> \[x\]\(y\) \$x\$ \:red\[z\]" + "\n" + r"\=\=\="
    )


def test_an_error_is_a_line_of_ours_and_its_text_as_it_is() -> None:
    def script() -> None:
        from app.browser.pages import draw_error  # noqa: PLC0415
        from store import InputError  # noqa: PLC0415

        draw_error("It cannot be shown.", InputError("there is no *trace* '<b>'"))

    page = AppTest.from_function(script, default_timeout=60).run()
    assert not page.exception
    assert page.error[0].value == "It cannot be shown."
    assert page.code[0].value == "there is no *trace* '<b>'"
