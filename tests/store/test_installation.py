from importlib import metadata

import pytest

from store.installation import install_command, missing_package


def test_a_hint_names_what_an_extra_lists() -> None:
    assert install_command("eval") == "pip install 'lightgbm>=4.7'"
    assert "torch==2.13.0" in install_command("train")


def test_an_unknown_extra_installs_the_checkout() -> None:
    assert install_command("nope") == "pip install -e '.[nope]' in gr2's folder"


def test_a_checkout_that_was_never_installed_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(_: str) -> list[str]:
        raise metadata.PackageNotFoundError("gr2")

    monkeypatch.setattr("store.installation.requires", not_there)
    assert install_command("app") == "pip install -e '.[app]' in gr2's folder"


def test_the_error_says_what_needs_which_package() -> None:
    message = "lambdamart needs lightgbm, which is not installed: pip install 'lightgbm>=4.7'"
    assert str(missing_package("lambdamart", "lightgbm", "eval")) == message
