from curate.traces.tasks import load_tasks, locate_lists, places_of
from store import Store


def test_tasks_are_read_from_their_own_part_of_the_store_alone(shop: Store) -> None:
    with shop.reading() as session:
        lists = session.connection.sql("select list_id from candidate_lists order by list_id limit 60").pl()
        ((sid_version,),) = session.connection.execute("select sid_version from sid_versions").fetchall()
        located = locate_lists(session, lists)
        assert sorted(located["list_id"]) == lists["list_id"].to_list()
        assert located["place"].is_sorted()
        near, far = located.head(20), located.tail(20)
        everywhere = load_tasks(session, "shop", sid_version, near["list_id"].to_list())
        assert len(everywhere) == 20
        assert load_tasks(session, "shop", sid_version, near["list_id"].to_list(), places_of(near)) == everywhere
        # What lies elsewhere is not looked at.
        assert load_tasks(session, "shop", sid_version, near["list_id"].to_list(), places_of(far)) == {}


def test_lists_without_evidence_have_places_too(shop: Store) -> None:
    with shop.writing() as session:
        session.connection.execute("delete from evidence")
    with shop.reading() as session:
        lists = session.connection.sql("select list_id from candidate_lists limit 5").pl()
        located = locate_lists(session, lists)
        ((sid_version,),) = session.connection.execute("select sid_version from sid_versions").fetchall()
        tasks = load_tasks(session, "shop", sid_version, lists["list_id"].to_list(), places_of(located))
    assert tasks.keys() == set(lists["list_id"])
    assert all(task.task.candidates[0].evidence.links == () for task in tasks.values() if task.task.candidates)
