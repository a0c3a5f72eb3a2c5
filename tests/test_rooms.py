"""Every module of `curate` and `train` lies in a room, and no room is crowded. The import contract keeps the order."""

from pathlib import Path

import pytest

import curate
import train

MOST_MODULES = 12
# What all rooms of a package share stands beside them.
SHARED: dict[str, set[str]] = {"curate": set(), "train": {"browsing", "inputs", "runs", "saving", "snapshots"}}
PACKAGES = [Path(package.__path__[0]) for package in (curate, train)]


def _modules(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_module_lies_outside_a_room(package: Path) -> None:
    assert _modules(package) == SHARED[package.name]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_no_room_is_crowded(package: Path) -> None:
    crowded = {
        str(room.relative_to(package.parent)): len(_modules(room))
        for room in [package, *(file.parent for file in package.rglob("__init__.py"))]
        if len(_modules(room)) > MOST_MODULES
    }
    assert not crowded


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_every_room_says_what_it_is(package: Path) -> None:
    for room in package.rglob("__init__.py"):
        assert room.read_text("utf-8").startswith('"""'), room
