import io

from rich.console import Console

from app.progress import TerminalProgress, describe
from curate.traces.sampling import Progress


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
    assert "stopping: 3 answers under way" in describe(a_progress(stopping=True, in_flight=3))


def test_a_terminal_shows_a_bar_with_time_left() -> None:
    screen = io.StringIO()
    with TerminalProgress(Console(file=screen, force_terminal=True, width=140)) as view:
        view.update(a_progress(done=4, attempts=4))
    assert "4/10" in screen.getvalue()
    assert "ETA" in screen.getvalue()
