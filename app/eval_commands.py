"""`gr2 eval`: compares rankers on the same lists."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands import Given, OptionsOf, add_command
from app.completion import complete_students
from app.options import (
    DEFAULT_STORE,
    Name,
    StoreOption,
    describe_counts,
    open_store,
    prepare_training,
    print_table,
    say,
)
from app.progress import status_line
from curate.evaluation.settings import EvalSettings
from curate.traces.settings import RequestSettings
from curate.traces.teachers.settings import OpenAISettings
from train.ranking.settings import StudentSettings

if TYPE_CHECKING:
    import polars as pl

    from curate.evaluation.rankers.protocol import Ranker
    from curate.evaluation.results import Evaluations
    from store import Store

SHOWN = {
    "valid_share": "valid",
    "copy_share": "copied",
    "conditional_recall_at_1": "R@1",
    "conditional_recall_at_3": "R@3",
    "conditional_recall_at_5": "R@5",
    "conditional_ndcg_at_3": "N@3",
    "conditional_ndcg_at_5": "N@5",
    "conditional_mrr": "MRR",
    "top1_consistency": "top-1 consistency",
    "prompt_tokens": "tokens read",
    "completion_tokens": "tokens written",
    "ms_per_list": "ms",
}
# More than four digits would claim too much precision, because the values depend on the machine and the template.
ROUNDED = {"prompt_tokens": "{:,.0f}", "completion_tokens": "{:,.1f}", "ms_per_list": "{:,.2f}"}
# The settings of an endpoint that users may choose in an evaluation.
ENDPOINT = (
    "model",
    "base_url",
    "api_key_env",
    "headers",
    "timeout_s",
    "max_retries",
    "structured_output",
    "extra_body",
)
BRIEFLY = (
    "valid_share",
    "conditional_recall_at_1",
    "conditional_recall_at_5",
    "conditional_ndcg_at_5",
    "conditional_mrr",
)
NDCG, GAIN = "conditional_ndcg_at_5", "conditional_ndcg_at_5_gain"
SLICES = {
    "history_length": ("N@5 by length of the history", NDCG),
    "target_popularity": ("N@5 by popularity of the target (5: the best-selling fifth of the items)", NDCG),
    "pre_rank": ("N@5 by the target's position in the input", NDCG),
    "input_position": ("share of first picks by their position in a shuffled input", "first_pick_share"),
}


def register(cli: typer.Typer) -> None:
    """Add this command."""
    add_command(cli, eval_, "eval")


def eval_(
    name: Name,
    *,
    given: Annotated[Given, OptionsOf(EvalSettings)],
    rankers: Annotated[
        str | None,
        typer.Option(
            help="Rankers, comma-separated: evidence, scorecard, lambdamart, endpoint, oracle (simulated data only), "
            "or your own as module:object. Default: all that are available. The pre-ranker is always included."
        ),
    ] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(
            help="Student to evaluate: a student of the store, a folder, or a name on the hub. Repeat the option for "
            "several students.",
            metavar="<str>",
            autocompletion=complete_students,
            rich_help_panel="Students",
        ),
    ] = None,
    answers: Annotated[Given, OptionsOf(StudentSettings)],
    endpoint: Annotated[Given, OptionsOf(OpenAISettings, *ENDPOINT)],
    requests: Annotated[Given, OptionsOf(RequestSettings)],
    endpoint_template: Annotated[
        str, typer.Option("--template", help="Prompt template for the endpoint.", rich_help_panel="Endpoint")
    ] = "rerank_evidence.v1",
    slices: Annotated[
        bool,
        typer.Option("--slices", help="Also print metrics by history length, popularity, pre-rank and input position."),
    ] = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Compare rankers on the lists that contain their target: metrics, paired intervals, position bias.

    The results are stored.

    Example: gr2 eval beauty --rankers evidence,lambdamart,endpoint --model Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1
    """
    from curate.evaluation.evaluate import evaluate
    from curate.evaluation.rankers.selection import select_rankers

    settings, asking = EvalSettings(**given), StudentSettings(**answers)
    opened = open_store(store)
    if settings.sid_version is None:
        settings = replace(settings, sid_version=_sids_of_students(opened, name, student or ()))
    names = rankers.split(",") if rankers is not None else None
    with status_line() as on_progress:
        students = [ranker for each in student or () for ranker in _open_student(opened, each, asking, on_progress)]
        selection = select_rankers(
            opened, name, names, settings, endpoint, template=endpoint_template, **requests, on_progress=on_progress
        )
        evaluation = evaluate(opened, name, [*selection.rankers, *students], settings, on_progress=on_progress)
    print_evaluation(evaluation, selection.left_out, slices=slices)


def _sids_of_students(store: "Store", dataset: str, students: Sequence[str]) -> str | None:
    if not students:
        return None
    prepare_training("--student")
    from train.runs import sids_of_students

    return sids_of_students(store, dataset, students)


def _open_student(
    store: "Store", reference: str, asking: StudentSettings, on_progress: Callable[[str], None]
) -> list["Ranker"]:
    prepare_training("--student")
    from train.ranking.modes import student_rankers

    return student_rankers(
        store,
        reference,
        asking.modes,
        template=asking.template,
        max_tokens=asking.max_tokens,
        batch_size=asking.batch_size,
        decode=asking.decode,
        chat_template_kwargs=asking.chat_template_kwargs,
        on_progress=on_progress,
    )


def print_evaluation(evaluation: "Evaluations", left_out: Sequence[str], *, slices: bool) -> None:
    """Print one run: the metrics of every ranker, the differences of all pairs and, with `slices`, metrics by slice."""
    for reason in left_out:
        say(reason)
    figures = {(row["ranker"], row["metric"]): row for row in evaluation.metrics.iter_rows(named=True)}
    rankers = list(dict.fromkeys(evaluation.metrics["ranker"]))
    shown, of_all = figures[rankers[0], NDCG], figures[rankers[0], "ndcg_at_5"]["n"]
    rows = []
    for ranker in rankers:
        values = (_rounded(metric, figures.get((ranker, metric), {}).get("value")) for metric in SHOWN)
        rows.append((ranker, shown["n"], *values, *_signed(figures.get((ranker, GAIN)))))
    print_table(
        ("ranker", "lists", *SHOWN.values(), "N@5 gain", "95% interval"),
        rows,
        title=f"{shown['dataset']}, {shown['split']} lists that contain their target; gain over {rankers[0]}; top-1 "
        f"consistency: share of shuffled lists whose first item stays the same; run {shown['run_id']}",
    )
    _say_failures(evaluation)
    say(f"over all {of_all:,} lists (end to end), R, N and MRR are {shown['n'] / of_all:.4f} times these values\n")
    pairs = [row for row in evaluation.differences.iter_rows(named=True) if row["other"] != rankers[0]]
    if pairs:
        print_table(
            ("ranker", "other", "N@5 gain", "95% interval"),
            [(row["ranker"], row["other"], *_signed(row)) for row in pairs],
            title="gain over each other",
        )
    if slices:
        _print_slices(evaluation.slices, rankers)


def _say_failures(evaluation: "Evaluations") -> None:
    """Print how many requests of each ranker failed. The table counts them as invalid answers."""
    for ranker, failures in json.loads(evaluation.runs["settings"][0]).get("failures", {}).items():
        say(
            f"{ranker}: {failures['failed']:,} of {failures['requests']:,} requests failed, and the input order was "
            f"used instead: {describe_counts(failures['commonest_errors'])}"
        )


def _rounded(metric: str, value: float | None) -> float | str | None:
    return value if value is None or metric not in ROUNDED else ROUNDED[metric].format(value)


def print_gains(evaluation: "Evaluations") -> None:
    """Print one run in a few columns: the quality of each ranker, and its gain over the pre-ranker."""
    figures = {(row["ranker"], row["metric"]): row for row in evaluation.metrics.iter_rows(named=True)}
    rankers = list(dict.fromkeys(evaluation.metrics["ranker"]))
    lists = figures[rankers[0], NDCG]["n"]
    rows = [
        (ranker, *(figures[ranker, metric]["value"] for metric in BRIEFLY), *_signed(figures.get((ranker, GAIN))))
        for ranker in rankers
    ]
    print_table(
        ("ranker", *(SHOWN[metric] for metric in BRIEFLY), "N@5 gain", "95% interval"),
        rows,
        title=f"\n{lists:,} test lists that contain their target; N@5 is NDCG@5, and gains are over {rankers[0]}",
    )


def _print_slices(slices: "pl.DataFrame", rankers: Sequence[str]) -> None:
    """Print a table for each slice: a metric of every ranker in every bucket, and gains with their intervals."""
    for slice_, (title, metric) in SLICES.items():
        rows = [row for row in slices.iter_rows(named=True) if row["slice"] == slice_]
        figures = {(row["bucket"], row["ranker"], row["metric"]): row for row in rows}
        lists = {row["bucket"]: row["n"] for row in rows}
        if lists:
            print_table(
                ("", "lists", *rankers),
                [
                    (bucket, n, *(_with_gain(figures, bucket, ranker, metric) for ranker in rankers))
                    for bucket, n in lists.items()
                ],
                title=title,
            )


def _with_gain(figures: dict[tuple[str, str, str], dict[str, Any]], bucket: str, ranker: str, metric: str) -> str:
    gain, interval = _signed(figures.get((bucket, ranker, GAIN)))
    return f"{figures[bucket, ranker, metric]['value']:.4f}" + (f" ({gain}, {interval})" if gain else "")


def _signed(row: dict[str, Any] | None) -> tuple[str, str]:
    """Return a difference and its interval as texts. Both are empty if there is none."""
    return (f"{row['value']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}") if row else ("", "")
