import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

from store import InputError
from store.registry import Factories, Registry

WriteModule = Callable[[str, str], Path]


class Greeter(Protocol):
    """What the registry of this test holds."""

    language: str

    def greet(self) -> str: ...


class English:
    language = "en"

    def __init__(self, name: str, times: int = 1) -> None:
        self.name = name
        self.times = times

    def greet(self) -> str:
        return f"hello {self.name}" * self.times


class Mute:
    language = "none"


BUILTIN = English("builtin")


@pytest.fixture
def greeters() -> Registry[Greeter]:
    return Registry("greeter", "gr2test.greeters", {"plain": BUILTIN, "lazy": "gr2_lazy:made.deep"}, Greeter)


@pytest.fixture
def makers() -> Factories[Greeter]:
    return Factories("greeter", "gr2test.makers", {}, Greeter)


SOURCE = """
class Greeter:
    language = "xx"
    def __init__(self, name="you", loud=False, **more):
        self.said, self.more = (name.upper() if loud else name), more
    def greet(self):
        return self.said

class made:
    deep = Greeter("deep")

class Mute:
    language = "none"

mute, number, needs_much = Mute(), 7, lambda much, name: Greeter(name)
"""


def install(folder: Path, distribution: str, entry_points: str) -> None:
    """A distribution as pip leaves it in a folder."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)


def test_a_name_of_ones_own_is_the_object_itself(greeters: Registry[Greeter]) -> None:
    assert greeters.find("plain") is BUILTIN
    assert greeters.names() == ["plain", "lazy"]


def test_nothing_is_imported_before_it_is_asked_for(
    greeters: Registry[Greeter], write_module: WriteModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(write_module("gr2_lazy", SOURCE).parent)
    assert greeters.names() == ["plain", "lazy"]
    assert "gr2_lazy" not in sys.modules
    assert greeters.find("lazy").greet() == "deep"
    assert greeters.find("lazy") is greeters.find("lazy")


def test_an_object_is_found_by_its_module_in_the_folder_where_one_is(
    greeters: Registry[Greeter], write_module: WriteModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module("gr2_here.parts", SOURCE)
    # It must not hide the json of everybody.
    write_module("json", "raise RuntimeError")
    assert greeters.find("gr2_here.parts:made.deep").greet() == "deep"
    monkeypatch.delitem(sys.modules, "json")
    import json  # noqa: PLC0415

    assert json.loads("1") == 1


def test_an_installed_package_adds_names_by_its_entry_points(
    greeters: Registry[Greeter], write_module: WriteModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_module("gr2_installed", SOURCE).parent
    install(folder, "gr2_installed", "[gr2test.greeters]\nfriendly = gr2_installed:made.deep\nplain = nothing:x\n")
    with pytest.raises(InputError, match="no greeter is called 'friendly'"):
        greeters.find("friendly")
    monkeypatch.syspath_prepend(folder)
    assert greeters.names() == ["plain", "lazy", "friendly"]
    assert "gr2_installed" not in sys.modules
    assert greeters.find("friendly").greet() == "deep"
    assert greeters.find("plain") is BUILTIN


def test_two_packages_with_one_name_are_an_error(
    greeters: Registry[Greeter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "gr2_first", "[gr2test.greeters]\nours = one.parts:it\n")
    install(tmp_path, "gr2_second", "[gr2test.greeters]\nours = two.parts:it\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"several greeters called 'ours'; choose one of one.parts:it, two.parts:it"):
        greeters.find("ours")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rude", r"no greeter is called 'rude'; there are: plain, lazy. To use your own, write module:object"),
        ("", "no greeter is called ''"),
        ("<b>", "no greeter is called '<b>'"),
        ("a:b:c", "no greeter is called 'a:b:c'"),
        ("gr2_parts:" + "x" * 100, "no greeter is called"),
        ("gr2_nowhere.deep:x", r"'gr2_nowhere.deep:x': there is no module gr2_nowhere; Python looked in .*{folder}"),
        ("gr2_parts.deep:x", "there is no module gr2_parts.deep"),
        ("gr2_parts:absent", r"module gr2_parts \({folder}/gr2_parts.py\) has no absent"),
        ("gr2_parts:made.absent", "has no made.absent"),
        ("gr2_parts:mute", "'gr2_parts:mute' is not a greeter: an object of Mute lacks greet"),
        ("gr2_parts:number", "an object of int lacks greet, language"),
        ("gr2_lacks:x", "greeter 'gr2_lacks:x' needs gr2_nowhere, which is not installed$"),
        ("gr2_raises:x", r"module gr2_raises cannot be imported: ValueError: odd \({folder}/gr2_raises.py:2\)"),
        ("gr2_broken:x", r"module gr2_broken cannot be imported: SyntaxError: .*\(gr2_broken.py, line 1\)"),
    ],
)
def test_what_cannot_be_found_says_why(
    greeters: Registry[Greeter], name: str, message: str, write_module: WriteModule
) -> None:
    folder = write_module("gr2_parts", SOURCE).parent
    write_module("gr2_lacks", "import gr2_nowhere")
    write_module("gr2_raises", "\nraise ValueError('odd')")
    write_module("gr2_broken", "def (")
    with pytest.raises(InputError, match=message.replace("{folder}", str(folder))):
        greeters.find(name)


def test_a_factory_is_called_with_what_it_asks_for(makers: Factories[Greeter], write_module: WriteModule) -> None:
    write_module("gr2_parts", SOURCE)
    context: dict[str, Any] = {"name": "ann", "store": "unused"}
    assert makers.make("gr2_parts:Greeter", {}).greet() == "you"
    assert makers.make("gr2_parts:Greeter", context).greet() == "ann"
    loud: Any = makers.make("gr2_parts:Greeter", context, {"loud": True, "more": 1, "not_set": None})
    assert (loud.greet(), loud.more) == ("ANN", {"more": 1})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("needs_much", {}, "greeter 'gr2_parts:needs_much' needs `much`, which is not given"),
        ("needs_much", {"loud": True}, "'gr2_parts:needs_much' takes no `loud`; it takes `much`"),
        ("Mute", {"loud": True}, "'gr2_parts:Mute' takes no `loud`; it takes no options"),
        ("Mute", {}, "the result of 'gr2_parts:Mute' is not a greeter: an object of Mute lacks greet"),
        ("mute", {}, "'gr2_parts:mute' is not a greeter: it is an object of Mute, which cannot be called"),
    ],
)
def test_a_factory_that_cannot_be_called_says_why(
    makers: Factories[Greeter],
    name: str,
    options: dict[str, Any],
    message: str,
    write_module: WriteModule,
) -> None:
    write_module("gr2_parts", SOURCE)
    with pytest.raises(InputError, match=message):
        makers.make(f"gr2_parts:{name}", {"name": "ann"}, options)
