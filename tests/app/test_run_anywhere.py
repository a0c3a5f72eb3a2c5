"""gr2 works in any folder, also in one whose modules have the names of ours. The browser's tests start there too."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import app
from store import Store

ROOT = Path(app.__file__).parents[1]
GR2 = Path(sys.executable).with_name("gr2")


def run(*command: object, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line(clashing_folder: Path, shop: Store) -> None:
    assert "shop" in run(GR2, "status", "--store", shop.folder, cwd=clashing_folder)


def test_a_data_loader_by_the_safe_path(clashing_folder: Path) -> None:
    code = "from train import load_snapshot; print(load_snapshot.__module__)"
    assert run(sys.executable, "-P", "-c", code, cwd=clashing_folder) == "train.snapshots\n"


@pytest.mark.slow
def test_a_training_under_accelerate(clashing_folder: Path) -> None:
    accelerate = Path(sys.executable).with_name("accelerate")
    words = ["launch", "--cpu", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no"]
    out = run(accelerate, *words, "--dynamo_backend", "no", GR2, "train", "sft", "--help", cwd=clashing_folder)
    assert "--reasoning-weight" in out


@pytest.mark.slow
def test_a_wheel_runs_the_demo_in_an_environment_of_its_own(clashing_folder: Path, tmp_path: Path) -> None:
    """With the packages of this environment, but without the checkout that is installed in it."""
    checkout = tmp_path / "checkout"
    tracked = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    wheels = tmp_path / "wheels"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, checkout, cwd=tmp_path)
    (wheel,) = wheels.glob("gr2-*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    packages = Path(pytest.__file__).parents[1]
    (site,) = environment.glob("lib/python*/site-packages")
    # A line of a .pth file adds the folder, but not what .pth files in it add: the editable checkout stays out.
    (site / "packages.pth").write_text(f"{packages}\n")
    run(*pip, "install", "--quiet", "--no-deps", "--target", site, wheel, cwd=tmp_path)
    python, store = environment / "bin" / "python", tmp_path / "store"
    assert run(python, "-P", "-c", "import app; print(app.__file__)", cwd=clashing_folder).startswith(str(site))
    words = ["demo", "--no-train", "--users", "150", "--items", "80", "--store", store]
    out = run(python, "-P", site / "bin" / "gr2", *words, cwd=clashing_folder)
    assert "gr2 app" in out
    assert (store / "store.duckdb").is_file()
