import io

import pytest
from rich.console import Console

from app import progress as views
from app.progress import TerminalProgress, TimeLeft, describe, status_line
from curate.traces.sampling import Progress
from store.progress import Counted, Notice


class Clock:
    """Seconds that pass when a test says so."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(views, "time", clock)
    return clock


def a_progress(**counts: object) -> Progress:
    progress = Progress("run", lists=10, prompts=10)
    for name, value in counts.items():
        setattr(progress, name, value)
    return progress


def test_one_line_tells_acceptance_tokens_cost_and_failures() -> None:
    line = describe(
        a_progress(attempts=8, accepted=2, failed=1, prompt_tokens=1500, completion_tokens=500, cost_usd=1.234)
    )
    for part in ("accepted 25.0%", "traces/s", "1 failed", "2,000 tokens", "$1.23"):
        assert part in line


def test_what_is_not_known_is_not_told() -> None:
    line = describe(a_progress())
    assert "tokens" not in line
    assert "$" not in line
    assert "stopping" not in line


def test_stopping_tells_what_is_under_way() -> None:
    assert "stopping: waiting for 3 answers" in describe(a_progress(stopping=True, in_flight=3))


def test_a_terminal_shows_a_bar_with_time_left() -> None:
    screen = io.StringIO()
    with TerminalProgress(Console(file=screen, force_terminal=True, width=140)) as view:
        view.update(a_progress(done=4, attempts=4))
    assert "4/10" in screen.getvalue()
    assert "ETA" in screen.getvalue()


def test_time_left_follows_from_the_speed_so_far(clock: Clock) -> None:
    left = TimeLeft()
    assert left.describe(Counted("10 of 100", 10, 100)) == "10 of 100"
    clock.now = 4.0
    assert left.describe(Counted("30 of 100", 30, 100)) == "30 of 100, 14 s left"
    clock.now = 600.0
    assert left.describe(Counted("40 of 100", 40, 100)) == "40 of 100, 20 min left"
    assert left.describe(Counted("100 of 100", 100, 100)) == "100 of 100"


def test_other_work_has_a_speed_of_its_own(clock: Clock) -> None:
    left = TimeLeft()
    left.describe(Counted("5 of 10", 5, 10))
    clock.now = 100.0
    assert left.describe(Counted("5 of 20", 5, 20)) == "5 of 20"
    clock.now = 101.0
    assert left.describe(Counted("10 of 20", 10, 20)) == "10 of 20, 2 s left"
    assert left.describe(Counted("6 of 20", 6, 20)) == "6 of 20"
    clock.now = 102.0
    assert left.describe(Counted("13 of 20", 13, 20)) == "13 of 20, 1 s left"


def test_what_does_not_count_is_shown_as_it_is() -> None:
    assert TimeLeft().describe("reading lists") == "reading lists"


def test_without_a_terminal_there_is_a_line_every_few_seconds(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with status_line("SFT") as on_progress:
        for second in range(1, 12):
            clock.now = float(second)
            on_progress(Counted(f"step {second} of 11 [b]", second, 11))
    assert capsys.readouterr().err.splitlines() == [
        "SFT: step 5 of 11 [b], 6 s left",
        "SFT: step 10 of 11 [b], 1 s left",
    ]


def test_a_notice_is_printed_at_once_and_stays(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with status_line("RL") as on_progress:
        clock.now = 1.0
        on_progress(Notice("16 lists [b]"))
        on_progress("step 1")
    assert capsys.readouterr().err.splitlines() == ["RL: 16 lists [b]"]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with status_line("RL") as on_progress:
        on_progress(Notice("16 lists [b]"))
    # A line of its own, where the live line is erased.
    assert "RL: 16 lists [b]\n" in capsys.readouterr().err


def test_a_terminal_shows_the_newest_message_and_leaves_nothing_behind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with status_line("SFT") as on_progress:
        on_progress("step 1 of 11 [b]")
    assert "SFT: step 1 of 11 [b]" in capsys.readouterr().err


def test_a_busy_store_is_told_with_the_answers_that_wait() -> None:
    assert "store busy, 1,200 answers waiting" in describe(a_progress(busy=True, waiting=1200))
    assert "busy" not in describe(a_progress(waiting=1200))
