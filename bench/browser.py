"""Runs `gr2 app`, and a headless Chromium to open it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from measure import GR2
from playwright.sync_api import BrowserContext, Playwright

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")


@dataclass(frozen=True)
class App:
    """A running server: its address and its process."""

    address: str
    pid: int

    @property
    def peak_gb(self) -> float:
        """The peak memory of the process so far, in GB."""
        status = Path(f"/proc/{self.pid}/status").read_text("utf-8")
        return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1e6

    @property
    def cpu_s(self) -> float:
        """The CPU time of the process so far, in seconds."""
        # The name may contain blanks. Among the fields after it, user and system time are the twelfth and thirteenth.
        fields = Path(f"/proc/{self.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running_app(store: Path) -> Iterator[App]:
    """Run the app on a free port, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*GR2, "app", "--port", str(port), "--store", str(store)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        app = App(f"http://127.0.0.1:{port}", server.pid)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{app.address}/_stcore/health").close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit(f"{app.address} does not answer")
        yield app
    finally:
        server.terminate()
        server.wait()


@contextmanager
def chromium(
    playwright: Playwright, width: int = 1280, height: int = 1400, scheme: Literal["light", "dark"] = "light"
) -> Iterator[BrowserContext]:
    """Open a browser with a fresh profile, like another person."""
    with tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=shutil.which("chromium"),
            args=list(ARGUMENTS),
            viewport={"width": width, "height": height},
            color_scheme=scheme,
        )
        context.set_default_timeout(30_000)
        try:
            yield context
        finally:
            context.close()
