"""The page docs/extending.md: its files are written, its package is installed, and its commands are run."""

import re
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import app
from store import Store
from train.dapo.settings import DapoSettings
from train.dapo.training import reward_functions

PAGE = (Path(app.__file__).parents[1] / "docs" / "extending.md").read_text("utf-8")
# gr2 train would need a student; its reward is called without one.
NOT_RUN = "gr2 train"


def files() -> dict[str, str]:
    """The files of the page by path."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', PAGE, re.MULTILINE | re.DOTALL))


def commands() -> list[list[str]]:
    """The words of each command, on the dataset of the tests."""
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)).splitlines()
    return [
        ["shop" if word == "demo" else word for word in shlex.split(line)[1:]]
        for line in lines
        if line and not line.startswith(NOT_RUN)
    ]


def install(folder: Path) -> None:
    """Leave in a folder what pip leaves of a package's pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in points.items()) for group, points in groups)
    )


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_every_example_of_the_page_works(
    shop: Store, ok: Callable[..., str], write_module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_module("anything", "").parent
    for name, text in files().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    install(folder)
    monkeypatch.syspath_prepend(folder)
    said = {" ".join(words): ok(*words, GR2_STORE=str(shop.folder)) for words in commands()}
    assert len(said) == 12

    of_teacher = (
        "select model, count(distinct prompt_id) from traces where teacher = 'same-brand' group by all order by all"
    )
    assert fetch(shop, of_teacher) == [("v1", 50), ("v2", 50), ("v3", 50)]
    assert fetch(shop, "select distinct model from traces where reasoning like '%the user knows its brand.'") == [
        ("v3",)
    ]
    by_name, by_path = "mentions_brand", "my_gr2.rules:mentions_brand"
    judged = "select passed, count(*) from verdicts where rule = '{}' group by all order by all"
    assert len(fetch(shop, judged.format(by_path))) == 2
    ((failed, _),) = fetch(shop, judged.format(by_name) + " limit 1")
    assert failed is False
    assert fetch(shop, "select count(*) from accepted_traces('branded')") < fetch(
        shop, "select count(*) from accepted_traces('paper')"
    )
    assert fetch(shop, "select distinct ruleset from traces where split = 'valid'") == [("branded",)]
    ranked = "select count(*) from evaluations where ranker = 'popularity' and metric = 'conditional_ndcg_at_5'"
    assert fetch(shop, ranked) == [(1,)]
    assert fetch(shop, "select count(*), count(distinct user_id) from interactions where dataset = 'corner-shop'") == [
        (6, 2)
    ]
    assert fetch(shop, "select kind, rows from snapshots") == [("my_gr2.kinds:SEQUENCES", 120)]
    assert any("the rebuilt files are identical" in text for text in said.values())
    assert fetch(shop, "select count(*) from sid_versions where settings ->> '$.embedder.name' = 'hashing-128'") == [
        (1,)
    ]

    (earn, *_) = reward_functions(DapoSettings(reward="my_gr2.rewards:top_three"))
    sids = [f"<|sid_begin|><s_a_{code}><s_b_0><|sid_end|>" for code in range(5)]
    texts = ['{"recommendations": [5, 1, 2, 3, 4]}', '{"recommendations": [1, 2, 3, 4, 5]}', "no idea"]
    assert earn([""] * 3, texts, candidates=[sids] * 3, target=[sids[4]] * 3) == [1.0, 0.0, -1.0]


def test_the_train_command_of_the_page_can_be_typed(ok: Callable[..., str]) -> None:
    (line,) = re.findall(rf"^{NOT_RUN} .*$", PAGE, re.MULTILINE)
    options = ok(*shlex.split(line)[1:3], "--help")
    assert all(word in options for word in shlex.split(line) if word.startswith("--"))
