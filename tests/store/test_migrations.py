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
