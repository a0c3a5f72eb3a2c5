import pytest

from app.options import print_table, show


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (12345, "12,345"),
        (0.5, "0.5000"),
        ("plain", "plain"),
        ("a\x1b[31m\nb\u202e", r"a\x1b[31m\nb\u202e"),
        (["x"], "['x']"),
    ],
)
def test_values_become_one_printable_line(value: object, text: str) -> None:
    assert show(value) == text


def test_a_table_has_its_title_and_no_trailing_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "count"), [("[bold]not markup[/bold]", 3)], title="Things")
    out = capsys.readouterr().out
    assert out.startswith("Things\n")
    assert "[bold]not markup[/bold]" in out
    assert all(line == line.rstrip() for line in out.splitlines())
