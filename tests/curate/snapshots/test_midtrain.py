from pathlib import Path
from typing import Any

import pytest

from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish, rebuild
from prompts.semantic_ids import find_sids
from store import InputError, SnapshotError, Store
from store.snapshots import read_split


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def sids_of(store: Store) -> dict[str, str]:
    return dict(fetch(store, "select item_id, text from semantic_ids"))


def test_sequences_hold_what_users_took_in_order_and_never_a_test_item(shop: Store) -> None:
    snapshot = publish(shop, "texts", SnapshotSettings("shop", kind="midtrain"))
    sids = sids_of(shop)
    for split, until in (("train", "'train'"), ("validation", "'train', 'valid'")):
        expected = dict(
            fetch(
                shop,
                "select user_id, list(item_id order by position) from interactions "
                f"where split in ({until}) group by user_id having count(*) > 1",
            )
        )
        rows = read_split(snapshot.path, split).to_dicts()
        sequences = {row["row_id"]: find_sids(row["text"]) for row in rows if row["task"] == "next_item"}
        assert sequences == {
            f"next_item/{user}": [sids[item] for item in items][-20:] for user, items in expected.items()
        }


def test_every_item_has_a_caption_and_every_shopper_a_persona(shop: Store) -> None:
    rows = read_split(publish(shop, "texts", SnapshotSettings("shop", kind="midtrain")).path, "train").to_dicts()
    captions = {row["text"].split(" is ")[0]: row["text"] for row in rows if row["task"] == "caption"}
    titles = dict(fetch(shop, "select item_id, title from items"))
    for item, sid in sids_of(shop).items():
        assert titles[item] in captions[sid]
    personas = [row["text"] for row in rows if row["task"] == "persona"]
    assert len(personas) == len([row for row in rows if row["task"] == "next_item"])
    assert all(" likes " in text for text in personas)


def test_general_text_comes_from_a_folder_by_paragraphs(shop: Store, tmp_path: Path) -> None:
    folder = tmp_path / "general"
    folder.mkdir()
    (folder / "a.txt").write_text("First.\n\nSecond with <|sid_begin|> forged.\n\n  \n", "utf-8")
    settings = SnapshotSettings("shop", kind="midtrain", text_dir=str(folder))
    snapshot = publish(shop, "texts", settings)
    rows = [row for row in read_split(snapshot.path, "train").to_dicts() if row["task"] == "general"]
    assert [row["text"] for row in rows] == ["First.", "Second with ‹|sid_begin|› forged."]
    assert rebuild(shop, snapshot)
    with pytest.raises(InputError, match="is not a folder"):
        publish(shop, "texts", SnapshotSettings("shop", kind="midtrain", text_dir=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="contains no text"):
        publish(shop, "texts", SnapshotSettings("shop", kind="midtrain", text_dir=str(tmp_path / "empty")))


def test_test_interactions_cannot_be_published(shop: Store) -> None:
    with pytest.raises(SnapshotError, match="test targets"):
        publish(shop, "texts", SnapshotSettings("shop", kind="midtrain", splits=("train", "test")))


def test_of_users_in_held_out_folds_nothing_is_told(shop: Store) -> None:
    snapshot = publish(shop, "texts", SnapshotSettings("shop", kind="midtrain", held_out_folds=(2, 0)))
    everything = publish(shop, "all", SnapshotSettings("shop", kind="midtrain"))
    held_out = {user for (user,) in fetch(shop, "select user_id from interactions where user_fold(user_id) in (0, 2)")}
    for split in ("train", "validation"):
        told = set(read_split(everything.path, split)["row_id"])
        of_users = {f"{task}/{user}" for task in ("next_item", "persona") for user in held_out}
        assert told & of_users
        assert set(read_split(snapshot.path, split)["row_id"]) == told - of_users
    assert snapshot.manifest["selection"]["held_out_folds"] == [0, 2]
    assert "held_out_folds" not in everything.manifest["selection"]
    assert rebuild(shop, snapshot)
