import subprocess
import sys
from collections.abc import Callable

import pytest

from store import Store

Gr2 = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    "words",
    [
        ("train", "init", "shop", "--name", "new"),
        ("train", "sft", "shop", "--student", "new"),
        ("eval", "shop", "--student", "new", "--limit", "5"),
    ],
    ids=" ".join,
)
def test_without_the_libraries_of_training_one_line_says_what_to_install(
    words: tuple[str, ...], shop: Store, gr2: Gr2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    done = gr2(*words, "--store", shop.folder)
    assert done.returncode == 2
    assert "needs trl, which is not installed: pip install" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sft", "shop"), "a training needs a SNAPSHOT and a --student"),
        (("dapo", "shop", "--student", "new", "--resume"), "leave SNAPSHOT and --student out"),
        (("init", "nope", "--name", "new"), "there is no snapshot 'nope'"),
        (("rollouts", "nope", "--reward", "ndcg"), "no rollouts of a student called 'nope'"),
        (("midtrain", "--resume", "--name", "nope"), "no training called 'nope' to resume"),
    ],
    ids=str,
)
def test_mistakes_are_one_clear_line(words: tuple[str, ...], message: str, shop: Store, gr2: Gr2) -> None:
    done = gr2("train", *words, "--store", shop.folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
