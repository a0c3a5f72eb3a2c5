from html.parser import HTMLParser
from urllib.parse import unquote
from xml.etree import ElementTree

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.browser.trace_html import WAYS, fields_html, find_moves, order_html, reasoning_html, table_html
from curate.review.trace_text import Part, Stretch
from curate.traces.tasks import ListedTask
from prompts.tasks import Candidate, RerankTask, ShownItem

HOSTILE = "</span></li></div></table><script>alert(\"x\")</script><img src=x onerror='alert(1)'>&lt;"


class Reader(HTMLParser):
    """What a browser would make of it: elements with their attributes, and words."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html.rsplit("</style>", maxsplit=1)[-1])
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def ways(self) -> list[str | None]:
        return [attributes["class"] for tag, attributes in self.elements if tag == "li" and attributes["class"] in WAYS]


def listed(*titles: str, target: int = 0) -> ListedTask:
    items = [ShownItem(f"i{number}", f"sid {number}", title) for number, title in enumerate(titles)]
    return ListedTask("list", RerankTask((), tuple(Candidate(item) for item in items)), f"i{target}")


def lines(html: str) -> list[tuple[float, float, str]]:
    (source,) = [attributes["src"] for tag, attributes in Reader(html).elements if tag == "img"]
    assert source is not None
    picture = ElementTree.fromstring(unquote(source.removeprefix("data:image/svg+xml,")))
    return [(float(line.attrib["y1"]), float(line.attrib["y2"]), line.attrib["stroke"]) for line in picture]


def test_moves_are_ranks_before_and_after() -> None:
    moves = find_moves(listed("a", "b", "c", "d", target=2), ["i2", "i1", "i0"])
    assert [(move.before, move.after, move.way, move.arrow) for move in moves] == [
        (1, 3, "down", "▼ 2"),
        (2, 2, "same", ""),
        (3, 1, "target", "▲ 2"),
        (4, None, "same", ""),
    ]


def test_an_order_is_two_columns_with_lines_between() -> None:
    html = order_html(find_moves(listed("a", "b", "c", target=2), ["i2", "i0", "i1"]))
    assert Reader(html).words == [
        *("before", "sid 0", "a", "1", "sid 1", "b", "2", "sid 2", "★ c", "3"),
        *("after", "1", "▲ 2", "★ c", "2", "▼ 1", "a", "3", "▼ 1", "b"),
    ]
    assert Reader(html).ways() == ["down", "down", "target", "target", "down", "down"]
    assert lines(html) == [(2.5, 0.5, WAYS["target"]), (0.5, 1.5, WAYS["down"]), (1.5, 2.5, WAYS["down"])]


def test_what_an_order_repeats_has_one_place_and_what_it_leaves_out_has_none() -> None:
    html = order_html(find_moves(listed("a", "b", "c"), ["i1", "i1", "i2"]))
    assert [(before, after) for before, after, _ in lines(html)] == [(1.5, 0.5), (2.5, 1.5)]
    # Its rank is told as it is.
    assert Reader(html).words[-5:] == ["1", "▲ 1", "b", "3", "c"]


@pytest.mark.parametrize("ranking", [None, [], ["elsewhere"]])
def test_without_an_order_the_candidates_stand_alone(ranking: list[str] | None) -> None:
    reader = Reader(order_html(find_moves(listed("a", "b"), ranking)))
    assert reader.words == ["before", "sid 0", "★ a", "1", "sid 1", "b", "2"]
    assert "img" not in [tag for tag, _ in reader.elements]


@given(st.text(min_size=1) | st.just(HOSTILE))
def test_names_cells_and_reasonings_are_text(text: str) -> None:
    calm = "calm"
    for draw in (
        lambda words: order_html(find_moves(listed(words), ["i0"])),
        lambda words: table_html(
            pl.DataFrame({"item": [words], "other": [None]}, schema_overrides={"other": pl.Int64})
        ),
        lambda words: fields_html({"teacher": words, words: 1}),
        lambda words: reasoning_html([Stretch(Part.ITEM, "sid", words), Stretch(Part.FOREIGN, words)], checked=True),
    ):
        shown, expected = Reader(draw(text)), Reader(draw(calm))
        assert [tag for tag, _ in shown.elements] == [tag for tag, _ in expected.elements]
        assert "".join(shown.words) == "".join(expected.words).replace(calm, text)


def test_a_table_has_heads_and_leaves_null_empty() -> None:
    html = table_html(pl.DataFrame({"rule": ["cites", "complete"], "why not": [None, 3]}))
    assert Reader(html).words == ["rule", "why not", "cites", "complete", "3"]
    assert html.count("<tr>") == 3
    assert html.count("<td") == 4


def test_claims_and_foreign_ids_are_marked_where_the_store_may_speak() -> None:
    stretches = [
        Stretch(Part.ITEM, "sid 1", "soap", claim=True),
        Stretch(Part.WORDS, " 3 times", claim=True, counted=3),
        Stretch(Part.WORDS, " 2 times", claim=False, counted=4),
        Stretch(Part.FOREIGN, "sid 9"),
    ]
    checked, blind = (reasoning_html(stretches, checked=checked) for checked in (True, False))
    assert Reader(checked).words == ["soap", " 3 times", "✓", " 2 times", " ✗ the store counts 4", "sid 9"]
    assert [attributes["class"] for _, attributes in Reader(checked).elements[1:]] == [
        *("item true", "true", "says", "false", "says", "foreign"),
    ]
    assert Reader(blind).words == ["soap", " 3 times", " 2 times", "sid 9"]
    assert [attributes["class"] for _, attributes in Reader(blind).elements[1:]] == ["item", "", "", "item"]
