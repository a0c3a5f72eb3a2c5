import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import orjson
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from curate.review.trace_pages import find_traces
from curate.snapshots import KINDS, SnapshotSettings
from curate.snapshots.kind import Contents
from curate.snapshots.publishing import (
    diff,
    find_snapshot,
    load_lineage,
    load_options,
    load_snapshots,
    preview,
    publish,
    rebuild,
)
from curate.traces.filter import TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from prompts.completion import render_completion
from prompts.semantic_ids import parse_sid
from store import InputError, SnapshotError, Store
from store.errors import Gr2Error
from store.labels import Label, put_label
from store.snapshots import read_split, verify_snapshot, write_snapshot
from train import load_snapshot


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def sample_three_splits(shop: Store) -> None:
    for split in ("train", "valid", "test"):
        sample(shop, EvidenceTeacher(), SamplingSettings("shop", split=split, limit=40))


@pytest.fixture
def traced(prepare: Callable[..., Store], built_shop: Path) -> Store:
    """A shop with traces of train, valid and test lists."""
    return prepare(built_shop, sample_three_splits)


def test_a_snapshot_holds_exactly_the_accepted_traces_of_train_and_valid(traced: Store) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop"))
    for split, stored in (("train", "train"), ("validation", "valid")):
        expected = fetch(
            traced, f"select trace_id from trace_browser where accepted and split = '{stored}' order by trace_id"
        )
        assert read_split(snapshot.path, split)["trace_id"].to_list() == [trace for (trace,) in expected]
    assert fetch(traced, "select name, version, kind from snapshots") == [("shop", snapshot.version, "sft")]


def test_of_train_lists_only_those_of_held_out_folds_are_taught(traced: Store) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop", held_out_folds=(0, 3)))
    for split, condition in (("train", "split = 'train' and fold in (0, 3)"), ("validation", "split = 'valid'")):
        expected = fetch(
            traced,
            "select trace_id from trace_browser join (select list_id, fold from candidate_lists) using (list_id)"
            f" where accepted and {condition} order by trace_id",
        )
        assert expected
        assert read_split(snapshot.path, split).select("trace_id").rows() == expected
    assert rebuild(traced, snapshot)


def test_a_row_is_a_prompt_and_the_canonical_answer(traced: Store) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop", ruleset="strict"))
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
    with pytest.raises(SnapshotError, match="expected kind 'dapo'"):
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


def test_rulesets_and_filters_select(traced: Store) -> None:
    everything = publish(traced, "all", SnapshotSettings("shop", ruleset="answered"))
    paper = publish(traced, "paper", SnapshotSettings("shop"))
    assert everything.manifest["splits"]["train"]["rows"] > paper.manifest["splits"]["train"]["rows"]
    with pytest.raises(InputError, match="gr2 status shows the funnel"):
        publish(traced, "none", SnapshotSettings("shop", teacher="openai"))
    assert not (traced.snapshots / "none").exists()


def test_test_targets_cannot_be_published(traced: Store) -> None:
    with pytest.raises(SnapshotError, match="contains test targets"):
        publish(traced, "shop", SnapshotSettings("shop", splits=("train", "test")))
    with traced.writing() as session:
        # However a list came to call itself train: its target is a test interaction.
        for table in ("candidate_lists", "traces"):
            session.connection.execute(f"update {table} set split = 'train' where split = 'test'")
    with pytest.raises(SnapshotError, match="contains test targets"):
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
    for ruleset in ("paper", "answered"):
        with pytest.raises(SnapshotError, match=r"10 of 10 traces leak the target.*'the correct answer'"):
            publish(shop, "shop", SnapshotSettings("shop", ruleset=ruleset))
    with pytest.raises(InputError, match="no trace"):
        publish(shop, "shop", SnapshotSettings("shop", ruleset="strict"))


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
    manifest = publish(traced, "shop", SnapshotSettings("shop", ruleset="strict")).manifest
    assert manifest["selection"]["ruleset"] == "strict"
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


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "run[1]", "a b", "x" * 101])
def test_names_that_are_no_file_names_are_refused(traced: Store, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a snapshot"):
        publish(traced, name, SnapshotSettings("shop"))


def test_the_snapshot_that_was_published_last_is_the_newest_even_if_the_clock_was_set_back(traced: Store) -> None:
    first = publish(traced, "shop", SnapshotSettings("shop"))
    second = publish(traced, "shop", SnapshotSettings("shop", ruleset="strict"))
    with traced.writing() as session:
        session.connection.execute(
            "update snapshots set created_at = '2001-01-01' where version = $1", [second.version]
        )
    assert find_snapshot(traced, "shop") == second
    assert load_snapshots(traced)["version"].to_list() == [second.version, first.version]
    third = publish(traced, "shop", SnapshotSettings("shop", splits=("train",)))
    assert third.manifest["parent"] == second.version


def test_a_snapshot_in_the_place_of_another_is_not_taken_for_it(traced: Store) -> None:
    first = publish(traced, "shop", SnapshotSettings("shop"))
    second = publish(traced, "shop", SnapshotSettings("shop", splits=("train",)))
    renamed = traced.snapshots / "shop" / "mine"
    first.path.rename(renamed)
    with traced.writing() as session:
        session.connection.execute(
            "update snapshots set path = 'snapshots/shop/mine' where version = $1", [second.version]
        )
    assert verify_snapshot(renamed).version == first.version
    with pytest.raises(SnapshotError, match=f"its version is {first.version}, but {second.version} was published"):
        find_snapshot(traced, "shop")


def selected(store: Store, settings: SnapshotSettings) -> Contents:
    with store.reading() as session:
        return KINDS.find(settings.kind).select(session, settings).load(None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dapo", "midtrain"])
def test_others_can_write_while_rows_are_made_and_change_none_of_them(traced: Store, kind: str) -> None:
    settings = SnapshotSettings("shop", kind=kind)
    expected = [(split, row) for split, row in selected(traced, settings).rows(traced)]
    rows = iter(selected(traced, settings).rows(traced))
    found = [next(rows)]
    sample(traced, EvidenceTeacher(), SamplingSettings("shop", limit=60, max_attempts=3, num_accepted=3))
    put_label(traced, fetch(traced, "select min(trace_id) from accepted_traces('paper')")[0][0], "ann", Label.BAD)
    assert found + list(rows) == expected


def test_a_selected_trace_that_is_gone_when_its_text_is_read_is_a_clear_error(traced: Store) -> None:
    contents = selected(traced, SnapshotSettings("shop"))
    with traced.writing() as session:
        session.connection.execute(
            "delete from traces where trace_id ="
            " (select min(trace_id) from accepted_traces('paper') where split = 'train')"
        )
    with pytest.raises(SnapshotError, match=r"1 selected traces were removed .* publish again"):
        list(contents.rows(traced))
    assert [path.name for path in traced.folder.iterdir() if path.name.startswith(".temporary")] == []


def test_what_is_not_there_is_a_clear_error(traced: Store) -> None:
    with pytest.raises(InputError, match="gr2 snapshot list"):
        find_snapshot(traced, "nope")
    with pytest.raises(InputError, match="no kind of snapshot is called 'dpo'; there are: sft, dapo, midtrain"):
        publish(traced, "x", SnapshotSettings("shop", kind="dpo"))


OWN_KIND = """
import polars as pl
from curate.snapshots.kind import Contents, Counts, Kind, Selection

def select(session, settings):
    folds = list(settings.held_out_folds)
    users = session.frame("snapshot_sequences", dataset=settings.dataset, splits=settings.splits, held_out_folds=folds)
    rows = [(row["split"], {"user_id": row["user_id"], "items": len(row["item_ids"])}) for row in users.to_dicts()]
    return Selection(
        Counts(users.group_by("split").agg(rows=pl.len()), users=users.height),
        targets={(row["user_id"], row["last_position"]) for row in users.to_dicts()},
        refusal=None,
        load=lambda limit: Contents(render=lambda: rows[:limit], sid_versions=()),
    )

LENGTHS = Kind("user_id", {"user_id": pl.String, "items": pl.Int32}, "Lengths.", select, filters=("dataset",))
"""


def test_a_kind_of_ones_own_is_published_rebuilt_and_loaded(
    shop: Store, write_module: Callable[[str, str], Path]
) -> None:
    write_module("own_kind", OWN_KIND)
    settings = SnapshotSettings("shop", kind="own_kind:LENGTHS", splits=("train",))
    snapshot = publish(shop, "lengths", settings)
    assert snapshot.manifest["kind"] == "own_kind:LENGTHS"
    assert rebuild(shop, snapshot)
    assert diff(snapshot, snapshot).changed == []
    assert datasets.load_dataset(str(snapshot.path), "LENGTHS")["train"].column_names == ["user_id", "items"]
    with pytest.raises(
        InputError, match="kind own_kind:LENGTHS is not made of traces, so the filter cannot contain text"
    ):
        SnapshotSettings("shop", kind="own_kind:LENGTHS", traces=TraceFilter(text="x"))
    with pytest.raises(SnapshotError, match="the selection contains test targets"):
        publish(shop, "lengths", replace(settings, splits=("test",)))


LONG_KIND = """
import polars as pl
from curate.snapshots.kind import Contents, Counts, Kind, Selection

ROWS = [("train", {"id": f"{n:06}", "items": [f"item-{n * i % 9973:012}" for i in range(8)]}) for n in range(25_000)]

def select(session, settings):
    counts = Counts(pl.DataFrame({"split": ["train"], "rows": [len(ROWS)]}), users=0)
    return Selection(counts, set(), None, lambda limit: Contents(lambda: ROWS[:limit]))

LONG = Kind("id", {"id": pl.String, "items": pl.List(pl.String)}, "Long.", select, filters=("dataset",), rulesets=False)
"""


def test_a_long_snapshot_that_was_written_at_once_is_rebuilt_byte_by_byte(
    shop: Store, write_module: Callable[[str, str], Path]
) -> None:
    """As gr2 0.1 wrote it: from one frame of all rows."""
    write_module("long_kind", LONG_KIND)
    now = publish(shop, "long", SnapshotSettings("shop", kind="long_kind:LONG", splits=("train",)))
    rows = pl.DataFrame(read_split(now.path, "train").to_dicts(), schema={"id": pl.String, "items": pl.List(pl.String)})
    body = {name: now.manifest[name] for name in ("name", "kind", "selection", "lineage")}
    before = write_snapshot(shop.snapshots / "before", {"train": rows}, body, (now.path / "README.md").read_text())
    assert before.manifest["splits"] == now.manifest["splits"]
    assert before.manifest["files"] != now.manifest["files"]
    assert rebuild(shop, before)
    assert rebuild(shop, now)


def published_rows(store: Store, settings: SnapshotSettings) -> dict[str, list[dict[str, Any]]]:
    snapshot = publish(store, "rows", settings)
    return {split: read_split(snapshot.path, split).to_dicts() for split in snapshot.manifest["splits"]}


filters = st.builds(
    TraceFilter,
    split=st.sampled_from([None, "train", "valid"]),
    teacher=st.sampled_from([None, "evidence", "nobody"]),
    fails=st.sampled_from([None, "strict"]),
    copied=st.sampled_from([None, True, False]),
    target_rank=st.sampled_from([None, 1, 2, 3]),
    max_pass_rate=st.sampled_from([None, 0.5]),
    label=st.sampled_from([None, "none", "good", "bad"]),
    text=st.sampled_from([None, "bought", "stands nowhere"]),
)


@pytest.mark.slow
@hypothesis_settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=filters, ruleset=st.sampled_from(["answered", "paper", "strict"]))
def test_a_filtered_snapshot_holds_what_both_filter_and_ruleset_let_through(
    traced: Store, chosen: TraceFilter, ruleset: str
) -> None:
    for trace in find_traces(traced, TraceFilter(passes="paper"), limit=4).rows["trace_id"]:
        put_label(traced, trace, "ann", Label.BAD if trace < "8" else Label.GOOD)
    accepted = {trace for (trace,) in fetch(traced, f"select trace_id from accepted_traces('{ruleset}')")}
    bad = {trace for (trace,) in fetch(traced, "select trace_id from labels_current where label = 'bad'")}
    found = find_traces(traced, chosen, limit=10_000).rows.filter(pl.col("split") != "test")
    expected = set(found["trace_id"]) & accepted
    settings = SnapshotSettings("shop", ruleset=ruleset, traces=chosen)
    seen = preview(traced, settings)
    assert seen.counts.rows == len(expected - bad)
    assert seen.counts.labelled_bad == len(expected & bad)
    if seen.refusal is not None:
        with pytest.raises(InputError) as refused:
            publish(traced, "rows", settings)
        assert (str(refused.value), expected - bad) == (seen.refusal, set())
        return
    rows = published_rows(traced, settings)
    assert {row["trace_id"] for of_split in rows.values() for row in of_split} == expected - bad


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sft", "dapo", "midtrain"])
@pytest.mark.parametrize("splits", [("train", "valid"), ("valid",)])
def test_a_preview_counts_the_rows_that_publishing_writes_and_writes_nothing(
    traced: Store, kind: str, splits: tuple[str, ...]
) -> None:
    settings = SnapshotSettings("shop", kind=kind, splits=splits)
    seen = preview(traced, settings)
    assert not traced.snapshots.exists() or not any(traced.snapshots.iterdir())
    assert fetch(traced, "from snapshots") == []
    snapshot = publish(traced, "shop", settings)
    by_split = dict(seen.counts.groups.group_by("split").agg(pl.col("rows").sum()).rows())
    assert {"validation" if split == "valid" else split: rows for split, rows in by_split.items()} == {
        split: facts["rows"] for split, facts in snapshot.manifest["splits"].items()
    }
    for split, row in seen.first:
        written = read_split(snapshot.path, "validation" if split == "valid" else split).to_dicts()
        assert orjson.loads(orjson.dumps(row)) in orjson.loads(orjson.dumps(written))
    assert len(seen.first) == 3
    assert seen.refusal is None


def test_a_preview_counts_prompts_users_and_groups(traced: Store) -> None:
    sample(traced, FakeTeacher(lambda _: "nothing", "mute"), SamplingSettings("shop", limit=3, max_attempts=1))
    counts = preview(traced, SnapshotSettings("shop", ruleset="answered")).counts
    assert fetch(
        traced,
        "select count(*), count(distinct prompt_id), count(distinct user_id) from traces where split <> 'test'",
    ) == [(counts.rows, counts.prompts, counts.users)]
    assert counts.groups.select("split", "template", "teacher", "model", "rows").rows() == fetch(
        traced,
        "select split, template, teacher, model, count(*) from traces where split <> 'test' group by all order by all",
    )


def test_a_filter_is_in_the_manifest_and_the_same_bytes_come_out_again(traced: Store) -> None:
    good = find_traces(traced, TraceFilter(passes="paper", split="train"), limit=5).rows["trace_id"].to_list()
    for trace in good:
        put_label(traced, trace, "ann", Label.GOOD)
    chosen = TraceFilter(label="good", copied=False, since=datetime.fromisoformat("2020-01-01"), max_pass_rate=1.0)
    snapshot = publish(traced, "shop", SnapshotSettings("shop", traces=chosen))
    selection = snapshot.manifest["selection"]
    assert selection["traces"] == {
        "copied": "no",
        "label": "good",
        "max_pass_rate": "1.0",
        "since": "2020-01-01T00:00:00",
    }
    assert selection["labels"]["events"] == 5
    assert SnapshotSettings.from_manifest(snapshot.manifest).traces == chosen
    assert rebuild(traced, snapshot)
    assert publish(traced, "shop", SnapshotSettings("shop", traces=chosen)).version == snapshot.version
    put_label(traced, good[0], "ann", Label.BAD)
    assert not rebuild(traced, snapshot)


def test_without_a_filter_the_manifest_is_what_it_was_before_there_were_filters(traced: Store) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop"))
    assert snapshot.manifest["selection"].keys() == {
        "ruleset", "splits", "template", "teacher", "sid_version", "pre_ranker", "text_dir", "rules", "labels",
        "ruleset_versions",
    }  # fmt: skip
    assert SnapshotSettings.from_manifest(snapshot.manifest) == SnapshotSettings("shop")
    assert rebuild(traced, snapshot)


def test_what_settings_can_say_themselves_moves_out_of_the_filter(traced: Store) -> None:
    chosen = TraceFilter("shop", "train", template="rerank_evidence.v1", teacher="evidence", passes="strict")
    settings = SnapshotSettings("shop", ruleset="strict", traces=chosen)
    plain = SnapshotSettings(
        "shop", ruleset="strict", splits=("train",), template="rerank_evidence.v1", teacher="evidence"
    )
    assert settings == plain
    assert replace(settings, traces=chosen) == plain
    assert publish(traced, "shop", settings).version == publish(traced, "shop", plain).version


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"traces": TraceFilter("other")}, "has dataset 'shop', but its filter has 'other'"),
        (
            {"template": "a.v1", "traces": TraceFilter(template="b.v1")},
            "has template 'a.v1', but its filter has 'b.v1'",
        ),
        ({"traces": TraceFilter(split="test")}, "has splits 'train, valid', but its filter has 'test'"),
        ({"kind": "dapo", "traces": TraceFilter(copied=True)}, "kind dapo is not made of traces.* copied"),
        ({"kind": "midtrain", "traces": TraceFilter(teacher="x", label="good")}, "cannot contain label, teacher"),
        ({"traces": TraceFilter(label="nice")}, "label='nice'"),
    ],
)
def test_a_filter_that_contradicts_the_selection_is_a_clear_error(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SnapshotSettings("shop", **changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SnapshotSettings("shop", traces=TraceFilter(user_id="nobody")), "gr2 status shows the funnel"),
        (SnapshotSettings("shop", splits=()), "gr2 status shows the funnel"),
        (SnapshotSettings("shop", splits=("train", "test")), "contains test targets"),
        (SnapshotSettings("shop", kind="dapo", splits=("test",)), "contains test targets"),
    ],
)
def test_a_refusal_is_previewed_and_publishes_nothing(traced: Store, settings: SnapshotSettings, message: str) -> None:
    with pytest.raises(Gr2Error, match=message) as refused:
        publish(traced, "none", settings)
    assert not (traced.snapshots / "none").exists()
    assert fetch(traced, "from snapshots") == []
    seen = preview(traced, settings)
    assert (seen.refusal, seen.first) == (str(refused.value), [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (SnapshotSettings("shop", ruleset="nice"), "no ruleset is called 'nice'; there are: answered, paper, strict"),
        (SnapshotSettings("shop", traces=TraceFilter(fails="nice")), "no ruleset is called 'nice'"),
        (SnapshotSettings("shop", traces=TraceFilter(passes="nice")), "no ruleset is called 'nice'"),
        (SnapshotSettings("shop", traces=TraceFilter(pattern="(")), r"'\(' is not a regular expression"),
    ],
)
def test_what_nobody_knows_is_a_clear_error_of_both(traced: Store, settings: SnapshotSettings, message: str) -> None:
    for act in (lambda: preview(traced, settings), lambda: publish(traced, "none", settings)):
        with pytest.raises(InputError, match=message):
            act()
    assert not (traced.snapshots / "none").exists()


def test_a_leak_is_previewed_in_the_words_of_the_refusal(shop: Store) -> None:
    sample(shop, leaky("is the correct answer."), SamplingSettings("shop", strategy="targeted", limit=10))
    sample(shop, FakeTeacher(lambda _: "I was told the answer", "mute"), SamplingSettings("shop", limit=2))
    for settings in (
        SnapshotSettings("shop"),
        SnapshotSettings("shop", ruleset="answered", traces=TraceFilter(teacher="mute")),
    ):
        seen = preview(shop, settings)
        assert seen.refusal is not None
        assert f"{seen.counts.rows} of {seen.counts.rows} traces leak" in seen.refusal
        with pytest.raises(SnapshotError) as refused:
            publish(shop, "shop", settings)
        assert str(refused.value) == seen.refusal


def test_a_leak_that_verdicts_do_not_know_of_is_not_published_either(shop: Store) -> None:
    sample(shop, leaky("is the correct answer."), SamplingSettings("shop", strategy="targeted", limit=10))
    with shop.writing() as session:
        session.connection.execute("update outcomes set passed_rules = list_append(passed_rules, 'no_leak')")
    with pytest.raises(SnapshotError, match="10 of 10 traces leak the target"):
        publish(shop, "shop", SnapshotSettings("shop"))
    assert not any((shop.snapshots / "shop").glob("*"))


def test_lineage_knows_runs_versions_and_trainings(traced: Store) -> None:
    first = publish(traced, "shop", SnapshotSettings("shop"))
    second = publish(traced, "shop", SnapshotSettings("shop", splits=("train",)))
    other = publish(traced, "prompts", SnapshotSettings("shop", kind="dapo"))
    with traced.writing() as session:
        session.connection.execute(
            "insert into runs (run_id, kind, dataset, settings, status, started_at) values "
            "('r1', 'train-sft', 'shop', ?, 'done', now()), ('r2', 'train-sft', 'shop', '{}', 'done', now())",
            [json.dumps({"name": "pupil", "student": "new", "snapshot": f"shop@{second.version}"})],
        )
    lineage = load_lineage(traced, second)
    assert lineage.versions["version"].to_list() == [second.version, first.version]
    assert lineage.versions["parent"].to_list() == [first.version, None]
    assert lineage.trainings.select("run_id", "name", "student").rows() == [("r1", "pupil", "new")]
    assert dict(lineage.runs.select("run_id", "rows").rows()) == dict(
        fetch(traced, "select run_id, count(*) from trace_browser where accepted and split = 'train' group by all")
    )
    assert load_lineage(traced, other).runs.height == 0
    assert load_snapshots(traced)["version"].to_list() == [other.version, second.version, first.version]
    assert load_options(traced) == (["shop"], ["answered", "paper", "strict"])


def test_a_damaged_file_is_a_clear_error_of_lineage(traced: Store) -> None:
    snapshot = publish(traced, "shop", SnapshotSettings("shop"))
    file = next((snapshot.path / "data").iterdir())
    file.write_bytes(b"no parquet")
    with pytest.raises(SnapshotError, match="its rows cannot be read"):
        load_lineage(traced, snapshot)
