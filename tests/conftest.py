"""Fixtures that several packages' tests share."""

import gc
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import altair as alt
import polars as pl
import pytest
import streamlit as st
from filelock import FileLock
from hypothesis import settings

from curate.candidates.making import make_candidates
from curate.datasets.simulation import simulate
from curate.sids.assignment import assign_semantic_ids
from store import Store

# A slow machine is no failure; speed is measured in bench/.
settings.register_profile("unhurried", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("unhurried")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Number bytes, as in `data0`: compressed ones hold the time, and pytest-xdist needs the same names everywhere."""
    return argname if isinstance(val, bytes) else None


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are processors: tests wait for servers, browsers and locks."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collection: a full one takes half a second otherwise."""
    gc.collect()
    gc.freeze()


BuildOnce = Callable[[str, Callable[[Path], object]], Path]
PrepareFolder = Callable[[Path, Callable[[Store], object]], Path]
Prepare = Callable[[Path, Callable[[Store], object]], Store]


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """Build a folder once for all processes of a test run: `build_once(name, make)` calls `make(folder)` if it must.

    Do not write to the folder that it returns: copy it with `shutil.copytree`, or only read it.
    """
    run = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    built = run / "built"
    built.mkdir(exist_ok=True)

    def build(name: str, make: Callable[[Path], object]) -> Path:
        folder = built / name
        with FileLock(built / f"{name}.lock"):
            if not folder.exists():
                # What a failure leaves half made is not found by the next process.
                half_made = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=built)) / name
                make(half_made)
                half_made.rename(folder)
        return folder

    return build


@pytest.fixture(scope="session")
def empty_store_folder(build_once: BuildOnce) -> Path:
    return build_once("empty", lambda folder: Store.open(folder, create=True))


@pytest.fixture
def store(empty_store_folder: Path, tmp_path: Path) -> Store:
    """An empty store."""
    return Store(shutil.copytree(empty_store_folder, tmp_path / "store"))


@pytest.fixture(scope="session")
def prepare_folder(build_once: BuildOnce) -> PrepareFolder:
    """`prepare_folder(base, fill)` copies the store in folder `base` and has the function `fill(store)` write to it.

    It does so once for all tests that name this function. Do not write to the folder that it returns.
    """

    def build(base: Path, fill: Callable[[Store], object]) -> Path:
        name = re.sub(r"\W+", "-", f"{fill.__module__}.{fill.__qualname__}")
        return build_once(name, lambda folder: fill(Store(shutil.copytree(base, folder))))

    return build


@pytest.fixture
def prepare(prepare_folder: PrepareFolder, tmp_path: Path) -> Prepare:
    """The same, but it returns a store of one's own: a copy."""
    return lambda base, fill: Store(shutil.copytree(prepare_folder(base, fill), tmp_path / "store"))


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """Writes a module of a user's, such as "their_pkg.rules", into the folder that one is in; forgotten afterwards.

    Registries remember what they found: each test wants names of its own.
    """
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(name: str, source: str) -> Path:
        file = folder.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        return file

    yield write
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("GR2_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set GR2_DATA")
    return folder


def make_shop(store: Store) -> None:
    simulate(store, "shop", users=120, items=80, seed=1)
    assign_semantic_ids(store, "shop")
    make_candidates(store, "shop")


@pytest.fixture(scope="session")
def built_shop(prepare_folder: PrepareFolder, empty_store_folder: Path) -> Path:
    """A simulated dataset `shop` with semantic IDs and candidate lists; copied for each test that wants it."""
    return prepare_folder(empty_store_folder, make_shop)


@pytest.fixture
def shop(built_shop: Path, tmp_path: Path) -> Store:
    """A store of its own with dataset `shop`, ready for traces."""
    return Store(shutil.copytree(built_shop, tmp_path / "shop-store"))


@pytest.fixture
def checked_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chart that does not meet Vega-Lite's schema, or shows a column that is not there, fails its page in AppTest."""
    draw = st.vega_lite_chart

    def check_and_draw(table: pl.DataFrame, spec: dict[str, Any], **options: Any) -> Any:
        alt.Chart.from_dict({"data": {"name": "table"}, **spec})
        known = {*table.columns, *values_of(spec, "as")}
        assert values_of(spec, "field") <= known, f"the chart shows {values_of(spec, 'field')}, the table has {known}"
        return draw(table, spec, **options)

    monkeypatch.setattr(st, "vega_lite_chart", check_and_draw)


def values_of(spec: Any, key: str) -> set[str]:
    """What stands under a key, however deep."""
    if isinstance(spec, list):
        return {value for part in spec for value in values_of(part, key)}
    if not isinstance(spec, dict):
        return set()
    below = {value for part in spec.values() for value in values_of(part, key)}
    return below | {spec[key]} if key in spec else below
