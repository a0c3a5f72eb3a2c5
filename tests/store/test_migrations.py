from pathlib import Path

import pytest

from store import Store, StoreError, database
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
        session.connection.execute("create or replace view policies as select 'none' as policy, []::varchar[] as rules")
        session.execute("clear_schema_state")
        session.execute("record_schema_state", state="1-of-older-views")
    Store.open(store.folder)
    with store.reading() as session:
        assert ("strict",) in session.rows("policy_names")


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = load_migrations("labels")
    broken = steps[0]._replace(text=steps[0].text + "; select * from no_such_table")
    monkeypatch.setattr("store.migrations.load_migrations", lambda _: [broken])
    path = tmp_path / "labels.duckdb"
    with pytest.raises(Exception, match="no_such_table"), database.connect(path, read_only=False) as session:
        migrate(session, "labels")
    with database.connect(path, read_only=True) as session:
        assert session.connection.execute("select count(*) from duckdb_tables()").fetchone() == (0,)
