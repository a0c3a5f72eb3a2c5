"""The command line, run within the process of the tests: a new process would take a second to import what it needs."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from app.cli import main

# What somebody's own project may be called; importing any of these in place of ours would end a command.
CLASHES = ("app/__init__.py", "curate.py", "prompts/__init__.py", "store.py", "streamlit.py", "train.py")

RunGr2 = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def gr2() -> RunGr2:
    """Run `gr2` with these words, in folder `cwd` and with these environment variables as well."""

    def run(*words: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        arguments = ["gr2", *map(str, words)]
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.TextIOWrapper(io.BytesIO(), "utf-8")
        with (
            mock.patch("sys.argv", arguments),
            mock.patch.dict(os.environ, env),
            chdir(cwd or Path.cwd()),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            status = 0
            try:
                main()
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
        out.flush()
        err.flush()
        texts = (stream.buffer.getvalue().decode() for stream in (out, err))  # type: ignore[attr-defined]
        return subprocess.CompletedProcess(arguments, status, *texts)

    return run


@pytest.fixture(scope="session")
def gr2_process() -> RunGr2:
    """Run `gr2` as people start it, and see that its process ends cleanly. Most tests need none, and use `gr2`."""

    def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", *map(str, words)], capture_output=True, text=True, check=False, **options
        )
        assert "Traceback" not in done.stderr
        assert "leaked" not in done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def clashing_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's folder, whose modules have the names of ours."""
    folder = tmp_path_factory.mktemp("project")
    for name in CLASHES:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"raise RuntimeError('{name} of the folder was imported')\n")
    return folder


@pytest.fixture(scope="session")
def ok(gr2: RunGr2) -> Callable[..., str]:
    """Run `gr2` with these words; it must succeed. Returns what it printed."""

    def run(*words: object, **options: str) -> str:
        done = gr2(*words, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
