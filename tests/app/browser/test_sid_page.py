from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from store import Store


def test_the_page_shows_a_version_and_the_path_to_an_item(open_page: Callable[..., AppTest], traced: Store) -> None:
    page = open_page("sid_page", "draw_sids")
    assert not page.exception
    assert {metric.label: metric.value for metric in page.metric}["Unique"] == "100.00%"
    with traced.reading() as session:
        ((item,),) = session.connection.execute("select item_id from items limit 1").fetchall()
    page.text_input(key="sids-item").set_value(item).run()
    assert not page.exception
    path = page.dataframe[-1].value
    assert path["items"].to_list()[-1] == 1
    page.text_input(key="sids-item").set_value("no such thing").run()
    assert "No item matches" in page.info[0].value


def test_a_store_without_ids_says_how_to_make_them(open_page: Callable[..., AppTest], traced: Store) -> None:
    with traced.writing() as session:
        session.connection.execute("delete from sid_versions")
    page = open_page("sid_page", "draw_sids")
    assert not page.exception
    assert "gr2 sids NAME" in page.info[0].value
