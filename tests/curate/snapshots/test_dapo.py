from typing import Any

import pytest

from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import diff, publish, rebuild
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from store import InputError, SnapshotError, Store
from store.snapshots import read_split

TEMPLATE = "rerank_numbers.v1"


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def settings(**changed: Any) -> SnapshotSettings:
    return SnapshotSettings("shop", kind="dapo", template=TEMPLATE, **changed)


def test_every_list_that_holds_its_target_is_there_and_no_teacher_is_needed(shop: Store) -> None:
    snapshot = publish(shop, "prompts", settings())
    for split, stored in (("train", "train"), ("validation", "valid")):
        expected = fetch(
            shop,
            "select list_id, target_rank from candidate_lists "
            f"where split = '{stored}' and target_rank is not null order by list_id",
        )
        rows = read_split(snapshot.path, split)
        assert rows.select("list_id", "target_rank").rows() == expected
        for row in rows.to_dicts():
            assert row["candidates"][row["target_rank"] - 1] == row["target"]
            assert len(set(row["candidates"])) == 10
            assert [message["role"] for message in row["prompt"]] == ["system", "user"]
            assert (row["pass_rate"], row["pass_rate_model"], row["attempts"]) == (None, None, None)
    assert rebuild(shop, snapshot)


@pytest.mark.slow
def test_pass_rates_go_with_the_model_that_they_are_of(shop: Store) -> None:
    for temperature, attempts in ((0.5, 2), (1.0, 4)):
        sample(
            shop,
            EvidenceTeacher(),
            SamplingSettings(
                "shop",
                template=TEMPLATE,
                limit=20,
                temperature=temperature,
                max_attempts=attempts,
                num_accepted=attempts,
            ),
        )
    before = publish(shop, "prompts", settings(teacher="nobody"))
    after = publish(shop, "prompts", settings())
    tried = read_split(after.path, "train").drop_nulls("pass_rate")
    assert tried.height == 20
    assert set(tried["pass_rate_model"]) == {"evidence/evidence.v1 at temperature 1.0"}
    assert set(tried["attempts"]) == {4}
    for row in tried.to_dicts():
        assert fetch(
            shop,
            f"select pass_rate from pass_rates where list_id = '{row['list_id']}' and temperature = 1.0",
        ) == [(row["pass_rate"],)]
    found = diff(before, after)
    assert (found.added, found.removed) == ([], [])
    assert len(found.changed) == 20


def test_what_cannot_be_published_is_a_clear_error(shop: Store) -> None:
    with pytest.raises(InputError, match=r"shows the target; a student is trained on rerank\.v1"):
        publish(shop, "prompts", SnapshotSettings("shop", kind="dapo", template="rerank_targeted.v1"))
    with pytest.raises(SnapshotError, match="test targets"):
        publish(shop, "prompts", settings(splits=("train", "test")))
    with pytest.raises(InputError, match="no pre-ranker is called 'nope'"):
        publish(shop, "prompts", settings(pre_ranker="nope"))
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=20))
    prompts, traces = publish(shop, "prompts", settings()), publish(shop, "traces", SnapshotSettings("shop"))
    with pytest.raises(InputError, match="no rows in common"):
        diff(prompts, traces)


def test_of_train_lists_only_those_of_held_out_folds_are_taught(shop: Store) -> None:
    snapshot = publish(shop, "prompts", settings(held_out_folds=(1, 4)))
    for split, condition in (("train", "split = 'train' and fold in (1, 4)"), ("validation", "split = 'valid'")):
        expected = fetch(
            shop,
            f"select list_id from candidate_lists where target_rank is not null and {condition} order by list_id",
        )
        assert read_split(snapshot.path, split).select("list_id").rows() == expected
    assert rebuild(shop, snapshot)
