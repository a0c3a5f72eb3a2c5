"""Which packages the optional parts of gr2 need, and how to install them.

gr2 is not on the package index, so a hint such as `pip install 'gr2[train]'` would fail. What an extra lists can be
installed by name everywhere.
"""

import shlex
from importlib.metadata import PackageNotFoundError, requires

from store.errors import InputError


def install_command(extra: str) -> str:
    """The pip command that installs what an extra of pyproject.toml lists.

    Outside of an installation, as in a checkout that was never installed, it installs the checkout.
    """
    try:
        listed = requires("gr2") or []
    except PackageNotFoundError:
        listed = []
    marker = f"extra == '{extra}'"
    packages = [
        line.partition(";")[0].strip() for line in listed if line.partition(";")[2].strip().replace('"', "'") == marker
    ]
    return f"pip install {shlex.join(packages)}" if packages else f"pip install -e '.[{extra}]' in gr2's folder"


def missing_package(what: str, package: str | None, extra: str) -> InputError:
    """The error for something that needs a package of an extra that is not installed."""
    return InputError(f"{what} needs {package or extra}, which is not installed: {install_command(extra)}")
