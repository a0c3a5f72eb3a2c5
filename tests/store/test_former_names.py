"""What gr2 0.1 wrote: files of the store are migrated, and text outside of them is read under its former names."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from curate.snapshots import SnapshotSettings
from curate.traces.filter import TraceFilter
from store import Session, Store, database
from store.file_locks import AccessMode
from store.former_names import renamed
from store.migrations import load_migrations
from train.dapo.settings import DapoSettings
from train.sft.settings import SftSettings


def test_settings_of_trainings_are_read() -> None:
    former = {"reward": "paper", "alpha": 0.3, "group": 4, "prompts": 2, "updates": 2, "accumulation": 4}
    assert DapoSettings(**renamed(former), save_steps=2) == DapoSettings(
        reward="conditional",
        format_weight=0.3,
        num_generations=4,
        prompts_per_batch=2,
        num_iterations=2,
        gradient_accumulation_steps=4,
        save_steps=2,
    )
    assert SftSettings(**renamed({"order_weight": 0.5, "accumulation": 2})) == SftSettings(
        answer_weight=0.5, gradient_accumulation_steps=2
    )


def test_links_and_queues_are_read() -> None:
    former = {"passes": "all", "lost_at": "complete", "new_rank": "3", "rule": "complete"}
    assert TraceFilter.from_query(former) == TraceFilter(
        passes="answered", first_failed_rule="not_truncated", predicted_rank=3, rule="not_truncated"
    )


def test_manifests_are_read() -> None:
    selection = {"policy": "all", "splits": ["train"], "text_folder": None, "traces": {"lost_at": "cites"}}
    manifest = {"kind": "sft", "selection": selection, "lineage": {"dataset": "shop"}}
    assert SnapshotSettings.from_manifest(manifest) == SnapshotSettings(
        "shop", ruleset="answered", splits=("train",), traces=TraceFilter(first_failed_rule="cites")
    )


# Of schema 5, the last of 0.1: one trace that was cut off and leaks, and one that passes all its rules.
FORMER = """
    insert into runs values
        ('t', 'trace', 'shop', '{"policy":"all","accept":2}', 'done', '2026-01-01', null),
        ('d', 'train-dapo', 'shop', '{"reward":"gated","alpha":0.1,"group":4,"prompts":2,"updates":1,"accumulation":3}',
            'done', '2026-01-01', null),
        ('s', 'train-sft', 'shop', '{"order_weight":0.5,"accumulation":2}', 'done', '2026-01-01', null);
    insert into journals values ('t', 17);
    insert into optimal_rankings values ('l', ['b', 'c'], [0.7, 0.3]);
    insert into verdicts values
        ('cut', 'complete', 1, false, 'truncated', null, '2026-01-02'),
        ('cut', 'no_leak', 1, false, 'leaks_target', null, '2026-01-02'),
        ('cut', 'parsed', 1, true, null, null, '2026-01-02'),
        ('good', 'complete', 1, true, null, null, '2026-01-02'),
        ('good', 'parsed', 1, true, null, null, '2026-01-02'),
        ('other', 'parsed', 1, true, null, null, '2026-01-02');
    create temp table judged as
    select trace_id,
        md5_number_lower(string_agg(concat_ws(chr(31), rule, passed, reason), chr(30) order by rule)) as outcome,
        coalesce(list(rule order by rule) filter (passed), []) as passed_rules,
        coalesce(list(rule order by rule) filter (not passed), []) as failed_rules,
        coalesce(list(coalesce(reason, '') order by rule) filter (not passed), []) as reasons
    from verdicts group by trace_id;
    insert into outcomes select outcome, passed_rules, failed_rules, reasons from judged;
    insert into traces
    select trace_id, 'p', 't', 'evidence', 'm', 0.5, 10, 0, 'x', null, ['c', 'b'], 'stop', null, null, null, null, null,
        '2026-01-02', 1, 'l', 'shop', 'train', 'u', 'rerank.v1', 'rejection', 'c', 2, 1, false, outcome
    from judged;
    drop table judged;
    insert into evaluations values
        ('e', 'shop', 'test', 'bayes_optimal', 'mrr', 0.5, null, null, 9),
        ('e', 'shop', 'test', 'evidence.v1', 'position_bias_same_first', 0.5, null, null, 9);
    insert into evaluation_differences values
        ('e', 'shop', 'test', 'lambdamart', 'bayes_optimal', 'ndcg', 0.1, 0, 1, 9);
    insert into evaluation_slices values
        ('e', 'shop', 'test', 'bayes_optimal', 'pre_rank', '1', 'mrr', 0.1, 0, 1, 9);
    insert into rankings values ('e', 'l', 'bayes_optimal', ['b'], true);
    insert into sid_measures values ('shop', 'v', 'neighbours_kept', 1, 0.1), ('shop', 'v', 'unexplained', 1, 0.2);
"""


def migrate_to(session: Session, name: str, last: int) -> None:
    session.execute("create_schema_migrations")
    session.execute("create_schema_state")
    for step in load_migrations(name)[:last]:
        session.connection.execute(step.text)
        session.execute("record_migration", number=step.number, name=step.name)
    session.execute("record_schema_state", state=f"{last}-of-before")


@pytest.fixture
def migrated(tmp_path: Path) -> Store:
    with database.connect(tmp_path / "labels.duckdb", AccessMode.WRITE) as session:
        migrate_to(session, "labels", 2)
        session.connection.execute("insert into label_seats values ('q', 'cut', 'ann', '2026-01-03')")
    with database.connect(tmp_path / "store.duckdb", AccessMode.WRITE) as session:
        migrate_to(session, "main", 5)
        session.connection.execute(FORMER)
    return Store.open(tmp_path)


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_traces_keep_what_rules_said_of_them(migrated: Store) -> None:
    rows = fetch(
        migrated,
        "select trace_id, passed_rules, failed_rules, reasons from traces join outcomes using (outcome) order by 1",
    )
    assert rows == [
        ("cut", ["parsed"], ["no_leak", "not_truncated"], ["leaks_target", "truncated"]),
        ("good", ["not_truncated", "parsed"], [], []),
        ("other", ["parsed"], [], []),
    ]
    assert fetch(migrated, "select count(*) from outcomes") == [(3,)]
    assert fetch(migrated, "select count(*) from verdicts where rule = 'complete'") == [(0,)]
    assert fetch(migrated, "select distinct predicted_rank, ruleset, ruleset_version from traces") == [
        (1, "answered", 1)
    ]


def test_an_outcome_has_the_name_that_judging_again_would_give_it(migrated: Store) -> None:
    """Or traces of the same verdicts would lie in two outcomes."""
    again = fetch(
        migrated,
        "select trace_id, md5_number_lower(string_agg(concat_ws(chr(31), rule, passed, reason), chr(30) order by rule))"
        " from verdicts group by trace_id order by 1",
    )
    assert again == fetch(migrated, "select trace_id, outcome from traces order by 1")


def test_all_else_has_its_new_name(migrated: Store) -> None:
    assert fetch(migrated, "select run_id, committed_offset from journals") == [("t", 17)]
    assert fetch(migrated, "select list_id, item_ids from oracle_rankings") == [("l", ["b", "c"])]
    assert fetch(migrated, "select ranker, metric from evaluations order by 1") == [
        ("evidence.v1", "top1_consistency"),
        ("oracle", "mrr"),
    ]
    for statement in (
        "select other from evaluation_differences",
        "select ranker from evaluation_slices",
        "select ranker from rankings",
    ):
        assert fetch(migrated, statement) == [("oracle",)]
    assert fetch(migrated, "select measure from sid_measures order by 1") == [
        ("neighbour_recall",),
        ("reconstruction_error",),
    ]
    assert fetch(migrated, "select annotator from labels.label_assignments where assigned_at = '2026-01-03'") == [
        ("ann",)
    ]
    settings = {run: orjson.loads(text) for run, text in fetch(migrated, "select run_id, settings::varchar from runs")}
    assert settings == {
        "t": {"ruleset": "all", "num_accepted": 2},
        "d": {
            "reward": "format_gated",
            "format_weight": 0.1,
            "num_generations": 4,
            "prompts_per_batch": 2,
            "num_iterations": 1,
            "gradient_accumulation_steps": 3,
        },
        "s": {"answer_weight": 0.5, "gradient_accumulation_steps": 2},
    }
