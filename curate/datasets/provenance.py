"""Provenance of data: the commit of the code, and the versions of the libraries that affect data."""

import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("gr2", "duckdb", "polars", "pyarrow", "scikit-learn", "numpy", "jinja2")


@cache
def code_commit() -> str:
    """The commit of the running code, or "" outside a checkout of gr2.

    "+changes" is appended if tracked files of curate, prompts or store have uncommitted changes.
    """
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            process = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607
        except OSError:
            return None
        return process.stdout.strip() if process.returncode == 0 else None

    # An installation inside another project's checkout must not report that project's commit.
    if git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return ""
    changes = git("status", "--porcelain", "--untracked-files=no", "--", ":/curate", ":/prompts", ":/store")
    return (git("rev-parse", "HEAD") or "") + ("+changes" if changes else "")


def library_versions() -> dict[str, str]:
    """Versions of the libraries whose updates could change data."""
    return {name: version(name) for name in LIBRARIES}
