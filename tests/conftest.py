"""Fixtures that several packages' tests share."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from curate.candidates import make_candidates
from curate.sids.assignment import assign_semantic_ids
from curate.simulation import simulate
from store import Store

# A slow machine is no failure; speed is measured in bench/.
settings.register_profile("unhurried", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("unhurried")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("GR2_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set GR2_DATA")
    return folder


@pytest.fixture(scope="session")
def built_shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated data set `shop` with semantic IDs and candidate lists; copied for each test that wants it."""
    folder = tmp_path_factory.mktemp("shop") / "store"
    store = Store.open(folder, create=True)
    simulate(store, "shop", users=120, items=80, seed=1)
    assign_semantic_ids(store, "shop")
    make_candidates(store, "shop")
    return folder


@pytest.fixture
def shop(built_shop: Path, tmp_path: Path) -> Store:
    """A store of its own with data set `shop`, ready for traces."""
    return Store.open(shutil.copytree(built_shop, tmp_path / "shop-store"))
