from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.browser.snapshot_page import change_table, list_facts
from curate.review.trace_pages import find_traces
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import SnapshotDiff, publish
from curate.traces.filter import TraceFilter
from store import Store
from store.labels import Label, put_label
from store.snapshots import Snapshot, read_split

Open = Callable[..., AppTest]


def open_snapshots(open_page: Open, **query: str) -> AppTest:
    page = open_page("snapshot_page", "draw_snapshots", **query)
    assert not page.exception
    return page


def run(page: AppTest) -> AppTest:
    page.run()
    assert not page.exception
    return page


def texts(page: AppTest) -> list[str]:
    return [code.value for code in page.code]


def reference(snapshot: Snapshot) -> str:
    return f"{snapshot.manifest['name']}@{snapshot.version}"


@pytest.fixture
def versions(traced: Store) -> list[Snapshot]:
    """Two versions of a snapshot; the second lacks a trace that somebody called bad."""
    first = publish(traced, "shop", SnapshotSettings("shop"))
    bad = find_traces(traced, TraceFilter(passes="paper")).rows["trace_id"][0]
    put_label(traced, bad, "ann", Label.BAD)
    return [first, publish(traced, "shop", SnapshotSettings("shop"))]


def test_without_a_snapshot_the_page_says_how_to_make_one(open_page: Open) -> None:
    assert "gr2 snapshot publish" in open_snapshots(open_page).info[0].value


def test_the_newest_snapshot_comes_first_and_a_link_opens_another(open_page: Open, versions: list[Snapshot]) -> None:
    first, second = versions
    page = open_snapshots(open_page)
    assert page.dataframe[0].value["version"].to_list() == [second.version, first.version]
    assert texts(page) == [reference(second)]
    assert '<td dir="auto">ruleset</td><td dir="auto">paper</td>' in "".join(
        element.proto.body for element in page.get("html")
    )
    page = open_snapshots(open_page, snapshot=reference(first))
    assert texts(page) == [reference(first)]
    assert page.metric[1].value == f"{first.manifest['splits']['train']['rows']:,}"
    for unknown in ("nope", "shop@zzz"):
        page = open_snapshots(open_page, snapshot=unknown)
        assert f"there is no snapshot '{unknown}'" in texts(page)[0]


def test_lineage_goes_from_the_data_set_to_the_version(open_page: Open, versions: list[Snapshot]) -> None:
    page = open_snapshots(open_page, part="Lineage")
    table = page.dataframe[1].value
    steps = table["step"].to_list()
    assert steps[:4] == ["dataset", "semantic IDs", "template", "teacher"]
    assert steps[-2:] == ["version", "this version"]
    assert table["what"].to_list()[-2:] == [snapshot.version for snapshot in versions]
    (run_link,) = table[table["step"] == "run"]["link"]
    assert run_link.startswith("/traces?run_id=trace-")


def test_files_card_and_code_are_shown_as_text(open_page: Open, versions: list[Snapshot]) -> None:
    files = open_snapshots(open_page, part="Files").dataframe[1].value
    assert dict(zip(files["file"], files["sha256"], strict=True)) == {
        file: facts["sha256"] for file, facts in versions[1].manifest["files"].items()
    }
    shown = texts(open_snapshots(open_page, part="Load"))
    assert f"load_dataset('{versions[1].path}', 'sft')" in shown[1]
    read: dict[str, Any] = {}
    exec(shown[2], read)
    expected = read_split(versions[1].path, "train")
    assert read["rows"].equals(expected)
    # What else lies in the folder is no part of the snapshot.
    foreign = versions[1].path / "data" / "train-00099-of-00100.parquet"
    expected.write_parquet(foreign)
    exec(shown[2], read)
    foreign.unlink()
    assert read["rows"].equals(expected)
    assert shown[3] == (versions[1].path / "README.md").read_text("utf-8").strip()


def test_verifying_finds_a_flipped_byte(open_page: Open, versions: list[Snapshot]) -> None:
    page = open_snapshots(open_page)
    key = f"verify-{reference(versions[1])}"
    page.button(key=key).click()
    assert "All 2 files are as published" in run(page).success[0].value
    file = next((versions[1].path / "data").iterdir())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    page.button(key=key).click()
    assert "The files differ from what was published" in run(page).error[0].value
    assert any("train-00000-of-00001.parquet was changed" in text for text in texts(page))


def test_a_changed_manifest_is_a_line(open_page: Open, versions: list[Snapshot]) -> None:
    manifest = versions[1].path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    page = open_snapshots(open_page)
    assert "manifest.json was changed" in texts(page)[0]
    assert page.dataframe[0].value.shape[0] == 2


def test_versions_are_compared_row_by_row(open_page: Open, versions: list[Snapshot], traced: Store) -> None:
    page = open_snapshots(open_page, part="Compare")
    page.selectbox(key="compared").select(reference(versions[0]))
    run(page)
    assert [figure.value for figure in page.metric[-3:]] == ["0", "1", "0"]
    row = page.dataframe[1].value.iloc[0]
    assert row["change"] == "removed"
    assert row["link"] == f"/traces?trace={row['trace_id']}"


def test_long_differences_are_cut_and_keys_without_traces_have_no_link() -> None:
    changes = SnapshotDiff(added=[str(number) for number in range(2_000)], removed=["a&b"], changed=[])
    assert change_table(changes, "list_id").filter(change="added").height == 500
    assert change_table(changes, "list_id")["link"].to_list()[-1] == "/traces?list_id=a%26b"
    assert set(change_table(changes, "row_id")["link"]) == {""}


def test_a_manifest_is_told_in_lines() -> None:
    facts: dict[str, Any] = {
        "rules": [{"rule": "parsed", "version": 1}],
        "splits": ["train", "valid"],
        "template": None,
        "traces": {"label": "good"},
    }
    assert list(list_facts(facts)) == [
        ("rules", "rule parsed, version 1"),
        ("splits", "train, valid"),
        ("traces.label", "good"),
    ]
