import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from streamlit.testing.v1 import AppTest

import app
from curate.browsing import find_traces
from curate.requests import SamplingSettings
from curate.sampling import sample
from curate.teachers.evidence import EvidenceTeacher
from curate.teachers.fake import FakeTeacher
from curate.trace_filter import TraceFilter
from store import Store

PAGE = Path(app.__file__).with_name("browser") / "main.py"
HOSTILE = (
    "<img src=x onerror=document.title='owned'><script>document.title='owned'</script> **bold** \u202e $x^2$ :smile:"
)


@pytest.fixture(scope="module")
def traced(built_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A shop with traces of the evidence teacher, and three whose text would do harm if it were not shown as text."""
    store = Store.open(shutil.copytree(built_shop, tmp_path_factory.mktemp("browser") / "store"))
    sample(store, EvidenceTeacher(), SamplingSettings("shop", limit=60, temperature=0.5))
    hostile = FakeTeacher(lambda _: json.dumps({"explanation": HOSTILE, "recommendations": []}))
    sample(store, hostile, SamplingSettings("shop", limit=3, max_attempts=1))
    return store


def open_page(store: Store, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    monkeypatch.setenv("GR2_STORE", str(store.folder))
    page = AppTest.from_file(str(PAGE), default_timeout=30)
    for name, value in query.items():
        page.query_params[name] = value
    return page.run()


def test_the_page_shows_traces_and_filters(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(traced, monkeypatch)
    assert not page.exception
    assert page.dataframe[0].value.shape[0] == 50
    page.selectbox(key="accepted").set_value("yes").run()
    assert page.dataframe[0].value["accepted"].all()
    page.selectbox(key="teacher").set_value("fake").run()
    assert "No trace fits" in page.info[0].value


def test_older_and_newer_turn_pages(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    page = open_page(traced, monkeypatch)
    first = page.dataframe[0].value
    page.button[1].click().run()
    second = page.dataframe[0].value
    assert second["created_at"].max() <= first["created_at"].min()
    page.button[0].click().run()
    assert page.dataframe[0].value.equals(first)


def test_a_link_opens_one_trace_in_full(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trace_id = find_traces(traced, TraceFilter(passes="paper")).rows["trace_id"][0]
    page = open_page(traced, monkeypatch, trace=trace_id)
    assert not page.exception
    assert trace_id in page.text[0].value
    order = page.dataframe[1].value
    assert order["after"].to_list() == list(range(1, 11))
    assert order["target"].to_list()[0] == "★"
    assert "‹" in page.text[1].value
    assert "<|sid_begin|>" not in page.text[1].value


def test_an_unknown_trace_and_a_missing_store_are_messages(
    traced: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no trace 'nope'" in open_page(traced, monkeypatch, trace="nope").error[0].value
    monkeypatch.setenv("GR2_STORE", str(tmp_path / "none"))
    page = AppTest.from_file(str(PAGE)).run()
    assert "there is no store" in page.error[0].value


def test_the_page_of_semantic_ids_shows_a_version_and_the_path_to_an_item(
    traced: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GR2_STORE", str(traced.folder))
    page = AppTest.from_function(draw_sids_page, default_timeout=30).run()
    assert not page.exception
    assert page.metric[1].value == "100.00%"
    with traced.reading() as session:
        ((item,),) = session.connection.execute("select item_id from items limit 1").fetchall()
    page.text_input(key="sids-item").set_value(item).run()
    assert not page.exception
    path = page.dataframe[-1].value
    assert path["items"].to_list()[-1] == 1
    page.text_input(key="sids-item").set_value("no such thing").run()
    assert page.info[0].value == "No item fits."


def draw_sids_page() -> None:
    import os  # noqa: PLC0415

    from app.browser.sid_page import draw_sids  # noqa: PLC0415
    from store import Store  # noqa: PLC0415

    draw_sids(Store.open(os.environ["GR2_STORE"]))


@pytest.fixture(scope="module")
def server(traced: Store) -> Iterator[str]:
    """The address of `gr2 app`, running."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "app", "--port", str(port), "--store", str(traced.folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{address}/_stcore/health").close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """A page of a real Chromium with a fresh profile."""
    chromium = os.environ.get("GR2_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium, or set GR2_CHROMIUM")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=chromium,
            headless=True,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
            viewport={"width": 1280, "height": 1400},
        )
        try:
            yield context.pages[0]
        finally:
            context.close()


def test_in_a_real_browser_a_trace_can_be_found_and_read(server: str, traced: Store, page: Page) -> None:
    trace_id = find_traces(traced, TraceFilter(passes="paper")).rows["trace_id"][0]
    page.goto(f"{server}/?trace={trace_id}")
    expect(page.get_by_text("Candidates before and after")).to_be_visible(timeout=30_000)
    expect(page.get_by_text(trace_id)).to_be_visible()
    page.get_by_text("Prompt as sent").click()
    expect(page.get_by_text("Re-rank the candidates so that").first).to_be_visible()


def test_in_a_real_browser_the_pages_are_one_click_apart(server: str, page: Page) -> None:
    page.goto(server)
    page.get_by_role("link", name="Semantic IDs").click()
    expect(page.get_by_text("Tree of prefixes")).to_be_visible(timeout=30_000)
    expect(page.locator("canvas").first).to_be_visible()
    page.get_by_role("link", name="Traces").click()
    expect(page.get_by_text("Filter", exact=True)).to_be_visible(timeout=30_000)


def test_hostile_text_is_shown_and_not_executed(server: str, traced: Store, page: Page) -> None:
    with traced.reading() as session:
        ((trace_id,),) = session.connection.execute(
            "select trace_id from traces where teacher = 'fake' limit 1"
        ).fetchall()
    page.goto(f"{server}/?trace={trace_id}")
    expect(page.get_by_text("<script>document.title='owned'</script> **bold**").first).to_be_visible(timeout=30_000)
    assert page.title() == "gr2"
