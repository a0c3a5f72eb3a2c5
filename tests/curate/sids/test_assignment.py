import pytest

from curate.sids.assignment import SidSettings, assign_semantic_ids
from prompts.semantic_ids import parse_sid
from store import InputError, Store


def test_every_item_gets_an_id_and_its_codes_say_the_same(tiny: Store) -> None:
    summary = assign_semantic_ids(tiny, "tiny", SidSettings(levels=3, codebook_size=16))
    assert (summary.items, summary.distinct_ids, summary.uniqueness) == (12, 12, 1.0)
    with tiny.reading() as session:
        rows = session.connection.execute("select codes, text from semantic_ids").fetchall()
    assert len(rows) == 12
    assert all(parse_sid(text) == tuple(codes) for codes, text in rows)


def test_versions_go_by_settings_and_the_same_again_changes_nothing(tiny: Store) -> None:
    first = assign_semantic_ids(tiny, "tiny")
    again = assign_semantic_ids(tiny, "tiny")
    other = assign_semantic_ids(tiny, "tiny", SidSettings(seed=1))
    assert not first.already_there
    assert again.already_there
    assert first.sid_version == again.sid_version != other.sid_version
    with tiny.reading() as session:
        assert session.connection.execute("select count(*) from semantic_ids").fetchall() == [(24,)]


def test_what_cannot_be_is_a_clear_error(tiny: Store) -> None:
    with pytest.raises(InputError, match="'nope'"):
        assign_semantic_ids(tiny, "nope")
    with pytest.raises(InputError, match="rq-kmeans"):
        SidSettings(method="magic")
    with pytest.raises(InputError, match="--levels"):
        SidSettings(levels=0)
    with pytest.raises(InputError, match="--codebook-size"):
        SidSettings(codebook_size=1)
