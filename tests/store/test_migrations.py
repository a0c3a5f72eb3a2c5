import hashlib
from pathlib import Path

import pytest

from store import Store, StoreError, database
from store.file_locks import AccessMode
from store.migrations import current_state, load_migrations, migrate, schema_state


def test_opening_twice_changes_nothing(store: Store) -> None:
    with store.reading() as session:
        before = session.connection.execute("from schema_migrations").fetchall()
    Store.open(store.folder)
    with store.reading() as session:
        assert session.connection.execute("from schema_migrations").fetchall() == before
        assert current_state(session) == schema_state("main")


def test_a_newer_store_is_refused(store: Store) -> None:
    with store.writing() as session:
        session.execute("record_migration", number=999, name="from_the_future")
        session.execute("clear_schema_state")
        session.execute("record_schema_state", state="999-x")
    with pytest.raises(StoreError, match="install a newer gr2"):
        Store.open(store.folder)


def test_changed_views_are_replaced_at_the_next_opening(store: Store) -> None:
    with store.writing() as session:
        session.connection.execute(
            "create or replace view rulesets_current as select 'none' as name, 1 as version, []::varchar[] as rules"
        )
        session.execute("clear_schema_state")
        session.execute("record_schema_state", state="1-of-older-views")
    Store.open(store.folder)
    with store.reading() as session:
        assert ("strict",) in session.rows("ruleset_names")


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = load_migrations("labels")
    broken = steps[0]._replace(text=steps[0].text + "; select * from no_such_table")
    monkeypatch.setattr("store.migrations.load_migrations", lambda _: [broken])
    path = tmp_path / "labels.duckdb"
    with pytest.raises(Exception, match="no_such_table"), database.connect(path, AccessMode.WRITE) as session:
        migrate(session, "labels")
    with database.connect(path, AccessMode.READ) as session:
        assert session.connection.execute("select count(*) from duckdb_tables()").fetchone() == (0,)


def test_traces_of_an_older_store_learn_their_lists_and_outcomes(tmp_path: Path) -> None:
    for name, last in (("labels", 1), ("main", 4)):
        path = tmp_path / ("store.duckdb" if name == "main" else "labels.duckdb")
        with database.connect(path, AccessMode.WRITE) as session:
            session.execute("create_schema_migrations")
            session.execute("create_schema_state")
            for step in load_migrations(name)[:last]:
                session.connection.execute(step.text)
                session.execute("record_migration", number=step.number, name=step.name)
            session.execute("record_schema_state", state=f"{last}-of-before")
            if name == "labels":
                session.connection.execute(
                    "insert into label_events values ('e', 'judged', 'ann', 'good', [], null, 1.0, '2026-01-03')"
                )
                continue
            session.connection.execute(
                "insert into candidate_lists values"
                " ('l', 'shop', 'valid', 'u', 5, ['a'], 'c', ['b', 'c'], [2, 1], 2, 'cooccurrence.v1', null)"
            )
            session.connection.execute(
                "insert into prompts values ('p', 'l', 'shop', 'rq', 'rerank.v1', 'x', 'rejection', true, '[]')"
            )
            for trace, ranking, error, day in (
                ("failed", None, "gave up", 2),
                ("judged", ["c", "b"], None, 1),
                ("copied", ["b", "c"], None, 3),
            ):
                session.connection.execute(
                    "insert into traces values ($1, 'p', 'r', 'evidence', 'm', 0.5, 10, 0, if($2 is null, 'x', null),"
                    " null, $3, 'stop', null, null, null, null, $2, make_date(2026, 1, $4))",
                    [trace, error, ranking, day],
                )
            session.connection.execute(
                "insert into verdicts values ('judged', 'parsed', 1, true, null, null),"
                " ('judged', 'permutation', 1, false, 'not_a_permutation', 'old'),"
                " ('judged', 'permutation', 2, true, null, null), ('judged', 'target_first', 1, true, null, null),"
                " ('copied', 'parsed', 1, true, null, null), ('copied', 'not_copied', 1, false, 'order_copied', null)"
            )
    store = Store.open(tmp_path)
    with store.reading() as session:
        rows = session.connection.execute(
            "select trace_id, split, target_rank, predicted_rank, copied, accepted, failed_rules, reasons"
            " from trace_browser order by created_at"
        ).fetchall()
        assert rows == [
            ("judged", "valid", 2, 1, False, True, [], []),
            ("failed", "valid", 2, None, None, False, None, None),
            ("copied", "valid", 2, 2, True, False, ["not_copied"], ["order_copied"]),
        ]
        assert session.connection.execute("select trace_id, created_at::date::varchar from verdicts_current").fetchall()
        assert session.connection.execute("select count(*) from verdicts").fetchone() == (6,)
        assert session.connection.execute("select annotator, queue_id from labels_current").fetchall() == [
            ("ann", None)
        ]
        assert session.connection.execute("select count(distinct group_id) from traces").fetchone() == (1,)


# What was released stays as it is, since stores have run it: a change gets a new number. Add each new migration here.
RELEASED = {
    "main/0001_initial.sql": "72c198828893c8a286c77031152b3e9c4754d726b5db89549a6c83e022108b7d",
    "main/0002_sid_measures.sql": "3b7247ebb728c1cc3e4fdbca2bf2cc9012be808b8d448302503cf757fea61526",
    "main/0003_rankings.sql": "2ff56795a62d30bb7ad0df321d88f2307388fe9bfa35d99ce6ede0f433aaf8e8",
    "main/0004_run_metrics.sql": "ffee64469678ce791486932406e4e866272213d44ea7a1f22484bddb8a07ffe2",
    "main/0005_traces_know_their_lists.sql": "e142cfd9817b1f4367a4fa77e175aff6d5ed4599540a5d9285434afff4c2f0f4",
    "main/0006_names_of_the_field.sql": "c77ec72b0ca80840760e4e6901be57a110d48b9f6c761080e146a7da39f8292a",
    "main/0007_rulesets.sql": "9a039faee22af888b0eca0936a8a3677935620a359070dcdb6f2ee834621713e",
    "main/0008_error_kinds.sql": "889b98e2776c27c2b09865d1814abf22ab74e7319a8252d9c618875e3f2cf30f",
    "main/0009_similarities.sql": "312d53f09439a4fbbd96d15d99a68227e205c2d7e5cc913099d6feaa67cecf5c",
    "main/0010_rollouts.sql": "44250004363d318ad15079c95f8591170dc401e020dd8dbced77e07b5d389a51",
    "labels/0001_initial.sql": "df7d714dd5ef0b8e725c4a2d2054dad411b9920d7e08223e1958e0accfef96f1",
    "labels/0002_queues.sql": "180c15c2247fa78ec7bf072df25aaecb9604ae0ab7d082238111d080d64a3ba1",
    "labels/0003_names_of_the_field.sql": "00b2a639d4680f482c5e422e1f6775ce5fbad9eb2563d6eb11d0794115b63f38",
}


def test_a_migration_that_was_released_is_what_it_was() -> None:
    found = {
        f"{database}/{step.number:04}_{step.name}.sql": hashlib.sha256(step.text.encode()).hexdigest()
        for database in ("main", "labels")
        for step in load_migrations(database)
    }
    assert {name: found.get(name) for name in RELEASED} == RELEASED
