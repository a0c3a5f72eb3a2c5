"""`gr2 eval`: rankers beside each other on the same lists."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.options import DEFAULT_STORE, Name, StoreOption, open_store, prepare_training, print_table, say
from app.progress import status_line

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
}
NDCG, GAIN = "conditional_ndcg_at_5", "conditional_ndcg_at_5_gain"
SLICES = {
    "history_length": ("N@5 by length of the history", NDCG),
    "target_popularity": ("N@5 by popularity of the target, 5: the fifth of the items that sells most", NDCG),
    "pre_rank": ("N@5 by the target's place in the input", NDCG),
    "input_position": ("share of first picks by their place in a shuffled input", "first_pick_share"),
}


def register(cli: typer.Typer) -> None:
    """Add this command."""
    cli.command("eval")(eval_)


def eval_(
    name: Name,
    rankers: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: evidence, scorecard, lambdamart, endpoint, oracle (simulated data). Default: all "
            "that can be had. The pre-ranker always takes part."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Whose lists: test, valid or train.")] = "test",
    limit: Annotated[int | None, typer.Option(help="Only so many lists, a random sample.")] = None,
    shuffles: Annotated[
        int, typer.Option(help="How often each list is shown shuffled, to measure position bias; 0: not at all.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Of shuffles and intervals.")] = 0,
    model: Annotated[str | None, typer.Option(help="Of endpoint: the model that it serves.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Of endpoint, such as http://127.0.0.1:8000/v1.")] = None,
    student: Annotated[
        list[str] | None,
        typer.Option(help="Also this student of the store, a folder or a hub name; may be given several times."),
    ] = None,
    modes: Annotated[
        str, typer.Option(help="Of students: reasoning, direct (without reasoning), first-token; comma-separated.")
    ] = "reasoning",
    max_tokens: Annotated[int, typer.Option(help="Of students: the longest completion.")] = 256,
    student_template: Annotated[
        str | None, typer.Option(help="Of students: another prompt than the one that they were trained on.")
    ] = None,
    template: Annotated[str, typer.Option(help="Of endpoint: the prompt.")] = "rerank_evidence.v1",
    concurrency: Annotated[int, typer.Option(help="Of endpoint: requests under way at once.")] = 64,
    slices: Annotated[
        bool, typer.Option("--slices", help="Also by history length, popularity, pre-rank and input position.")
    ] = False,
    sid_version: Annotated[
        str | None, typer.Option(help="Version of the semantic IDs; default what the students learned, or the newest.")
    ] = None,
    pre_ranker: Annotated[str | None, typer.Option(help="Whose candidate lists, where there are several.")] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Compare rankers on the lists that hold their target: metrics, paired intervals, position bias. All is stored.

    Example: gr2 eval beauty --rankers evidence,lambdamart,endpoint --model Qwen/Qwen3-8B --base-url http://127.0.0.1:8000/v1
    """
    from curate.evaluation.evaluate import evaluate
    from curate.evaluation.rankers.selection import select_rankers
    from curate.evaluation.settings import EvalSettings

    opened = open_store(store)
    settings = EvalSettings(
        split=split,
        pre_ranker=pre_ranker,
        sid_version=sid_version or _sids_of_students(opened, name, student or ()),
        limit=limit,
        shuffles=shuffles,
        seed=seed,
    )
    endpoint = _open_endpoint(model, base_url, template, concurrency) if model else None
    names = rankers.split(",") if rankers is not None else None
    with status_line() as on_progress:
        students = [
            ranker
            for each in student or ()
            for ranker in _open_student(opened, each, modes, student_template, max_tokens)
        ]
        selection = select_rankers(opened, name, names, settings, endpoint, on_progress=on_progress)
        done = evaluate(opened, name, [*selection.rankers, *students], settings, on_progress=on_progress)
    print_evaluation(done, selection.left_out, slices=slices)


def _sids_of_students(store: "Store", dataset: str, students: Sequence[str]) -> str | None:
    if not students:
        return None
    prepare_training("--student")
    from train.runs import sids_of_students

    return sids_of_students(store, dataset, students)


def _open_student(store: "Store", reference: str, modes: str, template: str | None, max_tokens: int) -> list["Ranker"]:
    prepare_training("--student")
    from train.ranking.rerankers import student_rankers

    return student_rankers(store, reference, modes.split(","), template=template, max_tokens=max_tokens)


def _open_endpoint(model: str, base_url: str | None, template: str, concurrency: int) -> "Ranker":
    from curate.evaluation.rankers.teacher_ranker import TeacherRanker
    from curate.traces.teachers.openai_compatible import OpenAISettings, OpenAITeacher
    from prompts.templates import load_template

    teacher = OpenAITeacher(OpenAISettings(model=model, base_url=base_url))
    return TeacherRanker(teacher, load_template(template), concurrency=concurrency)


def print_evaluation(done: "Evaluations", left_out: Sequence[str], *, slices: bool) -> None:
    """One run: figures of every ranker, differences between any two, and with `slices` where they are good."""
    for reason in left_out:
        say(reason)
    figures = {(row["ranker"], row["metric"]): row for row in done.metrics.iter_rows(named=True)}
    rankers = list(dict.fromkeys(done.metrics["ranker"]))
    shown, of_all = figures[rankers[0], NDCG], figures[rankers[0], "ndcg_at_5"]["n"]
    rows = []
    for ranker in rankers:
        values = (figures.get((ranker, metric), {}).get("value") for metric in SHOWN)
        rows.append((ranker, shown["n"], *values, *_signed(figures.get((ranker, GAIN)))))
    print_table(
        ("ranker", "lists", *SHOWN.values(), "N@5 gain", "95% interval"),
        rows,
        title=f"{shown['dataset']}, {shown['split']} lists that hold their target; gain over {rankers[0]}; same first: "
        f"lists that keep their first item when shuffled; run {shown['run_id']}",
    )
    say(f"end to end, over all {of_all:,} lists, R, N and MRR are {shown['n'] / of_all:.4f} times these\n")
    pairs = [row for row in done.differences.iter_rows(named=True) if row["other"] != rankers[0]]
    if pairs:
        print_table(
            ("ranker", "other", "N@5 gain", "95% interval"),
            [(row["ranker"], row["other"], *_signed(row)) for row in pairs],
            title="gain over each other",
        )
    if slices:
        _print_slices(done.slices, rankers)


def _print_slices(slices: "pl.DataFrame", rankers: Sequence[str]) -> None:
    """A table for each slice: a figure of every ranker in every bucket, gains with their intervals."""
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
    """A difference and its interval; empty where there is none."""
    return (f"{row['value']:+.4f}", f"{row['low']:+.4f} to {row['high']:+.4f}") if row else ("", "")
