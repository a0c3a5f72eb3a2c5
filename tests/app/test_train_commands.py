import subprocess
import sys

import pytest

from store import Store

WITHOUT_TORCH = """
import sys
sys.modules["trl"] = None
from app.cli import main
sys.argv = ["gr2", *sys.argv[1:]]
main()
"""


def gr2(*words: str, store: Store, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else ["-m", "app.cli"]
    return subprocess.run(
        [sys.executable, *command, *words, "--store", str(store.folder)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "words",
    [
        ("train", "init", "shop", "--name", "new"),
        ("train", "sft", "shop", "--student", "new"),
        ("eval", "shop", "--student", "new", "--limit", "5"),
    ],
    ids=" ".join,
)
def test_without_the_libraries_of_training_one_line_says_what_to_install(words: tuple[str, ...], shop: Store) -> None:
    done = gr2(*words, store=shop, code=WITHOUT_TORCH)
    assert done.returncode == 2
    assert "needs trl, which is not installed: pip install" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sft", "shop"), "a training needs a SNAPSHOT and a --student"),
        (("dapo", "shop", "--student", "new", "--resume"), "leave SNAPSHOT and --student out"),
        (("init", "nope", "--name", "new"), "there is no snapshot 'nope'"),
        (("midtrain", "--resume", "--name", "nope"), "no training called 'nope' to go on with"),
    ],
    ids=str,
)
def test_mistakes_are_one_clear_line(words: tuple[str, ...], message: str, shop: Store) -> None:
    done = gr2("train", *words, store=shop)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
