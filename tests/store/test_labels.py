from store import Store
from store.labels import Label, put_label


def current(store: Store) -> list[tuple[str, str, str]]:
    with store.reading() as session:
        return session.connection.execute(
            "select trace_id, annotator, label from labels_current order by all"
        ).fetchall()


def test_the_last_word_of_each_annotator_counts_and_undo_takes_it_back(store: Store) -> None:
    put_label(store, "t1", "ann", Label.GOOD, tags=["clear"], note="fine", seconds=3.5)
    put_label(store, "t1", "ann", Label.BAD)
    put_label(store, "t1", "bob", Label.GOOD)
    put_label(store, "t2", "bob", Label.UNSURE)
    put_label(store, "t2", "bob", Label.UNDO)
    assert current(store) == [("t1", "ann", "bad"), ("t1", "bob", "good")]


def test_events_are_only_ever_appended(store: Store) -> None:
    events = {put_label(store, "t1", "ann", label) for label in (Label.GOOD, Label.UNDO, Label.BAD)}
    assert len(events) == 3
    with store.reading() as session:
        assert session.connection.execute("select count(*) from labels.label_events").fetchone() == (3,)
