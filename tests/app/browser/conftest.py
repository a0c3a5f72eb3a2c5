"""A store with traces, the app as Streamlit's AppTest runs it, and the app in a real Chromium."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright
from streamlit.testing.v1 import AppTest

from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from store import Store

# Machines that run tests are busy.
expect.set_options(timeout=30_000)

HOSTILE = (
    "<img src=x onerror=document.title='owned'><script>document.title='owned'</script> **bold** \u202e $x^2$ :smile: "
    "\ud800 \x00 [link](javascript:document.title='owned') </span></div><style>*{display:none}</style>"
)
MEGABYTE = "A long story about soap. " * 42_000


@pytest.fixture(scope="session")
def traced_folder(built_shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop with traces of the evidence teacher, and some whose text would do harm if it were not shown as text."""
    store = Store.open(shutil.copytree(built_shop, tmp_path_factory.mktemp("browser") / "store"))
    sample(store, EvidenceTeacher(), SamplingSettings("shop", limit=60, temperature=0.5))
    for model, text in (("hostile", HOSTILE), ("megabyte", MEGABYTE)):
        teacher = FakeTeacher(lambda _, text=text: json.dumps({"explanation": text, "recommendations": []}), model)
        sample(store, teacher, SamplingSettings("shop", limit=2, max_attempts=1))
    broken = FakeTeacher(lambda _: HOSTILE, "broken")
    sample(store, broken, SamplingSettings("shop", limit=1, max_attempts=1))
    return store.folder


@pytest.fixture
def traced(traced_folder: Path, tmp_path: Path) -> Store:
    """Such a store of one's own."""
    return Store.open(shutil.copytree(traced_folder, tmp_path / "store"))


@pytest.fixture
def open_page(traced: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Run a page's draw function, `module:function`, on the store, with query parameters."""

    def run(module: str, function: str, /, **query: str) -> AppTest:
        monkeypatch.setenv("GR2_STORE", str(traced.folder))
        script = (
            f"import os\nfrom app.browser.{module} import {function}\nfrom app.browser.pages import page\n"
            f"page({function})()\n"
        )
        test = AppTest.from_string(script, default_timeout=60)
        for name, value in query.items():
            test.query_params[name] = value
        return test.run()

    return run


@pytest.fixture(autouse=True)
def _every_chart_is_checked(checked_charts: None) -> None:
    """For all tests of this folder."""


@pytest.fixture
def server(traced: Store) -> Iterator[str]:
    """The address of `gr2 app`, running on the store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "app.cli", "app", "--port", str(port), "--store", str(traced.folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
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
def open_browser(tmp_path: Path) -> Iterator[Callable[[str], Page]]:
    """Opens pages of a real Chromium, each name with a profile of its own: another person."""
    chromium = os.environ.get("GR2_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium, or set GR2_CHROMIUM")
    contexts = []
    with sync_playwright() as playwright:

        def open_profile(name: str = "somebody") -> Page:
            context = playwright.chromium.launch_persistent_context(
                str(tmp_path / "profiles" / name),
                executable_path=chromium,
                headless=True,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
                viewport={"width": 1280, "height": 1400},
            )
            context.set_default_timeout(30_000)
            contexts.append(context)
            return context.pages[0]

        try:
            yield open_profile
        finally:
            for context in contexts:
                context.close()
