import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest

from curate.requests import SamplingSettings
from curate.sampling import sample
from curate.snapshot_kinds import SnapshotSettings
from curate.snapshots import diff, find_snapshot, publish, rebuild
from curate.teachers.evidence import EvidenceTeacher
from curate.teachers.fake import FakeTeacher
from prompts.completion import render_completion
from prompts.semantic_ids import parse_sid
from store import InputError, SnapshotError, Store
from store.labels import Label, put_label
from store.snapshots import read_split, verify_snapshot
from train import load_snapshot


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


@pytest.fixture
def traced(shop: Store) -> Store:
    """A shop with traces of train, valid and test lists."""
    for split in ("train", "valid", "test"):
        sample(shop, EvidenceTeacher(), SamplingSettings("shop", split=split, limit=40))
    return shop


def test_a_snapshot_holds_exactly_the_accepted_traces_of_train_and_valid(traced: Store) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop"))
    for split, stored in (("train", "train"), ("validation", "valid")):
        expected = fetch(
            traced, f"select trace_id from trace_browser where accepted and split = '{stored}' order by trace_id"
        )
        assert read_split(snapshot.path, split)["trace_id"].to_list() == [trace for (trace,) in expected]
    assert fetch(traced, "select name, version, kind from snapshots") == [("shop", snapshot.version, "sft")]


def test_a_row_is_a_prompt_and_the_canonical_answer(traced: Store) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop", policy="strict"))
    for row in read_split(snapshot.path, "train").to_dicts():
        assert [message["role"] for message in row["prompt"]] == ["system", "user"]
        answer = json.loads(row["completion"][0]["content"])
        assert answer == {"explanation": row["reasoning"], "recommendations": row["ranking"]}
        assert sorted(row["ranking"]) == sorted(row["candidates"])
        assert row["ranking"][0] == row["target"] == row["candidates"][row["target_rank"] - 1]
        assert all(parse_sid(sid) for sid in (*row["history"], *row["candidates"]))
        assert 0 < row["pass_rate"] <= 1
        stored = fetch(
            traced,
            "select messages from prompts join traces using (prompt_id)" + f" where trace_id = '{row['trace_id']}'",
        )
        assert row["prompt"] == json.loads(stored[0][0])


def test_datasets_polars_and_our_loader_read_the_same(traced: Store, tmp_path: Path) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop"))
    copied = Path(shutil.copytree(snapshot.path, tmp_path / snapshot.version))
    plain = datasets.load_dataset(str(copied), "sft", cache_dir=str(tmp_path / "cache"))
    ours = load_snapshot(copied)
    assert set(plain) == set(ours) == {"train", "validation"}
    frame = pl.read_parquet(copied / "data" / "train-*.parquet")
    assert plain["train"]["trace_id"][:] == ours["train"]["trace_id"][:] == frame["trace_id"].to_list()
    assert plain["train"][0]["prompt"] == frame["prompt"].to_list()[0]
    assert list(load_snapshot(copied, streaming=True)["train"]) == ours["train"].to_list()


def test_the_loader_refuses_what_was_changed_or_is_of_another_kind(traced: Store) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop"))
    with pytest.raises(SnapshotError, match="'dapo' is wanted"):
        load_snapshot(snapshot.path, kind="dapo")
    file = next((snapshot.path / "data").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(SnapshotError, match="was changed"):
        load_snapshot(snapshot.path)


def test_the_same_store_gives_the_same_bytes(traced: Store) -> None:
    first = publish(traced, "shop", SnapshotSettings("shop"))
    kept = {path: path.read_bytes() for path in first.path.rglob("*") if path.is_file()}
    shutil.rmtree(first.path)
    with traced.writing() as session:
        session.connection.execute("delete from snapshots")
    again = publish(traced, "shop", SnapshotSettings("shop"))
    assert again.version == first.version
    assert {path: path.read_bytes() for path in again.path.rglob("*") if path.is_file()} == kept
    assert rebuild(traced, again)


def test_publishing_twice_is_publishing_once(traced: Store) -> None:
    first = publish(traced, "shop", SnapshotSettings("shop"))
    again = publish(traced, "shop", SnapshotSettings("shop"))
    assert again.version == first.version
    assert fetch(traced, "select count(*) from snapshots") == [(1,)]


def test_a_trace_that_somebody_called_bad_is_left_out_of_the_next_version(traced: Store) -> None:
    first = publish(traced, "shop", SnapshotSettings("shop"))
    bad, good = read_split(first.path, "train")["trace_id"].to_list()[:2]
    put_label(traced, bad, "ann", Label.BAD)
    put_label(traced, good, "ann", Label.GOOD)
    second = publish(traced, "shop", SnapshotSettings("shop"))
    changes = diff(first, second)
    assert (changes.added, changes.removed, changes.changed) == ([], [bad], [])
    assert second.manifest["parent"] == first.version
    assert second.manifest["selection"]["labels"]["events"] == 2
    assert find_snapshot(traced, "shop") == second
    assert find_snapshot(traced, f"shop@{first.version[:5]}") == first
    assert not rebuild(traced, first)


def test_policies_and_filters_select(traced: Store) -> None:
    everything = publish(traced, "all", SnapshotSettings("shop", policy="all"))
    paper = publish(traced, "paper", SnapshotSettings("shop"))
    assert everything.manifest["splits"]["train"]["rows"] > paper.manifest["splits"]["train"]["rows"]
    with pytest.raises(InputError, match="gr2 status shows the funnel"):
        publish(traced, "none", SnapshotSettings("shop", teacher="openai"))
    assert not (traced.snapshots / "none").exists()


def test_test_targets_cannot_be_published(traced: Store) -> None:
    with pytest.raises(SnapshotError, match="holds test targets"):
        publish(traced, "shop", SnapshotSettings("shop", splits=("train", "test")))
    with traced.writing() as session:
        # However a list came to call itself train: its target is a test interaction.
        for table in ("candidate_lists", "traces"):
            session.connection.execute(f"update {table} set split = 'train' where split = 'test'")
    with pytest.raises(SnapshotError, match="holds test targets"):
        publish(traced, "shop", SnapshotSettings("shop"))
    assert fetch(traced, "from snapshots") == []


def leaky(words: str) -> FakeTeacher:
    def complete(request: Any) -> str:
        target = request.task.target.sid
        others = [c.item.sid for c in request.task.candidates if c.item.sid != target]
        return render_completion(f"{target} {words}", [target, *others])

    return FakeTeacher(complete)


def test_a_trace_that_leaks_its_target_cannot_be_published(shop: Store) -> None:
    settings = SamplingSettings("shop", strategy="targeted", limit=10)
    sample(shop, leaky("is the correct answer."), settings)
    for policy in ("paper", "all"):
        with pytest.raises(SnapshotError, match=r"10 of 10 traces leak the target.*'the correct answer'"):
            publish(shop, "shop", SnapshotSettings("shop", policy=policy))
    with pytest.raises(InputError, match="no trace"):
        publish(shop, "shop", SnapshotSettings("shop", policy="strict"))


def test_a_targeted_trace_comes_with_the_prompt_of_its_student(shop: Store) -> None:
    sample(shop, leaky("follows from the history."), SamplingSettings("shop", strategy="targeted", limit=10))
    snapshot = publish(shop, "shop", SnapshotSettings("shop"))
    for row in read_split(snapshot.path, "train").to_dicts():
        assert row["template"] == "rerank.v1"
        assert row["strategy"] == "targeted"
        assert "to rank first is" not in row["prompt"][1]["content"]
    stored = fetch(shop, "select messages from prompts")
    assert all("to rank first is" in messages for (messages,) in stored)


def test_a_template_of_ones_own_is_kept_with_its_traces(shop: Store, tmp_path: Path) -> None:
    path = tmp_path / "mine.v1.jinja"
    path.write_text(
        "---\nstrategy: rejection\nevidence: shown\n---\n{% block system %}Mine.{% endblock %}"
        "{% block user %}{% for item in candidates %}{{ item.sid }}{% endfor %}{% endblock %}"
    )
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", template=str(path), limit=20))
    path.unlink()
    snapshot = publish(shop, "shop", SnapshotSettings("shop"))
    rows = read_split(snapshot.path, "train").to_dicts()
    assert {row["prompt"][0]["content"] for row in rows} == {"Mine."}
    assert {row["template"] for row in rows} == {"mine.v1"}


def test_the_manifest_tells_where_everything_came_from(traced: Store) -> None:
    manifest = publish(traced, "shop", SnapshotSettings("shop", policy="strict")).manifest
    assert manifest["selection"]["policy"] == "strict"
    assert {"rule": "grounded", "version": 1} in manifest["selection"]["rules"]
    lineage = manifest["lineage"]
    assert lineage["teachers"] == ["evidence/evidence.v1"]
    assert lineage["templates"][0]["template"] == "rerank_evidence.v1"
    assert lineage["dataset_settings"]["simulator"]["seed"] == 1
    assert set(lineage) >= {"dataset_fingerprint", "semantic_ids", "code_commit", "libraries"}
    assert lineage["semantic_ids"][0]["codebook_size"] == 256


def test_a_snapshot_that_was_moved_still_verifies(traced: Store, tmp_path: Path) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop"))
    moved = shutil.move(str(snapshot.path), tmp_path / snapshot.version)
    assert verify_snapshot(Path(moved)).version == snapshot.version


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_names_that_are_no_file_names_are_refused(traced: Store, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a snapshot"):
        publish(traced, name, SnapshotSettings("shop"))


def test_what_is_not_there_is_a_clear_error(traced: Store) -> None:
    with pytest.raises(InputError, match="gr2 snapshot list"):
        find_snapshot(traced, "nope")
    with pytest.raises(InputError, match="--kind is 'dpo'; it must be one of midtrain, sft, dapo"):
        publish(traced, "x", SnapshotSettings("shop", kind="dpo"))
