"""`gr2 train`: make a student, and train it on snapshots."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.options import DEFAULT_STORE, StoreOption, open_store, prepare_training, say
from app.progress import status_line

if TYPE_CHECKING:
    from train.runs import TrainingSummary
    from train.students.student import StudentSummary

train = typer.Typer(help="Make students and train them on snapshots.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(help="NAME, NAME@VERSION or a folder.", metavar="SNAPSHOT")]
StudentOption = Annotated[
    str | None, typer.Option(help="What to begin with: a student of the store, a folder, or a name on the hub.")
]
NameOption = Annotated[str, typer.Option("--name", help="What the new student is called.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the training of this name that was killed.")]


def register(cli: typer.Typer) -> None:
    """Add the group of commands."""
    cli.add_typer(train, name="train")


@train.command()
def init(
    snapshot: Reference,
    name: NameOption,
    size: Annotated[str, typer.Option(help="tiny, small or base.")] = "tiny",
    seed: Annotated[int, typer.Option(help="The same seed gives the same student.")] = 0,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Make a student from scratch, with a vocabulary from a snapshot's own texts, for machines without model weights.

    Example: gr2 train init beauty --name newborn --size tiny
    """
    prepare_training("gr2 train")
    from train.students.initialization import init_from_snapshot

    done = init_from_snapshot(open_store(store), snapshot, name, size, seed=seed)
    print_student(name, done)


@train.command()
def midtrain(
    snapshot: Annotated[str | None, typer.Argument(help="Of kind midtrain.", metavar="SNAPSHOT")] = None,
    name: NameOption = "midtrain",
    student: StudentOption = None,
    warmup_steps: Annotated[int, typer.Option(help="Steps in which only the rows of new tokens train.")] = 100,
    steps: Annotated[int, typer.Option(help="Steps after these, in which everything does.")] = 1_000,
    batch_size: Annotated[int, typer.Option(help="Texts a step and process.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="After the warm-up, whose is the paper's 5e-4.")] = 1e-3,
    max_length: Annotated[int, typer.Option(help="The longest text allowed, in tokens.")] = 1024,
    packing: Annotated[bool, typer.Option("--packing", help="Several texts in one sequence.")] = False,
    codebook_rows: Annotated[
        bool, typer.Option("--codebook-rows", help="New rows begin at the quantizer's vectors, not at the mean.")
    ] = False,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    log_steps: Annotated[int, typer.Option(help="Steps between figures.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the texts drawn.")] = 0,
    resume: ResumeOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Teach a model to read and write semantic IDs, by the paper's mix of tasks; a model without the tokens gets them.

    Example: gr2 train midtrain beauty-texts --student Qwen/Qwen3-8B --name beauty-mid
    """
    prepare_training("gr2 train")
    from train.midtrain.tasks import MidtrainSettings
    from train.midtrain.training import train_midtrain

    settings = MidtrainSettings(
        warmup_steps=warmup_steps,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_length=max_length,
        packing=packing,
        seed=seed,
        save_steps=save_steps,
        log_steps=log_steps,
    )
    reference, begin = _begin(snapshot, student, resume=resume)
    with status_line() as on_progress:
        done = train_midtrain(
            open_store(store),
            reference,
            begin,
            name,
            settings,
            codebook_rows=codebook_rows,
            resume=resume,
            on_progress=on_progress,
        )
    print_training(name, done, ("loss", "mean_token_accuracy"))


@train.command()
def sft(
    snapshot: Annotated[str | None, typer.Argument(help="Of kind sft.", metavar="SNAPSHOT")] = None,
    name: NameOption = "sft",
    student: StudentOption = None,
    reasoning_weight: Annotated[float, typer.Option(help="Weight of a reasoning token (lambda_r).")] = 0.1,
    answer_weight: Annotated[float, typer.Option(help="Weight of a token of the order (lambda_o).")] = 1.0,
    reasoning: Annotated[bool, typer.Option(help="Without it, explanations are left empty.")] = True,
    epochs: Annotated[float, typer.Option(help="Passes over the training split.")] = 1.0,
    max_steps: Annotated[int | None, typer.Option(help="End after so many steps.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a step and process.")] = 32,
    gradient_accumulation_steps: Annotated[int, typer.Option(help="Batches a step.")] = 1,
    optimizer: Annotated[
        str, typer.Option(help="muon, faster from scratch, or adamw, for grown students and LoRA.")
    ] = "muon",
    learning_rate: Annotated[
        float, typer.Option(help="5e-3 is for students from scratch; 1e-5 for grown ones.")
    ] = 5e-3,
    max_tokens: Annotated[int, typer.Option(help="The longest row allowed.")] = 4096,
    packing: Annotated[bool, typer.Option("--packing", help="Several rows in one sequence of --max-tokens.")] = False,
    lora_rank: Annotated[int, typer.Option(help="0 trains every weight.")] = 0,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    log_steps: Annotated[int, typer.Option(help="Steps between figures.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the order of rows.")] = 0,
    resume: ResumeOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Fine-tune a student on accepted traces; tokens of the order weigh more than those of the reasoning.

    Example: gr2 train sft beauty --student newborn --name beauty-sft --epochs 2
    """
    prepare_training("gr2 train")
    from train.sft.training import SftSettings, train_sft

    settings = SftSettings(
        reasoning_weight=reasoning_weight,
        answer_weight=answer_weight,
        reasoning=reasoning,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        optimizer=optimizer,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        packing=packing,
        lora_rank=lora_rank,
        seed=seed,
        save_steps=save_steps,
        log_steps=log_steps,
    )
    reference, begin = _begin(snapshot, student, resume=resume)
    with status_line() as on_progress:
        done = train_sft(open_store(store), reference, begin, name, settings, resume=resume, on_progress=on_progress)
    print_training(name, done, ("loss", "mean_token_accuracy"))


@train.command()
def dapo(
    snapshot: Annotated[str | None, typer.Argument(help="Of kind dapo.", metavar="SNAPSHOT")] = None,
    name: NameOption = "dapo",
    student: StudentOption = None,
    reward: Annotated[str, typer.Option(help="paper (conditional), plain, gated, auc or ndcg.")] = "paper",
    format_weight: Annotated[float, typer.Option(help="Weight of the form of the answer.")] = 0.2,
    num_generations: Annotated[int, typer.Option(help="Completions of each prompt.")] = 8,
    prompts_per_batch: Annotated[int, typer.Option(help="Prompts of a generated batch and process.")] = 16,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 100,
    num_iterations: Annotated[
        int, typer.Option(help="Steps for each generated batch; --epsilon matters from 2 on.")
    ] = 1,
    gradient_accumulation_steps: Annotated[
        int, typer.Option(help="Passes that the rows of a step are split into.")
    ] = 1,
    refill_rounds: Annotated[
        int, typer.Option(help="Rounds of fresh prompts for groups whose rewards do not differ; 0: as TRL.")
    ] = 2,
    min_pass_rate: Annotated[float, typer.Option(help="Only prompts that a teacher passed this often or more.")] = 0.0,
    max_pass_rate: Annotated[float, typer.Option(help="Only prompts that a teacher passed this often or less.")] = 1.0,
    max_tokens: Annotated[int, typer.Option(help="The longest completion.")] = 256,
    overlong_weight: Annotated[float, typer.Option(help="Weight of the punishment of long answers.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    epsilon: Annotated[float, typer.Option(help="How far a probability may fall.")] = 0.2,
    epsilon_high: Annotated[float, typer.Option(help="How far it may rise.")] = 0.28,
    learning_rate: Annotated[
        float, typer.Option(help="1e-4 is for students from scratch; 1e-6 for grown ones.")
    ] = 1e-4,
    lora_rank: Annotated[int, typer.Option(help="0 trains every weight.")] = 0,
    vllm_url: Annotated[
        str | None, typer.Option(help="Generate there (trl vllm-serve), such as http://127.0.0.1:8000.")
    ] = None,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 50,
    log_steps: Annotated[int, typer.Option(help="Steps between figures.")] = 1,
    seed: Annotated[int, typer.Option(help="Of prompts and samples.")] = 0,
    resume: ResumeOption = False,
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Train a student by reinforcement on verifiable rewards, with dynamic sampling.

    Example: gr2 train dapo beauty-prompts --student beauty-sft --name beauty-dapo --steps 200
    """
    prepare_training("gr2 train")
    from train.dapo.training import DapoSettings, train_dapo

    settings = DapoSettings(
        reward=reward,
        format_weight=format_weight,
        num_generations=num_generations,
        prompts_per_batch=prompts_per_batch,
        steps=steps,
        num_iterations=num_iterations,
        gradient_accumulation_steps=gradient_accumulation_steps,
        refill_rounds=refill_rounds,
        min_pass_rate=min_pass_rate,
        max_pass_rate=max_pass_rate,
        max_tokens=max_tokens,
        overlong_weight=overlong_weight,
        temperature=temperature,
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        learning_rate=learning_rate,
        lora_rank=lora_rank,
        vllm_url=vllm_url,
        seed=seed,
        save_steps=save_steps,
        log_steps=log_steps,
    )
    reference, begin = _begin(snapshot, student, resume=resume)
    with status_line() as on_progress:
        done = train_dapo(open_store(store), reference, begin, name, settings, resume=resume, on_progress=on_progress)
    print_training(name, done, ("reward", "answers/promotion", "answers/valid", "answers/copied"))


def _begin(snapshot: str | None, student: str | None, *, resume: bool) -> tuple[str, str]:
    """What a training needs unless it goes on. Raises InputError."""
    from store import InputError

    if resume and (snapshot or student):
        raise InputError("--resume goes on with what the training began with; leave SNAPSHOT and --student out")
    if not resume and not (snapshot and student):
        raise InputError("a training needs a SNAPSHOT and a --student (gr2 train init makes one)")
    return snapshot or "", student or ""


def print_student(name: str, done: "StudentSummary") -> None:
    """How large a new student is, and where."""
    say(
        f"student {name}: {done.parameters:,} parameters, {done.text_tokens:,} tokens of text and "
        f"{done.sid_tokens:,} of semantic IDs, knows nothing yet; in {done.seconds:.1f} s"
    )
    say(f"  {done.folder}")


def print_training(name: str, done: "TrainingSummary", shown: tuple[str, ...]) -> None:
    """Where the student is, and the last figures of its training."""
    figures = ", ".join(f"{metric} {done.figures[metric]:.4g}" for metric in shown if metric in done.figures)
    say(f"student {name}: {done.steps:,} steps in {done.seconds:.1f} s; at the end {figures}; run {done.run_id}")
    say(f"  {done.folder}")
