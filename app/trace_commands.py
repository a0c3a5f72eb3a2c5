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
            help="Further option of the teacher; the value is JSON or text. Repeat it for several options.",
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
    teacher_instance = make_teacher(
        teacher,
        {**endpoint, **read_pairs("--teacher-option", teacher_option or ())},
        store=opened,
        dataset=name,
        sid_version=settings.sid_version,
        pre_ranker=settings.pre_ranker,
        on_progress=say,
    )
    with _progress() as view:
        progress = sample(opened, teacher_instance, settings, **requests, on_progress=view.update)
    print_trace(progress)
    say_unjudged(opened, dataset=name)
    if progress.prompts and progress.attempts == progress.failed:
        raise TeacherError("the teacher answered no request, so the run made no traces to train on")


def verify(
    name: Name,
    rules: Annotated[
        str | None,
        typer.Option(
            help="Rules to judge by, comma-separated: names, or your own as module:object. Default: gr2's own rules "
            "and all rules of the store's rulesets."
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
    """Show what the store contains, and the funnel from prompts to accepted traces.

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
            f"{sum(rejected.values()):,} lines of journals could not be stored as traces. The lines and the reasons "
            f"are in: {', '.join(map(str, rejected))}. Remove these files when you no longer need them."
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
        unknown = f"; {recovery.unknown:,} requests have no known answer and are sent again" if recovery.unknown else ""
        say(f"recovered {recovery.traces:,} traces of run {recovery.run_id}, which was killed{unknown}")
        if recovery.rejected:
            say(
                f"{recovery.rejected:,} lines of its journal cannot be stored as traces; the lines and the reasons are "
                f"in {recovery.rejected_file}"
            )
    if progress.prompts == 0:
        say(
            "nothing to sample: every list has its accepted traces, or no attempts left "
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
            + (f"${progress.cost_usd:,.2f}" if progress.cost_usd is not None else "cost unknown")
        )
    if progress.errors:
        say(f"errors: {describe_counts(commonest_errors(progress.errors))}")
    if progress.refused:
        say(f"{progress.refused:,} prompts were refused for good; --retry-refused asks them again")
    if progress.unparsed and not progress.parsed:
        say(f"no answer could be parsed: {describe_counts(progress.unparsed.most_common(3))}")
    if progress.rejected:
        say(
            f"{progress.rejected:,} traces were refused by the store and now count as failed attempts; their answers "
            f"are in journals/{progress.run_id}.rejected.jsonl"
        )
    if progress.waiting:
        say(
            f"stopped while the store was busy; {progress.waiting:,} answers wait in the journal. Run the same command "
            "again to store them and continue."
        )
    elif progress.stopping:
        say("stopped; all answers that arrived are stored. Run the same command again to continue.")


def print_verify(summary: "VerifySummary") -> None:
    """Print how many traces passed and failed, by rule, with reasons."""
    say(f"{summary.traces:,} completions judged, {summary.new_verdicts:,} new verdicts")
    if summary.new_readings:
        say(f"{summary.new_readings:,} completions are parsed differently than when they were stored")
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
