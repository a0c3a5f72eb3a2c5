import pytest

from curate.datasets.sources import choose_sids
from curate.sids.assignment import assign_semantic_ids
from curate.sids.comparison import compare_versions
from curate.sids.explanation import explain_item, typical_words
from curate.sids.quantizers import ResidualKMeans
from curate.sids.versions import find_version, list_versions
from store import InputError, Store


@pytest.fixture
def two_versions(tiny: Store) -> tuple[Store, str, str]:
    first = assign_semantic_ids(tiny, "tiny", ResidualKMeans(levels=3, codebook_size=4))
    second = assign_semantic_ids(tiny, "tiny", ResidualKMeans(levels=3, codebook_size=4, seed=1))
    return tiny, first.version.sid_version, second.version.sid_version


def test_a_version_can_be_named_in_several_ways(two_versions: tuple[Store, str, str]) -> None:
    store, first, second = two_versions
    with store.reading() as session:
        assert find_version(session, "tiny").sid_version == second
        assert find_version(session, first).sid_version == first
        assert find_version(session, first[:-1]).sid_version == first
        assert find_version(session, f"tiny@{first}").sid_version == first
        with pytest.raises(InputError, match=f"'rq' names several versions.*tiny@{second}, tiny@{first}"):
            find_version(session, "rq")
        with pytest.raises(InputError, match="'tiny@x' names no version of semantic IDs; there are: tiny@"):
            find_version(session, "tiny@x")
    assert list_versions(store)["sid_version"].to_list() == [second, first]


def test_a_data_set_names_its_newest_version_that_is_fit(tiny: Store) -> None:
    fit = assign_semantic_ids(tiny, "tiny")
    unfit = assign_semantic_ids(tiny, "tiny", ResidualKMeans(levels=1, codebook_size=2, random_levels=0))
    assert not unfit.fit_for_training
    with tiny.reading() as session:
        assert find_version(session, "tiny") == fit.version


def test_comparison_tells_measures_and_agreement(two_versions: tuple[Store, str, str]) -> None:
    store, first, second = two_versions
    table = compare_versions(store, first, second)
    assert table.columns == ["measure", "level", f"tiny@{first}", f"tiny@{second}"]
    rows = {(measure, level): values for measure, level, *values in table.rows()}
    assert rows["items", None] == [12.0, 12.0]
    assert rows["items_in_both", None] == [12.0, 12.0]
    assert rows["perplexity", 1][0] > 1
    assert -0.5 <= rows["prefix_agreement", 1][0] <= 1
    assert rows["prefix_agreement", 3] == [1.0, 1.0]  # each item alone in both
    with pytest.raises(InputError, match="both name tiny@"):
        compare_versions(store, first, f"tiny@{first}")


def test_an_explanation_walks_from_the_catalogue_to_the_item(two_versions: tuple[Store, str, str]) -> None:
    store, first, _ = two_versions
    explained = explain_item(store, "c", first)
    assert explained.item.title == "Item c"
    assert [step.level for step in explained.steps] == [0, 1, 2, 3]
    assert [step.code for step in explained.steps] == [None, *explained.codes]
    counts = [step.items for step in explained.steps]
    assert counts[0] == 12
    assert counts[-1] == 1
    assert counts == sorted(counts, reverse=True)
    last = explained.steps[-1]
    assert last.category == ("Shop > Even > c", 1.0)
    assert last.brand == ("Other", 1.0)
    assert last.examples == []
    # Who is shown at a prefix does not share the next longer one.
    assert all("Item c" not in step.examples for step in explained.steps)


def test_what_cannot_be_explained_is_a_clear_error(two_versions: tuple[Store, str, str]) -> None:
    store, first, _ = two_versions
    with pytest.raises(InputError, match="no item 'nope' has a semantic ID"):
        explain_item(store, "nope", first)


def test_typical_words_are_common_inside_and_rare_outside() -> None:
    inside = {"soap": 0.9, "the": 1.0, "lavender": 0.3, "odd": 0.1}
    everywhere = {"soap": 0.2, "the": 0.9, "lavender": 0.01, "odd": 0.001}
    assert [word for word, _ in typical_words(inside, everywhere)] == ["soap", "lavender", "the"]


def test_the_version_that_was_made_last_is_the_newest_even_if_the_clock_was_set_back(
    two_versions: tuple[Store, str, str],
) -> None:
    store, first, second = two_versions
    with store.writing() as session:
        session.connection.execute(
            "update sid_versions set created_at = '2001-01-01', fit_for_training = true where sid_version = $1",
            [second],
        )
        session.execute("accept_sid_version", dataset="tiny", sid_version=first)
    with store.reading() as session:
        assert choose_sids(session, "tiny", None) == second
    assert list_versions(store)["sid_version"].to_list() == [second, first]
