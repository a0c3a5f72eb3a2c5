"""`gr2 demo`: from simulated shoppers to a trained student and its evaluation, on a laptop and offline."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.commands import add_command
from app.data_commands import print_candidates, print_ingest
from app.eval_commands import print_evaluation, print_gains
from app.options import DEFAULT_STORE, StoreOption, open_store, prepare_training, print_table, say
from app.progress import describe, status_line
from app.sid_commands import print_sids
from app.snapshot_commands import print_snapshot
from app.trace_commands import print_trace
from app.train_commands import print_student, print_training
from store.progress import Counted

if TYPE_CHECKING:
    from curate.evaluation.results import Evaluations
    from curate.snapshots import SnapshotSettings
    from curate.traces.sampling import Progress
    from curate.traces.settings import SamplingSettings
    from curate.traces.teachers.protocol import Teacher
    from store import Store
    from store.snapshots import Snapshot
    from train.runs import TrainingSummary

# The template of the student's prompts and answers.
TEMPLATE = "rerank_levels.v1"


@dataclass(frozen=True, slots=True)
class Demo:
    """The size of each part of a demo.

    name: the name of its dataset and first snapshot; names of students and other snapshots begin with it. list_size:
    candidates per list; a student learns to sort six sooner than ten, and reads and writes less for it. traced: the
    maximum number of lists of the train split that get traces in words, and a quarter of it for the valid split; None
    means all. taught: the maximum number of lists whose traces the student learns from. attempts: the maximum number of
    samples of each of these lists. rope_theta: for the student. batch_size, epochs: for SFT. dapo_folds: the folds of
    users whose lists give DAPO its prompts; () means all. dapo_steps, dapo_prompts: steps of DAPO, and prompts per
    step. rankers, students: evaluated beside the pre-ranker; students are named by their last stage. mode: how students
    answer; points are learned sooner than an order that follows from them. at_length: whether every stage prints its
    tables.
    """

    name: str
    list_size: int
    traced: int | None
    taught: int | None
    attempts: int
    rope_theta: float
    batch_size: int
    epochs: int
    dapo_folds: tuple[int, ...]
    dapo_steps: int
    dapo_prompts: int
    rankers: tuple[str, ...]
    students: tuple[str, ...]
    mode: str
    at_length: bool

    def student(self, stage: str) -> str:
        """The name of the student after a stage: new, sft or dapo."""
        return f"{self.name}-{stage}"


QUICK = Demo(
    name="demo",
    list_size=6,
    traced=600,
    taught=2000,
    attempts=8,
    rope_theta=100,
    batch_size=16,
    epochs=1,
    dapo_folds=(0,),
    dapo_steps=3,
    dapo_prompts=6,
    rankers=("scorecard", "lambdamart", "oracle"),
    students=("dapo",),
    mode="points",
    at_length=False,
)
FULL = Demo(
    name="demo-full",
    list_size=10,
    traced=None,
    taught=None,
    attempts=8,
    rope_theta=10_000,
    batch_size=32,
    epochs=2,
    dapo_folds=(),
    dapo_steps=6,
    dapo_prompts=16,
    rankers=("evidence", "scorecard", "lambdamart", "oracle"),
    students=("sft", "dapo"),
    mode="reasoning",
    at_length=True,
)


def register(cli: typer.Typer) -> None:
    """Add this command."""
    add_command(cli, demo)


def demo(
    full: Annotated[
        bool,
        typer.Option("--full", help="Train longer, trace every list and print every table. Takes three times as long."),
    ] = False,
    users: Annotated[int, typer.Option(help="Number of simulated shoppers.")] = 2000,
    items: Annotated[int, typer.Option(help="Number of items that they can buy.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed. The same seed gives the same demo.")] = 0,
    train: Annotated[
        bool, typer.Option(help="Train a student and evaluate it. Without it, the demo takes about 10 s.")
    ] = True,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Simulate shoppers, write traces, publish snapshots, train a student and evaluate it.

    Run it again to continue after an interruption; finished stages are skipped. --full uses its own dataset, demo-full.

    Example: gr2 demo
    """
    started = time.perf_counter()
    opened = open_store(store, create=True)
    if train:
        # A missing package is reported before the first minute is spent.
        prepare_training("gr2 demo")
    plan = FULL if full else QUICK
    snapshot = _make_traces(opened, plan, users, items, seed)
    if train:
        _train_student(opened, plan, seed)
    say(f"\nDone in {time.perf_counter() - started:.0f} s. Next:")
    # `make demo` installs gr2 in a separate environment, which need not be on the path.
    gr2 = "gr2" if shutil.which("gr2") else os.path.relpath(Path(sys.executable).with_name("gr2"))
    where = "" if store == DEFAULT_STORE else f" --store {store}"
    student = plan.student("dapo")
    endpoint = "--teacher openai --model M --base-url http://127.0.0.1:8000/v1"
    for what, line in (
        ("read the traces in a browser", f"{gr2} app{where}"),
        ("ask in SQL", f"{gr2} sql{where} \"from accepted_traces('strict') select reasoning limit 3\""),
        ("ask a language model", f"{gr2} trace {plan.name}{where} {endpoint}"),
        (
            "see where the student is good",
            f"{gr2} eval {plan.name}{where} --student {student} --modes {plan.mode} --slices",
        ),
        ("train your own on a snapshot", f"{gr2} train sft --help"),
        (
            "load a snapshot anywhere",
            f"python -c \"from datasets import load_dataset; print(load_dataset('{snapshot}'))\"",
        ),
    ):
        if train or student not in line:
            say(f"  {what}:\n    {line}")


class _Stage:
    """The output of a stage of the demo: its progress, and then its result."""

    def __init__(self, on_progress: Callable[[str], None]) -> None:
        self.on_progress = on_progress
        self.result = ""
        self.print_at_length: list[Callable[[], None]] = []

    def done(self, result: str, *print_at_length: Callable[[], None]) -> None:
        """Set the result in one line, and the functions that print the stage at length."""
        self.result, self.print_at_length = result, list(print_at_length)


@contextmanager
def _stage(plan: Demo, title: str) -> Iterator[_Stage]:
    """Show a live line during the stage, and then its result with the time that it took, or its output at length."""
    started = time.perf_counter()
    with status_line(title) as on_progress:
        stage = _Stage(on_progress)
        yield stage
    if plan.at_length:
        say(f"\n{title}")
        for print_part in stage.print_at_length:
            print_part()
    else:
        say(f"{title:<14}{stage.result:<78}{time.perf_counter() - started:6.1f} s")


def _make_traces(store: "Store", plan: Demo, users: int, items: int, seed: int) -> Path:
    """Make traces in words for people to read, from shoppers to a snapshot. Returns the snapshot's folder."""
    from curate.candidates.making import make_candidates
    from curate.datasets.simulation import simulate
    from curate.evaluation.rankers.oracle import put_oracle
    from curate.review.status import load_status
    from curate.sids.assignment import assign_semantic_ids
    from curate.snapshots import SnapshotSettings
    from curate.traces.settings import SamplingSettings
    from curate.traces.teachers.evidence import EvidenceTeacher
    from store.snapshots import verify_snapshot

    with _stage(plan, "shoppers") as stage:
        shop = simulate(store, plan.name, users=users, items=items, seed=seed)
        stage.done(
            f"{shop.users:,} users with routines made {shop.interactions:,} purchases of {shop.items:,} items"
            + _unless_new(shop.already_there),
            partial(print_ingest, shop),
        )
    with _stage(plan, "semantic IDs") as stage:
        sids = assign_semantic_ids(store, plan.name, on_progress=stage.on_progress)
        stage.done(
            f"{sids.distinct_ids:,} distinct IDs for {sids.items:,} items, from texts and purchases"
            + _unless_new(sids.already_there),
            partial(print_sids, sids),
        )
    with _stage(plan, "candidates") as stage:
        candidates = make_candidates(store, plan.name, list_size=plan.list_size, on_progress=stage.on_progress)
        oracle = put_oracle(store, plan.name, candidates.pre_ranker)
        lists, held = (sum(getattr(split, count) for split in candidates.splits) for count in ("lists", "with_target"))
        stage.done(
            f"{lists:,} lists of {plan.list_size} by {candidates.pre_ranker}; {held:,} contain the item bought next"
            + _unless_new(not any(split.new for split in candidates.splits)),
            partial(print_candidates, candidates, oracle),
        )
    with _stage(plan, "traces") as stage:
        quarter = None if plan.traced is None else plan.traced // 4
        _sample(
            stage,
            store,
            EvidenceTeacher(),
            *(
                SamplingSettings(plan.name, split=split, temperature=0.5, limit=limit)
                for split, limit in (("train", plan.traced), ("valid", quarter))
            ),
        )
    with _stage(plan, "snapshot") as stage:
        settings = SnapshotSettings(plan.name, ruleset="strict", template="rerank_evidence.v1")
        published = _publish(stage, store, (plan.name, settings))
        verify_snapshot(published[0].path)
    if plan.at_length:
        say("")
        for table in load_status(store):
            if table.title.startswith(("funnel", "why")):
                print_table(table.rows.columns, table.rows.rows(), title=table.title)
    return published[0].path


def _train_student(store: "Store", plan: Demo, seed: int) -> None:
    """Make traces that are short enough to learn from scratch, train a student by SFT and DAPO, and evaluate it."""
    from curate.snapshots import SnapshotSettings
    from curate.traces.settings import SamplingSettings
    from curate.traces.teachers.fitted.scorecard import ScorecardTeacher, fit_scorecard

    with _stage(plan, "short traces") as stage:
        card = fit_scorecard(store, plan.name)
        short = SamplingSettings(
            plan.name, template=TEMPLATE, temperature=0.4, limit=plan.taught, max_attempts=plan.attempts
        )
        _sample(stage, store, ScorecardTeacher(card), short)
    with _stage(plan, "snapshots") as stage:
        traces, prompts = _publish(
            stage,
            store,
            *(
                (
                    f"{plan.name}-{kind}",
                    SnapshotSettings(plan.name, template=TEMPLATE, kind=kind, splits=("train",), held_out_folds=folds),
                )
                for kind, folds in (("sft", ()), ("dapo", plan.dapo_folds))
            ),
        )
    _train(store, plan, traces, prompts, seed)
    with _stage(plan, "evaluation") as stage:
        evaluated = _evaluate(stage, store, plan, seed)
    if not plan.at_length:
        print_gains(evaluated)


def _sample(stage: _Stage, store: "Store", teacher: "Teacher", *runs: "SamplingSettings") -> None:
    """Sample traces from a teacher, split by split."""
    from curate.traces.sampling import sample

    def tell(progress: "Progress") -> None:
        message = f"{progress.done:,} of {progress.prompts:,} prompts, {describe(progress)}"
        stage.on_progress(Counted(message, progress.done, progress.prompts))

    outcomes = [sample(store, teacher, settings, on_progress=tell) for settings in runs]
    lists, attempts, accepted = (
        sum(getattr(progress, count) for progress in outcomes) for count in ("prompts", "attempts", "accepted")
    )
    result = f"{attempts:,} answers of teacher {teacher.name} on {lists:,} lists; {accepted:,} accepted"
    stage.done(
        result if lists else "nothing to sample: every list has its traces",
        *(partial(print_trace, progress) for progress in outcomes),
    )


def _publish(stage: _Stage, store: "Store", *snapshots: tuple[str, "SnapshotSettings"]) -> list["Snapshot"]:
    """Publish snapshots by name and settings."""
    from curate.snapshots.publishing import publish

    published = [publish(store, name, settings) for name, settings in snapshots]
    stage.done(
        "; ".join(
            f"{snapshot.manifest['name']}@{snapshot.version[:8]}: "
            + ", ".join(f"{split['rows']:,} {name}" for name, split in snapshot.manifest["splits"].items())
            for snapshot in published
        ),
        *(partial(print_snapshot, snapshot) for snapshot in published),
    )
    return published


def _train(store: "Store", plan: Demo, traces: "Snapshot", prompts: "Snapshot", seed: int) -> None:
    """Train a student from scratch, by supervised fine-tuning on the traces and then by DAPO on the prompts."""
    from train.dapo.settings import DapoSettings
    from train.dapo.training import train_dapo
    from train.runs import student_folder
    from train.sft.settings import SftSettings
    from train.sft.training import train_sft
    from train.students.initialization import init_from_snapshot

    new, sft, dapo = map(plan.student, ("new", "sft", "dapo"))
    sft_settings = SftSettings(epochs=plan.epochs, batch_size=plan.batch_size, reasoning_weight=0.5, seed=seed)
    dapo_settings = DapoSettings(
        steps=plan.dapo_steps,
        prompts_per_batch=plan.dapo_prompts,
        refill_rounds=1,
        # With so few steps, no difference could be resolved.
        resolution_lists=0,
        max_tokens=80,
        seed=seed,
    )
    with _stage(plan, "student") as stage:
        if student_folder(store, new).exists():
            stage.done(f"{new} already exists", partial(say, f"student {new} already exists"))
        else:
            student = init_from_snapshot(store, str(traces.path), new, "tiny", rope_theta=plan.rope_theta, seed=seed)
            stage.done(f"{new}: {student.parameters:,} parameters, from scratch", partial(print_student, new, student))
    for title, name, train, shown in (
        (
            "SFT",
            sft,
            partial(train_sft, store, str(traces.path), new, sft, sft_settings),
            {"loss": "loss", "mean_token_accuracy": "token accuracy"},
        ),
        (
            "DAPO",
            dapo,
            partial(train_dapo, store, str(prompts.path), sft, dapo, dapo_settings),
            {"reward": "reward", "answers/valid": "valid answers"},
        ),
    ):
        folder = student_folder(store, name)
        with _stage(plan, title) as stage:
            if (folder / "config.json").is_file():
                stage.done(f"{name} is already trained", partial(say, f"student {name} is already trained"))
                continue
            summary: TrainingSummary = train(resume=folder.exists(), on_progress=stage.on_progress)
            figures = [
                f"{shown[metric]} {summary.figures[metric]:.3f}" for metric in shown if metric in summary.figures
            ]
            end = f"; at the end {', '.join(figures)}" if figures else ""
            stage.done(
                f"{name}: {summary.steps:,} steps{end}",
                partial(print_training, name, summary, tuple(shown)),
            )


def _evaluate(stage: _Stage, store: "Store", plan: Demo, seed: int) -> "Evaluations":
    """Evaluate the student beside other rankers on the test lists, unless the store has this evaluation already."""
    from curate.evaluation.evaluate import evaluate
    from curate.evaluation.rankers.selection import select_rankers
    from curate.evaluation.results import load_evaluations
    from curate.evaluation.settings import EvalSettings
    from train.ranking.modes import student_rankers

    # For modes other than reasoning, the mode follows the student's name.
    runs_of = load_evaluations(store, plan.name).metrics.select("ranker", "run_id").unique().rows()
    run_ids = [run_id for ranker, run_id in runs_of if ranker.split(" ")[0] == plan.student("dapo")]
    left_out: list[str] = []
    if run_ids:
        evaluation = load_evaluations(store, plan.name, run_ids[0])
    else:
        settings = EvalSettings(shuffles=0, seed=seed)
        selection = select_rankers(store, plan.name, plan.rankers, settings, on_progress=stage.on_progress)
        students = [
            ranker
            for name in plan.students
            for ranker in student_rankers(
                store, plan.student(name), [plan.mode], max_tokens=80, on_progress=stage.on_progress
            )
        ]
        evaluation = evaluate(
            store, plan.name, [*selection.rankers, *students], settings, on_progress=stage.on_progress
        )
        left_out = selection.left_out
    stage.done(
        f"run {evaluation.runs['run_id'][0]}, on lists that were not used for training" + _unless_new(bool(run_ids)),
        partial(print_evaluation, evaluation, left_out, slices=False),
    )
    return evaluation


def _unless_new(there_already: bool) -> str:
    return " (already there)" if there_already else ""
