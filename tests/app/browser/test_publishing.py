from collections.abc import Callable

from streamlit.testing.v1 import AppTest

from app.browser.snapshot_page import PUBLISH
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import load_snapshots, preview, publish
from curate.traces.filter import TraceFilter
from store import Store

Open = Callable[..., AppTest]


def run(page: AppTest) -> AppTest:
    page.run()
    assert not page.exception
    return page


def texts(page: AppTest) -> list[str]:
    return [code.value for code in page.code]


def open_publishing(open_page: Open, **query: str) -> AppTest:
    page = open_page("snapshot_page", "draw_snapshots", snapshots=PUBLISH, **query)
    assert not page.exception
    return page


def click(page: AppTest, key: str) -> AppTest:
    page.button(key=key).click()
    return run(page)


def test_the_filter_is_previewed_and_published_and_the_same_again_is_the_same(open_page: Open, traced: Store) -> None:
    chosen = TraceFilter(copied=False, teacher="evidence", passes="strict")
    page = open_publishing(open_page, **chosen.to_query())
    assert page.selectbox(key="snapshot-ruleset-strict").value == "strict"
    page.text_input(key="snapshot-name").set_value("moved")
    click(page, "preview")
    settings = SnapshotSettings("shop", ruleset="strict", traces=chosen)
    rows = preview(traced, settings).counts.rows
    assert page.metric[0].value == f"{rows:,}"
    assert len(page.json) == 3
    assert load_snapshots(traced).height == 0
    click(page, "publish")
    assert page.success[0].value == "Published."
    (done,) = load_snapshots(traced).rows(named=True)
    assert (done["name"], done["rows"]) == ("moved", rows)
    assert texts(page)[-1] == f"moved@{done['version']}"
    assert publish(traced, "moved", settings).version == done["version"]
    click(page, "publish")
    assert "published before" in page.info[0].value
    assert load_snapshots(traced).height == 1


def test_another_selection_wants_another_preview(open_page: Open) -> None:
    page = click(open_publishing(open_page), "preview")
    assert any(button.key == "publish" for button in page.button)
    page.selectbox(key="snapshot-kind").select("midtrain")
    assert not any(button.key == "publish" for button in run(page).button)
    click(page, "preview")
    assert page.dataframe[0].value["task"].to_list() == ["caption", "next_item", "persona", "next_item"]


def test_refusals_are_lines_and_publish_nothing(open_page: Open, traced: Store) -> None:
    page = click(open_publishing(open_page, user_id="nobody"), "preview")
    assert page.button(key="publish").disabled
    assert "no trace of 'shop' is accepted" in texts(page)[-1]
    page = open_publishing(open_page, split="train")
    page.multiselect(key="snapshot-splits").set_value(["valid"])
    assert "has splits 'valid', but its filter has 'train'" in texts(run(page))[-1]
    page = open_publishing(open_page, copied="no")
    page.selectbox(key="snapshot-kind").select("dapo")
    assert "kind dapo is not made of traces" in texts(run(page))[-1]
    page = open_publishing(open_page)
    page.text_input(key="snapshot-name").set_value("../x")
    click(click(page, "preview"), "publish")
    assert "'../x' cannot name a snapshot" in texts(page)[-1]
    page.multiselect(key="snapshot-splits").set_value([])
    click(page, "preview")
    assert "no trace of 'shop'" in texts(page)[-1]
    assert load_snapshots(traced).height == 0
