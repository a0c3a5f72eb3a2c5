"""The packages that the optional parts of gr2 need, and the command to install them.

gr2 is not on the package index, so a hint such as `pip install 'gr2[train]'` would fail. The packages of an extra can
be installed by name everywhere.
"""

import shlex
from importlib.metadata import PackageNotFoundError, requires

from store.errors import InputError


def install_command(extra: str) -> str:
    """The pip command that installs the packages of an extra of pyproject.toml.

    If gr2 is not installed, as in a fresh checkout, the command installs the checkout.
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
    """The error for a part of gr2 that needs a package of an extra that is not installed."""
    return InputError(f"{what} needs {package or extra}, which is not installed: {install_command(extra)}")
