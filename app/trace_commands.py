"""Commands that make and judge traces: trace, verify, status."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands import Given, OptionsOf, add_command
from app.options import DEFAULT_STORE, Name, StoreOption, describe_counts, open_store, print_table, read_pairs, say
from app.ruleset_commands import say_unjudged
from curate.traces.settings import RequestSettings, SamplingSettings
from curate.traces.teachers.settings import OpenAISettings
from store.errors import TeacherError

if TYPE_CHECKING:
    from curate.traces.sampling import Progress
    from curate.traces.verification import VerifySummary


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    for command in (trace, verify, status):
        add_command(cli, command)


def trace(
    name: Name,
    sampling: Annotated[Given, OptionsOf(SamplingSettings)],
    endpoint: Annotated[Given, OptionsOf(OpenAISettings)],
    requests: Annotated[Given, OptionsOf(RequestSettings)],
    teacher: Annotated[
        str,
        typer.Option(
            help="Teacher: evidence, scorecard or lambdamart (all offline), openai (any OpenAI-compatible endpoint), "
            "or your own as module:object. With --model evidence_brief.v1, evidence writes one sentence; with --model "
            "points.v1, lambdamart gives points."
        ),
    ] = "evidence",
    teacher_option: Annotated[
        list[str] | None,
        typer.Option(
            help="What else the teacher takes; the value is JSON or text. Repeat it for several.",
            metavar="KEY=VALUE",
            rich_help_panel="Endpoint",
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Sample reasoning traces from a teacher. Run it again to resume, or with more attempts to add samples.

    Example: gr2 trace beauty --teacher openai --base-url http://127.0.0.1:8000/v1 --model Qwen/Qwen3-32B --limit 1000
    """
    from curate.traces.sampling import sample
    from curate.traces.teachers.selection import make_teacher

    settings = SamplingSettings(dataset=name, **sampling)
    opened = open_store(store)
    asked = make_teacher(
        teacher,
        {**endpoint, **read_pairs("--teacher-option", teacher_option or ())},
        store=opened,
        dataset=name,
        sid_version=settings.sid_version,
        pre_ranker=settings.pre_ranker,
        on_progress=say,
    )
    with _progress() as view:
        done = sample(opened, asked, settings, **requests, on_progress=view.update)
    print_trace(done)
    say_unjudged(opened, dataset=name)
    if done.prompts and done.attempts == done.failed:
        raise TeacherError("the teacher answered no request; the run left nothing to train on")


def verify(
    name: Name,
    rules: Annotated[
        str | None,
        typer.Option(
            help="Rules to judge by, comma-separated, by name or as module:object. Default: gr2's own, and those that "
            "rulesets name."
        ),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Judge all stored completions again, without any teacher.

    Example: gr2 verify beauty --rules grounded,no_leak
    """
    from curate.traces.verification import verify as verify_traces

    opened = open_store(store)
    print_verify(verify_traces(opened, name, rules.split(",") if rules else None))
    say_unjudged(opened, dataset=name)


def status(store: StoreOption = DEFAULT_STORE) -> None:
    """Show the contents of the store, and the funnel from prompts to accepted traces.

    Example: gr2 status
    """
    from curate.review.status import load_status
    from store.journals import rejected_lines

    opened = open_store(store)
    for table in load_status(opened):
        if table.rows.height:
            print_table(table.rows.columns, table.rows.rows(), title=table.title)
        else:
            say(f"{table.title}: none yet; {table.next_step}\n")
    say_unjudged(opened)
    rejected = rejected_lines(opened.journals)
    if rejected:
        say(
            f"{sum(rejected.values()):,} lines of journals could not become traces; they are, with their reasons, in: "
            f"{', '.join(map(str, rejected))}. Remove these files when you no longer need them."
        )


def _progress() -> "AbstractContextManager[ProgressView]":
    from rich.console import Console

    from app.progress import PlainProgress, TerminalProgress

    console = Console(stderr=True)
    return TerminalProgress(console) if console.is_terminal else nullcontext(PlainProgress())


if TYPE_CHECKING:
    from app.progress import ProgressView


def print_trace(progress: "Progress") -> None:
    """Print the result of a run, and how to continue."""
    from curate.traces.teachers.protocol import commonest_errors

    for recovery in progress.recovered:
        unknown = f"; {recovery.unknown:,} sent, outcome unknown: asked again" if recovery.unknown else ""
        say(f"took {recovery.traces:,} traces over from run {recovery.run_id}, which was killed{unknown}")
        if recovery.rejected:
            say(
                f"{recovery.rejected:,} lines of its journal cannot become traces: {recovery.rejected_file} has them "
                "with their reasons"
            )
    if progress.prompts == 0:
        say(
            "nothing to ask: every list has its accepted traces or no attempt left "
            "(--max-attempts, --num-accepted, --limit)"
        )
        return
    rate = progress.accepted / progress.attempts if progress.attempts else 0.0
    say(
        f"run {progress.run_id}: {progress.done:,} of {progress.prompts:,} prompts done, "
        f"{progress.attempts:,} attempts, {progress.parsed:,} parsed, {progress.accepted:,} accepted ({rate:.1%}), "
        f"{progress.failed:,} failed, "
        f"in {progress.seconds:.1f} s"
    )
    if progress.prompt_tokens or progress.cost_usd:
        say(
            f"{progress.prompt_tokens:,} prompt and {progress.completion_tokens:,} completion tokens, "
            + (f"${progress.cost_usd:,.2f}" if progress.cost_usd is not None else "cost not known")
        )
    if progress.errors:
        say(f"errors: {describe_counts(commonest_errors(progress.errors))}")
    if progress.refused:
        say(f"{progress.refused:,} prompts were refused for good and are not asked again, unless with --retry-refused")
    if progress.unparsed and not progress.parsed:
        say(f"no answer could be read: {describe_counts(progress.unparsed.most_common(3))}")
    if progress.rejected:
        say(
            f"{progress.rejected:,} traces were refused by the store and are failed attempts now; their answers are in "
            f"journals/{progress.run_id}.rejected.jsonl"
        )
    if progress.waiting:
        say(
            f"stopped while the store was busy; {progress.waiting:,} answers wait in the journal. Run the same command "
            "again to store them and to go on from here."
        )
    elif progress.stopping:
        say("stopped; everything that arrived is stored. Run the same command again to go on from here.")


def print_verify(summary: "VerifySummary") -> None:
    """Print how many traces passed and failed, by rule, with reasons."""
    say(f"{summary.traces:,} completions judged, {summary.new_verdicts:,} new verdicts")
    if summary.new_readings:
        say(f"{summary.new_readings:,} completions are read differently than when they were stored")
    rows = [
        (
            rule,
            summary.passed[rule],
            summary.failed[rule],
            ", ".join(f"{reason} {count:,}" for (of, reason), count in summary.reasons.most_common() if of == rule),
        )
        for rule in sorted(summary.passed.keys() | summary.failed.keys())
    ]
    print_table(("rule", "passed", "failed", "reasons"), rows)
