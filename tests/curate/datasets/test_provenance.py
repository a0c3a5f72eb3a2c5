import re

from curate.datasets.provenance import LIBRARIES, code_commit, library_versions


def test_the_commit_is_a_commit_or_nothing() -> None:
    assert re.fullmatch(r"([0-9a-f]{40}(\+changes)?)?", code_commit())


def test_every_library_has_a_version() -> None:
    assert set(library_versions()) == set(LIBRARIES)
    assert all(re.match(r"\d+\.", version) for version in library_versions().values())
