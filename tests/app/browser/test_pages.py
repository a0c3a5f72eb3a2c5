import re
from collections.abc import Callable

import polars as pl
import pytest
import streamlit
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from app.browser.pages import escape_markdown
from store import Store
from store.values import utc_now

Open = Callable[..., AppTest]


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


@pytest.mark.parametrize("name", ["overview", "traces", "snapshots", "agreement"])
def test_pages_that_count_say_where_verdicts_are_missing(name: str, open_page: Open, traced: Store) -> None:
    row = {"name": "mine", "version": 1, "rules": ["parsed", "later"], "description": "", "created_at": utc_now()}
    with traced.writing() as session:
        session.insert("append_rulesets", pl.DataFrame([row]))
        ((parsed,),) = session.connection.execute("select count(*) from traces where ranking is not null").fetchall()
    # What an earlier test has had counted is kept for a while.
    streamlit.cache_data.clear()
    module = {"traces": "trace"}.get(name, name.removesuffix("s"))
    function = {"traces": "draw_traces", "snapshots": "draw_snapshots"}.get(name, f"draw_{name}")
    page = open_page(f"{module}_page", function)
    assert not page.exception
    (warning,) = page.warning
    said = re.sub(r"\\(.)", r"\1", warning.value)
    assert said.startswith(
        f"{parsed:,} traces of shop have no verdict of rule later, so ruleset mine@1 does not accept"
    )
    assert said.endswith("run gr2 verify shop")
