from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import app.browser
from store import Store

MAIN = Path(app.browser.__file__).with_name("main.py")


@pytest.fixture
def main(traced: Store, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    monkeypatch.setenv("GR2_STORE", str(traced.folder))
    return AppTest.from_file(str(MAIN), default_timeout=60)


def test_the_first_page_is_the_overview(main: AppTest) -> None:
    main.run()
    assert not main.exception
    assert main.metric


def test_where_a_provider_is_set_up_nothing_is_shown_before_somebody_signs_in(main: AppTest) -> None:
    main.secrets["auth"] = {"client_id": "gr2"}
    main.run()
    assert not main.exception
    assert [button.label for button in main.button] == ["Sign in"]
    assert not main.metric


def test_a_missing_store_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR2_STORE", str(tmp_path / "none"))
    page = AppTest.from_file(str(MAIN), default_timeout=60).run()
    assert not page.exception
    assert "there is no store" in page.code[0].value
