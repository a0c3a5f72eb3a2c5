from decimal import Decimal
from typing import Any

import pytest

from curate.datasets.values import split_categories, to_categories, to_identifier, to_number, to_rating, to_text


@pytest.mark.parametrize(
    ("value", "identifier"),
    [
        *((5, "5"), (5.0, "5"), ("5.0", "5"), ("5", "5"), (Decimal("5.00"), "5"), (-1.0, "-1")),
        *(("0108775010", "0108775010"), ("007.0", "007"), ("1.5", "1.5"), ("v1.0", "v1.0"), ("1e5x", "1e5x")),
        *((b"B1", "B1"), (b"\xff\xfe", "fffe"), (" a ", "a"), (10**30, "1" + "0" * 30)),
    ],
)
def test_an_identifier_is_the_same_whatever_its_type(value: Any, identifier: str) -> None:
    assert to_identifier(value) == identifier


@pytest.mark.parametrize(
    "value", ["7.656119797098248e+16", 7.656119797098248e16, 1.5, float("nan"), None, "", True, [], "nan", "None"]
)
def test_what_identifies_nothing_for_certain_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"lost digits|must|missing value"):
        to_identifier(value)


@pytest.mark.parametrize(
    "value",
    [
        *("", "  ", "None", "nan", "NaN", "N/A", "#N/A", "<NA>", "null", "unknown", "Unknown", "(unknown)", "-", "--"),
        *("(no genres listed)", "\\N", "undefined", "n.a.", "[]", "Uncategorized", float("nan"), None),
    ],
)
def test_placeholders_mean_nothing(value: Any) -> None:
    assert to_text(value) is None
    assert to_categories(value) == []
    assert to_categories([value, "A"]) == ["A"]


@pytest.mark.parametrize("text", ["Nothing but Thieves", "The Unknown Soldier", "Null Island", "Nan Goldin", "0"])
def test_words_within_a_title_are_words(text: str) -> None:
    assert to_text(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("Salt &amp;amp; Pepper", "Salt & Pepper"),
        ("<b>Soft</b> Soap<br/>100 ml", "Soft Soap 100 ml"),
        ("&lt;b&gt;Soft&lt;/b&gt; Soap", "Soft Soap"),
        ('<span class="a-size">Soap</span>', "Soap"),
        ("<script>var a = '<b>';</script>Soap", "Soap"),
        # Signs that are no HTML stay.
        ("I <3 Soap", "I <3 Soap"),
        ("a < b > c", "a < b > c"),
        ("Album <Deluxe Edition>", "Album <Deluxe Edition>"),
        ("AT&T", "AT&T"),
        ("Two\tparts", "Two\tparts"),
    ],
)
def test_html_leaves_titles(text: str, clean: str) -> None:
    assert to_text(text) == clean


@pytest.mark.parametrize(
    ("value", "categories"),
    [
        ("a > b > c", ["a", "b", "c"]),
        ("a|b", ["a", "b"]),
        ("Clothing, Shoes & Jewelry", ["Clothing, Shoes & Jewelry"]),
        ("['Action', \"Children's\"]", ["Action", "Children's"]),
        ('["Action", "Crime"]', ["Action", "Crime"]),
        ("['Action' 'Crime']", ["Action", "Crime"]),
        ("[Action, Crime]", ["Action", "Crime"]),
        ("[27, 9]", ["27", "9"]),
        ("[{'id': 16, 'name': 'Animation'}]", ["Animation"]),
        ("Arts &amp; Crafts > Paint", ["Arts & Crafts", "Paint"]),
        (["A", None, "B", float("nan")], ["A", "B"]),
        ([["A"], ["A", "B"]], ["A", "B"]),
        ([{"name": "A"}], ["A"]),
        (7, ["7"]),
    ],
)
def test_categories_are_read_however_they_are_written(value: Any, categories: list[str]) -> None:
    assert to_categories(value) == categories


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Animation Children's Comedy", ["Animation", "Children's", "Comedy"]),
        ("'Action', 'Sci-Fi & Fantasy'", ["Action", "Sci-Fi & Fantasy"]),
        ("'Action' 'Film noir'", ["Action", "Film noir"]),
        ("Action, Film noir", ["Action", "Film noir"]),
        ("['Action', 'Film noir']", ["Action", "Film noir"]),
        ("Beauty > Hair Care", ["Beauty", "Hair Care"]),
    ],
)
def test_a_sequence_of_tokens_is_separated_as_its_file_has_it(text: str, parts: list[str]) -> None:
    assert to_categories(split_categories(text, ", ")) == parts


def test_an_object_is_called_by_its_name() -> None:
    assert to_text({"name": "Acme", "id": 1}) == "Acme"
    assert to_text({"id": 1}) is None


def test_ratings_are_decimals_too_and_need_be_none() -> None:
    assert to_rating(Decimal("4.50")) == to_rating("4.5") == 4.5
    for nothing in (float("nan"), "nan", "None", "N/A", "", None):
        assert to_rating(nothing) is None
    for value in (float("nan"), "inf", "good", True):
        with pytest.raises(ValueError, match="must be a number"):
            to_number(value)
