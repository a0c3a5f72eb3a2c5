"""Commands that make and judge traces: trace, verify, status."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from app.options import DEFAULT_STORE, Name, StoreOption, open_store, print_table, say
from app.ruleset_commands import say_unjudged

if TYPE_CHECKING:
    from curate.traces.planning import SamplingSettings
    from curate.traces.sampling import Progress
    from curate.traces.teachers.protocol import Teacher
    from curate.traces.verification import VerifySummary
    from store import Store


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    for command in (trace, verify, status):
        cli.command()(command)


def trace(
    name: Name,
    teacher: Annotated[
        str, typer.Option(help="evidence or scorecard (offline), or openai (any compatible endpoint).")
    ] = "evidence",
    strategy: Annotated[
        str | None, typer.Option(help="rejection: the teacher does not see the answer; targeted: it does.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="Default rerank_evidence.v1, or rerank_targeted.v1; or a file NAME.vN.jinja."),
    ] = None,
    split: Annotated[str, typer.Option(help="Whose lists: train, valid or test.")] = "train",
    max_attempts: Annotated[int, typer.Option(help="Samples per prompt at most.")] = 4,
    num_accepted: Annotated[int, typer.Option(help="Stop a prompt once so many samples are accepted.")] = 1,
    ruleset: Annotated[str, typer.Option(help="What counts as accepted: paper, strict or answered.")] = "paper",
    temperature: Annotated[float, typer.Option(help="0 is deterministic.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="Longest completion.")] = 1024,
    limit: Annotated[int | None, typer.Option(help="Only so many lists.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model that the endpoint serves; of evidence: evidence.v1 or evidence_brief.v1.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Of the endpoint, such as http://127.0.0.1:8000/v1.")] = None,
    prompt_price: Annotated[float | None, typer.Option(help="US dollars per million prompt tokens.")] = None,
    completion_price: Annotated[float | None, typer.Option(help="US dollars per million completion tokens.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests under way at once.")] = 64,
    knowledge_priming: Annotated[bool, typer.Option(help="Tell the teacher what people buy in sequence.")] = True,
    sid_version: Annotated[str | None, typer.Option(help="Version of the semantic IDs; default the newest.")] = None,
    pre_ranker: Annotated[str | None, typer.Option(help="Whose candidate lists, where there are several.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Ask a teacher for reasoning traces. Run it again to resume, or with more attempts to top up.

    Example: gr2 trace beauty --teacher openai --base-url http://127.0.0.1:8000/v1 --model Qwen/Qwen3-32B --limit 1000
    """
    from curate.traces.planning import SamplingSettings
    from curate.traces.sampling import sample

    settings = SamplingSettings(
        dataset=name,
        split=split,
        strategy=strategy,
        template=template,
        knowledge_priming=knowledge_priming,
        ruleset=ruleset,
        max_attempts=max_attempts,
        num_accepted=num_accepted,
        temperature=temperature,
        max_tokens=max_tokens,
        limit=limit,
        sid_version=sid_version,
        pre_ranker=pre_ranker,
    )
    opened = open_store(store)
    asked = _make_teacher(opened, settings, teacher, model, base_url, prompt_price, completion_price)
    with _progress() as view:
        done = sample(opened, asked, settings, concurrency=concurrency, on_progress=view.update)
    print_trace(done)
    say_unjudged(opened, dataset=name)


def verify(
    name: Name,
    rules: Annotated[str | None, typer.Option(help="Comma-separated rules; default all.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Judge all stored completions again, without any teacher.

    Example: gr2 verify beauty --rules grounded,no_leak
    """
    from curate.traces.rules import RULE_NAMES
    from curate.traces.verification import verify as verify_traces

    opened = open_store(store)
    print_verify(verify_traces(opened, name, rules.split(",") if rules else RULE_NAMES))
    say_unjudged(opened, dataset=name)


def status(store: StoreOption = DEFAULT_STORE) -> None:
    """Show what the store holds, and the funnel from prompts to accepted traces.

    Example: gr2 status
    """
    from curate.review.status import load_status

    opened = open_store(store)
    for table in load_status(opened):
        if table.rows.height:
            print_table(table.rows.columns, table.rows.rows(), title=table.title)
        else:
            say(f"{table.title}: none yet; {table.next_step}\n")
    say_unjudged(opened)


def _make_teacher(
    store: "Store",
    settings: "SamplingSettings",
    name: str,
    model: str | None,
    base_url: str | None,
    prompt_price: float | None,
    completion_price: float | None,
) -> "Teacher":
    from store import InputError

    if name == "evidence":
        from curate.traces.teachers.evidence import FULL, EvidenceTeacher

        return EvidenceTeacher(model or FULL)
    if name == "scorecard":
        from curate.traces.teachers.scorecard import ScorecardTeacher, fit_scorecard

        card = fit_scorecard(store, settings.dataset, settings.sid_version, settings.pre_ranker)
        say(f"scorecard fitted on {card.lists:,} train lists")
        return ScorecardTeacher(card)
    if name == "openai":
        from curate.traces.teachers.openai_compatible import OpenAISettings, OpenAITeacher

        if model is None:
            raise InputError("--teacher openai needs --model, the name under which the endpoint serves it")
        return OpenAITeacher(
            OpenAISettings(
                model=model,
                base_url=base_url,
                price_per_million_prompt_tokens=prompt_price,
                price_per_million_completion_tokens=completion_price,
            )
        )
    raise InputError(
        f"no teacher is called {name!r}; there are evidence, scorecard and openai (vLLM: start vllm serve, then "
        "--teacher openai --base-url http://127.0.0.1:8000/v1)"
    )


def _progress() -> "AbstractContextManager[ProgressView]":
    from rich.console import Console

    from app.progress import PlainProgress, TerminalProgress

    console = Console(stderr=True)
    return TerminalProgress(console) if console.is_terminal else nullcontext(PlainProgress())


if TYPE_CHECKING:
    from app.progress import ProgressView


def print_trace(progress: "Progress") -> None:
    """What a run did, and how to go on."""
    for recovery in progress.recovered:
        unknown = f"; {recovery.unknown:,} sent, outcome unknown: asked again" if recovery.unknown else ""
        say(f"took {recovery.traces:,} traces over from run {recovery.run_id}, which was killed{unknown}")
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
    if progress.stopping:
        say("stopped; everything that arrived is stored. Run the same command again to go on from here.")


def print_verify(summary: "VerifySummary") -> None:
    """Passed and failed by rule, with reasons."""
    say(f"{summary.traces:,} completions judged, {summary.new_verdicts:,} new verdicts")
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
