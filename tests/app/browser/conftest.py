"""A store with traces, the app as Streamlit's AppTest runs it, and the app in a real Chromium."""

import asyncio
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import streamlit as st
from playwright.sync_api import Browser, Page, expect, sync_playwright
from streamlit import config
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from store import Store

# Machines that run tests are busy.
expect.set_options(timeout=60_000)

HOSTILE = (
    "<img src=x onerror=document.title='owned'><script>document.title='owned'</script> **bold** \u202e $x^2$ :smile: "
    "\ud800 \x00 [link](javascript:document.title='owned') </span></div><style>*{display:none}</style>"
)
# As long as the text of an answer may be.
MEGABYTE = "A long story about soap. " * 39_000


def sample_good_and_hostile(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=60, temperature=0.5))
    for model, text in (("hostile", HOSTILE), ("megabyte", MEGABYTE)):
        teacher = FakeTeacher(lambda _, text=text: json.dumps({"explanation": text, "recommendations": []}), model)
        sample(shop, teacher, SamplingSettings("shop", limit=2, max_attempts=1))
    broken = FakeTeacher(lambda _: HOSTILE, "broken")
    sample(shop, broken, SamplingSettings("shop", limit=1, max_attempts=1))


@pytest.fixture(scope="session")
def traced_folder(prepare_folder: Callable[..., Path], built_shop: Path) -> Path:
    """A shop with traces of the evidence teacher, and some whose text would do harm if it were not shown as text."""
    return prepare_folder(built_shop, sample_good_and_hostile)


@pytest.fixture(scope="session")
def shown_folder(tmp_path_factory: pytest.TempPathFactory, traced_folder: Path) -> Path:
    """The folder of the store that pages and `server` show."""
    return shutil.copytree(traced_folder, tmp_path_factory.mktemp("shown") / "store")


@pytest.fixture
def traced(shown_folder: Path, traced_folder: Path) -> Iterator[Store]:
    """The store that pages and `server` show, as new for each test: what a test writes is gone before the next one.

    Its folder stays the same, so that pages which only read it need not open it anew.
    """
    before = describe_files(shown_folder)
    yield Store(shown_folder)
    if describe_files(shown_folder) != before:
        shutil.rmtree(shown_folder)
        shutil.copytree(traced_folder, shown_folder)
        st.cache_data.clear()


def describe_files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of the last change of each file."""
    files = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in files.items()}


@pytest.fixture(autouse=True, scope="session")
def _streamlit_is_prepared_once() -> Iterator[None]:
    """Each AppTest would look for components in all installed packages anew: they are looked for once.

    And as in `gr2 app`, no garbage is collected after each run of a page: it would take longer than most pages.
    """
    found = manifest_scanner.scan_component_manifests()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", lambda: found)
        config.set_option("runner.postScriptGC", False)
        yield


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


# What a server's Python tells of each address that it looks up or connects to.
AUDIT = """
import os, sys

def note(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        with open(os.environ["GR2_TEST_AUDIT"], "a") as file:
            print(event, *arguments[event == "socket.connect":][:2], file=file)

sys.addaudithook(note)
"""


@contextmanager
def running_app(folder: Path, cwd: Path, audit: Path, *options: str) -> Iterator[str]:
    """The address of a new `gr2 app`. audit: an empty folder, in which `log` then names what it connects to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (audit / "sitecustomize.py").write_text(AUDIT)
    process = subprocess.Popen(
        [Path(sys.executable).with_name("gr2"), "app", "--port", str(port), "--store", str(folder), *options],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(audit), "GR2_TEST_AUDIT": str(audit / "log")},
    )
    address = f"http://127.0.0.1:{port}"
    base = options[options.index("--base-path") + 1] if "--base-path" in options else ""
    try:
        while True:
            try:
                urllib.request.urlopen(f"{address}{base}/_stcore/health").close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        yield address + base
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="session")
def run_app() -> Callable[..., AbstractContextManager[str]]:
    """`running_app`, for tests that need options of their own."""
    return running_app


@pytest.fixture(scope="session")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `server` notes what it connects to."""
    return tmp_path_factory.mktemp("audit")


@pytest.fixture(scope="session")
def server(shown_folder: Path, clashing_folder: Path, audit: Path) -> Iterator[str]:
    """The address of `gr2 app`, one for all tests; started in a folder whose modules have the names of ours."""
    with running_app(shown_folder, clashing_folder, audit) as address:
        yield address


async def pass_on_late(port: int, started: "queue.Queue[tuple[int, Callable[[], None]]]") -> None:
    """Pass connections on to a port, each way 200 ms late, until told to stop. Tells its port, and how to stop it."""
    loop = asyncio.get_running_loop()
    opened: list[asyncio.StreamWriter] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            loop.call_later(0.2, writer.write, data)
        await asyncio.sleep(0.3)
        writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection("127.0.0.1", port)
        opened.extend((writer, to_there))
        with suppress(OSError):
            await asyncio.gather(forward(reader, to_there), forward(there, writer))

    stopped = asyncio.Event()
    listening = await asyncio.start_server(connect, "127.0.0.1", 0)
    started.put((listening.sockets[0].getsockname()[1], partial(loop.call_soon_threadsafe, stopped.set)))
    await stopped.wait()
    listening.close()
    for end in opened:
        end.transport.abort()
    # The loop closes their sockets in its next rounds.
    await asyncio.sleep(0.1)


@pytest.fixture
def distant_server(server: str) -> Iterator[str]:
    """The same server behind a network that takes 200 ms in each direction."""
    started: queue.Queue[tuple[int, Callable[[], None]]] = queue.Queue()
    # In a thread of its own, because Playwright's loop runs in this one.
    thread = threading.Thread(target=asyncio.run, args=(pass_on_late(int(server.rpartition(":")[2]), started),))
    thread.start()
    port, stop = started.get(timeout=60)
    yield f"http://127.0.0.1:{port}"
    stop()
    thread.join()


@pytest.fixture(scope="module")
def chromium(server: str) -> Iterator[Browser]:
    """One Chromium for the tests of a module: while it is open, asyncio of other tests would find its loop running."""
    path = os.environ.get("GR2_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium, or set GR2_CHROMIUM")
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=path, args=options) as browser:
        yield browser


@pytest.fixture
def open_browser(chromium: Browser, traced: Store) -> Iterator[Callable[[], Page]]:
    """Opens a page in a browser profile that is as new: another person each time."""
    contexts = []

    def open_profile() -> Page:
        context = chromium.new_context(viewport={"width": 1280, "height": 1400}, reduced_motion="reduce")
        context.set_default_timeout(60_000)
        contexts.append(context)
        return context.new_page()

    yield open_profile
    for context in contexts:
        context.close()
