"""Screenshots of the app for the README, in a headless Chromium.

python bench/screenshots.py STORE          writes docs/images/*.png

STORE is that of `make demo`, never one of real data: pictures show rows.
"""

import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from curate.browsing import find_traces
from curate.trace_filter import TraceFilter
from store import Store

IMAGES = Path(__file__).parents[1] / "docs" / "images"
PORT = 8598


def main() -> None:
    """Start the app, open it, take the pictures."""
    store = Store.open(sys.argv[1])
    accepted = find_traces(store, TraceFilter(passes="paper", split="train"), limit=200).rows
    moved = accepted.filter(accepted["target_rank"] > 3)
    trace_id = (moved if moved.height else accepted)["trace_id"][0]
    server = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "app", "--port", str(PORT), "--store", str(store.folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_for(f"http://127.0.0.1:{PORT}/_stcore/health")
        with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
            context = playwright.chromium.launch_persistent_context(
                profile,
                executable_path=shutil.which("chromium"),
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
                viewport={"width": 1280, "height": 1330},
            )
            page = context.pages[0]
            IMAGES.mkdir(parents=True, exist_ok=True)
            for name, path, text, height in (
                ("traces", f"?trace={trace_id}", "Prompt as sent", 1330),
                ("semantic-ids", "semantic-ids", "Use of codes", 1250),
                ("training", "training", "gain over", 1850),
            ):
                page.set_viewport_size({"width": 1280, "height": height})
                page.goto(f"http://127.0.0.1:{PORT}/{path}")
                expect(page.get_by_text(text).first).to_be_visible(timeout=30_000)
                page.wait_for_timeout(2500)
                page.screenshot(path=IMAGES / f"{name}.png")
            context.close()
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str) -> None:
    """Until the server answers."""
    for _ in range(200):
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"{address} does not answer")


if __name__ == "__main__":
    main()
