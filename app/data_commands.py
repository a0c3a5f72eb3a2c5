"""Commands that fill the store: simulate, ingest, candidates."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands import Given, OptionsOf, add_command
from app.completion import complete_students
from app.options import DEFAULT_STORE, Name, StoreOption, open_store, prepare_training, print_table, say
from app.progress import status_line
from curate.datasets.ingest import IngestSettings
from curate.datasets.simulator import SimulatorSettings
from train.ranking.settings import FullRankingSettings

if TYPE_CHECKING:
    from curate.candidates.making import CandidateSummary
    from curate.datasets.ingest import IngestSummary
    from curate.evaluation.results import RankerMetrics
    from store import Store


SHOWN_METRICS = ("recall_at_1", "recall_at_3", "recall_at_5", "recall_at_10", "ndcg_at_5", "mrr")


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    for command in (simulate, ingest, candidates):
        add_command(cli, command)


def simulate(
    name: Name,
    given: Annotated[Given, OptionsOf(SimulatorSettings)],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Make a dataset of simulated users with purchase routines. The best possible ranking is known.

    Example: gr2 simulate demo --users 2000 --items 600 --seed 0
    """
    from curate.datasets.simulation import simulate as simulate_dataset

    # Invalid settings are reported before a store is made for nothing.
    SimulatorSettings(**given)
    print_ingest(simulate_dataset(open_store(store, create=True), name, **given))


def ingest(
    name: Name,
    interactions: Annotated[
        Path,
        typer.Option(
            help="File of interactions: JSON, CSV, TSV or Parquet, plain or compressed (gzip, bzip2, xz, zstd, zip)."
        ),
    ],
    given: Annotated[Given, OptionsOf(IngestSettings)],
    items: Annotated[
        Path | None,
        typer.Option(help="File of items, in the same formats. Default: items are taken from the interactions."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Read items and interactions into the store and split them. Ingestion is all-or-nothing.

    Example: gr2 ingest beauty --items items.jsonl --interactions interactions.csv.gz
    """
    from curate.datasets.ingest import ingest as ingest_files

    settings = IngestSettings(**given)
    print_ingest(ingest_files(open_store(store, create=True), name, items, interactions, settings))


def candidates(
    name: Name,
    given: Annotated[Given, OptionsOf(FullRankingSettings)],
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file of scores to import, with the columns user_id, item_id and score. Add position if a "
            "user has scores for several lists."
        ),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="Mid-trained student that ranks all items, by beam search within the valid semantic IDs. It makes "
            "only valid and test lists, because it was trained on the train interactions.",
            autocompletion=complete_students,
        ),
    ] = None,
    pre_ranker: Annotated[
        str | None,
        typer.Option(help="Name for the imported scores or the student. Default: the name of the file or student."),
    ] = None,
    list_size: Annotated[int, typer.Option(help="Number of candidates in a list.", min=2)] = 10,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Make candidate lists with evidence, and measure the pre-ranker over the whole catalogue.

    Example: gr2 candidates beauty
    """
    from curate.candidates.making import import_candidates, make_candidates
    from curate.evaluation.rankers.oracle import put_oracle
    from store import InputError
    from store.temporary import temporary_folder

    settings = FullRankingSettings(**given)
    opened = open_store(store)
    if student is not None and scores is not None:
        raise InputError("--scores and --student both choose the pre-ranker; give only one of them")
    with status_line() as on_progress:
        if student is not None:
            with temporary_folder(opened.folder) as temporary:
                scores = _rank_all_items(opened, name, student, settings, temporary / "scores.parquet", on_progress)
                summary = import_candidates(
                    opened, name, scores, pre_ranker or Path(student).name, list_size=list_size, on_progress=on_progress
                )
        elif scores is not None:
            summary = import_candidates(opened, name, scores, pre_ranker, list_size=list_size, on_progress=on_progress)
        else:
            summary = make_candidates(opened, name, list_size=list_size, on_progress=on_progress)
    print_candidates(summary, put_oracle(opened, name, summary.pre_ranker))


def _rank_all_items(
    store: "Store",
    dataset: str,
    student: str,
    settings: FullRankingSettings,
    path: Path,
    on_progress: Callable[[str], None],
) -> Path:
    prepare_training("--student")
    from train.ranking.full_ranking import write_scores
    from train.runs import find_student, sids_of_students
    from train.students.student import best_device, load_student

    model, tokenizer = load_student(find_student(store, student))
    settings = replace(settings, sid_version=sids_of_students(store, dataset, [student]))
    return write_scores(
        store, dataset, model.to(best_device()), tokenizer, settings, path=path, on_progress=on_progress
    )


def print_ingest(summary: "IngestSummary") -> None:
    """Print what an ingest stored."""
    say(
        f"{summary.dataset}: {summary.users:,} users, {summary.items:,} items, {summary.interactions:,} interactions "
        f"({summary.train:,} train, {summary.valid:,} valid, {summary.test:,} test) in {summary.seconds:.1f} s"
        + ("; the store already had all of it" if summary.already_there else "")
    )
    if summary.first_time and summary.last_time:
        ties = summary.shuffled_ties
        say(
            f"from {summary.first_time:%Y-%m-%d} to {summary.last_time:%Y-%m-%d}"
            + (f"; {ties:,} interactions at the same time as another of their user, shuffled" if ties else "")
        )
    dropped = {
        "repeated items": summary.dropped_repeated_items,
        "rated too low": summary.dropped_low_rating,
        "repeated": summary.dropped_repeated,
        "of unknown items": summary.dropped_unknown,
        "outside the k-core": summary.dropped_by_k_core,
    }
    if any(dropped.values()):
        say("left out: " + ", ".join(f"{count:,} {what}" for what, count in dropped.items() if count))
    doubtful = {"before 1990": summary.before_1990, "after today": summary.after_today}
    if any(doubtful.values()):
        many = " and ".join(f"{count:,} interactions are from {when}" for when, count in doubtful.items() if count)
        typer.echo(
            f"gr2: {many}; check the column and the unit of time, or name another column with --columns", err=True
        )


def print_candidates(summary: "CandidateSummary", oracle: "RankerMetrics") -> None:
    """Print the number of lists, and the quality of the pre-ranker and, on simulated data, of the oracle."""
    if summary.repeated_scores:
        say(f"{summary.repeated_scores:,} repeated scores of the same user and item were left out; the best one counts")
    print_table(
        ("split", "lists", "contain the target", "new"),
        [(split.split, split.lists, split.with_target, split.new) for split in summary.splits],
        title=f"candidate lists of {summary.dataset} by {summary.pre_ranker}, in {summary.seconds:.1f} s",
    )
    for title, rankings in (
        ("full ranking: every list counts, and a target outside the list is a miss", summary.full),
        ("re-ranking: only lists that contain their target", {**summary.conditional, **oracle}),
    ):
        if rankings:
            rows = []
            for (split, ranker), metrics in rankings.items():
                values = {metric.name: metric.value for metric in metrics}
                rows.append((split, ranker, metrics[0].n, *(values.get(name) for name in SHOWN_METRICS)))
            print_table(("split", "ranker", "lists", *SHOWN_METRICS), rows, title=title)
