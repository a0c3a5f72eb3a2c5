"""Who may open the trace browser, under which paths, and what it opens itself."""

import http.client
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from app.browser.annotator import COOKIE
from curate.review.labelling import QueueSettings, make_queue
from curate.review.trace_pages import find_traces
from curate.traces.filter import TraceFilter
from store import Store

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def status_of(address: str, path: str, host: str | None, headers: dict[str, str] = {}) -> int:  # noqa: B006
    """The status of the answer to a request that names a host. None names no host."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc)
    connection.putrequest("GET", urlsplit(address).path + path, skip_host=True)
    for name, value in ({} if host is None else {"Host": host}).items() | headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("localhost:8501", True),
        ("LOCALHOST.", True),
        ("127.0.0.1:1", True),
        ("[::1]:8501", True),
        ("attacker.example", False),
        ("attacker.example:8501", False),
        ("localhost.attacker.example", False),
        ("127.0.0.1.attacker.example", False),
        ("localhost@attacker.example", False),
        ("attacker.example/localhost", False),
        ("attacker.example#localhost", False),
        ("127.0.0.2", False),
        ("[::2]", False),
        ("localhost:x", False),
        ("", False),
    ],
)
def test_only_its_own_hosts_open_the_app(server: str, host: str, allowed: bool) -> None:
    for path in ("/", "/_stcore/health", "/traces", "/media/x", "/_stcore/host-config"):
        assert (status_of(server, path, host) == 403) is not allowed
    assert status_of(server, "/_stcore/stream", host, UPGRADE) == (101 if allowed else 403)


@pytest.fixture(scope="module")
def below_a_path(
    run_app: Callable[..., AbstractContextManager[str]],
    shown_folder: Path,
    clashing_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """The address of an app with a base path and hosts of its own."""
    options = ("--base-path", "/tools/gr2", "--allowed-hosts", "gr2.example.org, Other")
    with run_app(shown_folder, clashing_folder, tmp_path_factory.mktemp("audit"), *options) as address:
        yield address


def test_configured_hosts_open_the_app_too(below_a_path: str) -> None:
    for host, status in (("gr2.example.org", 101), ("other:443", 101), ("localhost", 101), ("example.org", 403)):
        assert status_of(below_a_path, "/_stcore/stream", host, UPGRADE) == status


@pytest.mark.slow
def test_links_and_the_cookie_stay_below_the_base_path(
    below_a_path: str, traced: Store, open_browser: Callable[[], Page]
) -> None:
    trace_id = find_traces(traced, TraceFilter(teacher="evidence")).rows["trace_id"][0]
    queue = make_queue(traced, QueueSettings("base", size=5), "ann")
    page = open_browser()
    page.goto(f"{below_a_path}/traces?trace={trace_id}")
    links = page.get_by_role("link", name="All ")
    expect(links).to_have_count(3)
    targets = [str(link.get_attribute("href")) for link in links.all()]
    assert all(target.startswith("/tools/gr2/") for target in targets)
    page.goto(f"{below_a_path.removesuffix('/tools/gr2')}{targets[0]}")
    expect(page.get_by_text("Tau between orders")).to_be_visible()
    page.goto(f"{below_a_path}/label?queue={queue.queue_id}")
    page.get_by_label("Your name").fill("ann")
    page.keyboard.press("Enter")
    expect(page.get_by_text("0 of 5 by you")).to_be_visible()
    page.wait_for_function(f"document.cookie.includes('{COOKIE}')")
    (cookie,) = (cookie for cookie in page.context.cookies() if cookie["name"] == COOKIE)
    assert cookie["path"] == "/tools/gr2"
    # It is remembered.
    page.reload()
    expect(page.get_by_text("0 of 5 by you")).to_be_visible()


@pytest.mark.slow
def test_no_page_and_no_server_asks_the_internet(
    server: str, audit: Path, traced: Store, open_browser: Callable[[], Page]
) -> None:
    trace_id = find_traces(traced, TraceFilter(teacher="evidence")).rows["trace_id"][0]
    page = open_browser()
    asked: list[str] = []
    page.context.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url))
    for path, text in (
        ("", "Overview"),
        ("traces", "traces"),
        (f"traces?trace={trace_id}", "Candidates before and after"),
        ("compare", "Compare"),
        ("label", "Your name"),
        ("agreement", "Agreement"),
        ("snapshots", "Snapshots"),
        ("semantic-ids", "Prefix tree"),
        ("training", "Training"),
        ("sql?q=select split, count(*) as n from traces group by all", "Run"),
    ):
        page.goto(f"{server}/{path}")
        expect(page.get_by_text(text).filter(visible=True).first).to_be_visible()
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Chart", exact=True).click()
    expect(page.get_by_text("Chart type")).to_be_visible()
    page.wait_for_load_state("networkidle")
    elsewhere = {url for url in asked if urlsplit(url).hostname not in ("127.0.0.1", None)}
    assert elsewhere == set()
    assert any(url.startswith("ws://127.0.0.1") for url in asked)
    log = audit / "log"
    assert [line for line in (log.read_text().splitlines() if log.exists() else []) if "127.0.0.1" not in line] == []


def test_the_audit_would_see_a_connection(audit: Path, server: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        code = f"import socket; socket.create_connection(('127.0.0.1', {listening.getsockname()[1]}))"
        log = audit / "other"
        subprocess.run(
            [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(audit), "GR2_TEST_AUDIT": str(log)}
        )
    assert "127.0.0.1" in log.read_text()
