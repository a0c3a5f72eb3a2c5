"""`gr2 train`: makes students, and trains them on snapshots."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.commands import Given, OptionsOf, add_command
from app.completion import complete_snapshots, complete_students
from app.options import DEFAULT_STORE, StoreOption, open_store, prepare_training, print_table, say
from app.progress import status_line
from train.dapo.settings import DapoSettings
from train.distillation.settings import DistillationSettings
from train.midtrain.settings import MidtrainSettings
from train.ranking.settings import SelectionSettings
from train.sft.settings import SftSettings
from train.students.settings import InitSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from train.dapo.judging import JudgedAgain
    from train.runs import TrainingSummary
    from train.students.student import StudentSummary

Reference = Annotated[
    str,
    typer.Argument(
        help="Snapshot: NAME, NAME@VERSION or its folder.", metavar="SNAPSHOT", autocompletion=complete_snapshots
    ),
]
SnapshotOption = Annotated[
    str | None,
    typer.Argument(
        help="Snapshot to train on: NAME, NAME@VERSION or its folder.",
        metavar="SNAPSHOT",
        autocompletion=complete_snapshots,
    ),
]
StudentOption = Annotated[
    str | None,
    typer.Option(
        help="Model to start from: a student of the store, a folder, or a name on the hub.",
        autocompletion=complete_students,
    ),
]
NameOption = Annotated[str, typer.Option("--name", help="Name of the new student.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Resume the training with this name after it was interrupted or killed.")
]


def register(cli: typer.Typer) -> None:
    """Add the group of commands."""
    train = typer.Typer(help="Make students and train them on snapshots.", no_args_is_help=True)
    for command in (init, midtrain, sft, dapo, distill, rollouts):
        add_command(train, command)
    cli.add_typer(train, name="train")


def init(
    snapshot: Reference,
    name: NameOption,
    given: Annotated[Given, OptionsOf(InitSettings)],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Make a student from scratch, with a vocabulary from the texts of a snapshot. It needs no pretrained weights.

    Example: gr2 train init beauty --name newborn --size tiny
    """
    settings = InitSettings(**given)
    prepare_training("gr2 train")
    from train.students.initialization import init_from_snapshot

    summary = init_from_snapshot(
        open_store(store), snapshot, name, settings.size, rope_theta=settings.rope_theta, seed=settings.seed
    )
    print_student(name, summary)


def midtrain(
    given: Annotated[Given, OptionsOf(MidtrainSettings)],
    snapshot: SnapshotOption = None,
    name: NameOption = "midtrain",
    student: StudentOption = None,
    codebook_rows: Annotated[
        bool,
        typer.Option("--codebook-rows", help="Initialize the embeddings of new tokens with the quantizer's vectors."),
    ] = False,
    resume: ResumeOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Train a model to read and write semantic IDs, with the paper's mix of tasks. Missing tokens are added.

    Example: gr2 train midtrain beauty-texts --student Qwen/Qwen3-8B --name beauty-mid
    """
    settings = MidtrainSettings(**given)
    prepare_training("gr2 train")
    from train.midtrain.training import train_midtrain

    _train(
        train_midtrain,
        snapshot,
        student,
        name,
        ("loss", "mean_token_accuracy"),
        store=store,
        resume=resume,
        settings=settings,
        given=given,
        codebook_rows=codebook_rows,
    )


def sft(
    given: Annotated[Given, OptionsOf(SftSettings)],
    selecting: Annotated[Given, OptionsOf(SelectionSettings)],
    snapshot: SnapshotOption = None,
    name: NameOption = "sft",
    student: StudentOption = None,
    resume: ResumeOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Fine-tune a student on accepted traces, with separate loss weights for reasoning and answer tokens.

    Example: gr2 train sft beauty --student newborn --name beauty-sft --epochs 2
    """
    settings, selection = SftSettings(**given), SelectionSettings(**selecting)
    prepare_training("gr2 train")
    from train.sft.training import train_sft

    _train(
        train_sft,
        snapshot,
        student,
        name,
        ("loss", "mean_token_accuracy"),
        store=store,
        resume=resume,
        settings=settings,
        given=given | selecting,
        selection=selection,
    )


def dapo(
    given: Annotated[Given, OptionsOf(DapoSettings)],
    selecting: Annotated[Given, OptionsOf(SelectionSettings)],
    snapshot: SnapshotOption = None,
    name: NameOption = "dapo",
    student: StudentOption = None,
    resume: ResumeOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Train a student by reinforcement learning on verifiable rewards, with dynamic sampling.

    Example: gr2 train dapo beauty-prompts --student beauty-sft --name beauty-dapo --steps 200
    """
    settings, selection = DapoSettings(**given), SelectionSettings(**selecting)
    prepare_training("gr2 train")
    from train.dapo.training import train_dapo

    _train(
        train_dapo,
        snapshot,
        student,
        name,
        ("reward", "answers/promotion", "answers/valid", "answers/copied"),
        store=store,
        resume=resume,
        settings=settings,
        given=given | selecting,
        selection=selection,
    )


def distill(
    given: Annotated[Given, OptionsOf(DistillationSettings)],
    selecting: Annotated[Given, OptionsOf(SelectionSettings)],
    snapshot: SnapshotOption = None,
    name: NameOption = "distilled",
    student: StudentOption = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="Model to learn from, with the same vocabulary: a student of the store, a folder, or a name on the "
            "hub.",
            autocompletion=complete_students,
        ),
    ] = None,
    resume: ResumeOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Train a student on its answers to a dapo snapshot, by a better model's probabilities (on-policy distillation).

    Example: gr2 train distill beauty-prompts --student rater --teacher rater-base --name distilled
    """
    from store import InputError

    settings, selection = DistillationSettings(**given), SelectionSettings(**selecting)
    if not (resume or teacher):
        raise InputError("a distillation needs a --teacher, the model to learn from")
    prepare_training("gr2 train")
    from train.distillation.training import SHOWN, train_by_distillation

    _train(
        train_by_distillation,
        snapshot,
        student,
        name,
        SHOWN,
        store=store,
        resume=resume,
        settings=settings,
        given=given | selecting,
        selection=selection,
        teacher=teacher or "",
    )


def rollouts(
    name: Annotated[
        str, typer.Argument(help="Student that was trained.", metavar="STUDENT", autocompletion=complete_students)
    ],
    reward: Annotated[
        str | None, typer.Option(help="Reward, as in gr2 train dapo. Default: that of the training.")
    ] = None,
    format_weight: Annotated[
        float | None,
        typer.Option(help="Weight of the reward for a valid answer format. Default: that of the training."),
    ] = None,
    overlong_weight: Annotated[
        float | None, typer.Option(help="Weight of the penalty for long completions. Default: that of the training.")
    ] = None,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Score the stored rollouts of a training again, with another reward or other weights. Nothing is stored.

    Example: gr2 train rollouts beauty-dapo --reward ndcg
    """
    from train.dapo.judging import compare_rewards, judge_again

    changed = {"reward": reward, "format_weight": format_weight, "overlong_weight": overlong_weight}
    result = judge_again(
        open_store(store), name, **{field: value for field, value in changed.items() if value is not None}
    )
    print_rollouts(name, result, compare_rewards(result.rollouts))


def _train(
    train: "Callable[..., TrainingSummary]",
    snapshot: str | None,
    student: str | None,
    name: str,
    shown: tuple[str, ...],
    *,
    store: Path,
    resume: bool,
    **options: Any,
) -> None:
    """Start a training, or continue it, and print the figures `shown`. options: further arguments of `train`.

    Raises InputError if anything that the training needs is missing.
    """
    from store import InputError

    if resume and (snapshot or student):
        raise InputError("--resume uses the snapshot and student of the training; leave SNAPSHOT and --student out")
    if not resume and not (snapshot and student):
        raise InputError("a training needs a SNAPSHOT and a --student (gr2 train init makes one)")
    with status_line() as on_progress:
        summary = train(
            open_store(store), snapshot or "", student or "", name, resume=resume, on_progress=on_progress, **options
        )
    print_training(name, summary, shown)


def print_student(name: str, summary: "StudentSummary") -> None:
    """Print the size of a new student, and its folder."""
    say(
        f"student {name}: {summary.parameters:,} parameters, {summary.text_tokens:,} tokens of text and "
        f"{summary.sid_tokens:,} of semantic IDs, untrained; in {summary.seconds:.1f} s"
    )
    say(f"  {summary.folder}")


def print_training(name: str, summary: "TrainingSummary", shown: tuple[str, ...]) -> None:
    """Print the folder of the student, and the last figures of its training."""
    figures = ", ".join(f"{metric} {summary.figures[metric]:.4g}" for metric in shown if metric in summary.figures)
    optimizer, rate = summary.settings.get("optimizer", "adamw"), summary.settings["learning_rate"]
    # The figures contain only numbers.
    end = f"at the end {figures}; " if figures else ""
    if "best_step" in summary.figures:
        step, ndcg = (summary.figures[metric] for metric in ("best_step", "eval_ndcg_at_5"))
        kept = f"step {step:,}" if step else "the student before training"
        end += f"{kept} is kept, with NDCG@5 {ndcg:.4f} on valid lists; "
    say(
        f"student {name}: {summary.steps:,} steps in {summary.seconds:.1f} s with {optimizer}, learning rate {rate:g}; "
        f"{end}run {summary.run_id}"
    )
    say(f"  {summary.folder}")


def print_rollouts(name: str, result: "JudgedAgain", compared: "pl.DataFrame") -> None:
    """Print what the rollouts of a training earned, and what they would earn now, by ranges of steps."""
    trained, judged = (
        f"{settings.reward}, format weight {settings.format_weight:g}, overlong weight {settings.overlong_weight:g}"
        for settings in (result.trained, result.judged)
    )
    print_table(
        ("steps", "rollouts", "reward", "again", "groups", "differ", "differ again", "same side"),
        [(f"{row[0]}-{row[1]}", *row[2:]) for row in compared.iter_rows()],
        title=f"student {name}, run {result.run_id}; reward: {trained}; again: {judged}; differ: share of groups whose "
        "rewards are not all equal; same side: share of rollouts that are on the same side of their group's mean under "
        "both rewards",
    )
