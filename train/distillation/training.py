"""One distillation from a snapshot of prompts: it is checked before the first step, recorded and resumable.

TRL's DistillationTrainer does the work. The student answers each prompt, and at each token of its own answers its
probabilities are drawn to those of a better model, the teacher, by the reverse KL divergence. That is reinforcement
with the teacher's log-probability minus the student's as the advantage of each token (on-policy distillation,
arXiv 2306.13649), computed over the whole vocabulary instead of the sampled token alone. No reward is needed, so the
targets of the prompts are not read.
"""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from trl import DistillationConfig, DistillationTrainer

from prompts.templates import load_template
from store import InputError, Store
from train.distillation.settings import DistillationSettings
from train.inputs import check_lengths, open_inputs, resume_settings
from train.ranking.model_selection import (
    SelectingTrainer,
    open_valid_lists,
    selection_arguments,
    selection_callbacks,
)
from train.ranking.settings import NO_SELECTION, SelectionSettings
from train.runs import (
    CHECKPOINTS,
    SELECTED_BY,
    OnProgress,
    StoreCallback,
    TrainingSummary,
    find_student,
    load_training,
    open_run,
    student_folder,
)
from train.students.chat import ChatFormat
from train.students.student import load_student, most_tokens
from train.students.trainers import ChatPrompts, add_adapters, shared_arguments, tracker_callbacks

# TRL's loss is the divergence itself.
SHOWN = ("loss", "entropy", "completions/mean_length", SELECTED_BY)


class SelectingDistillationTrainer(SelectingTrainer, ChatPrompts, DistillationTrainer):  # type: ignore[misc]
    """TRL's trainer with gr2's prompts, which keeps the best student by valid lists."""


def train_by_distillation(
    store: Store,
    reference: str,
    student: str,
    name: str,
    settings: DistillationSettings,
    *,
    teacher: str,
    selection: SelectionSettings = NO_SELECTION,
    resume: bool = False,
    given: Collection[str] = (),
    on_progress: OnProgress = lambda _: None,
) -> TrainingSummary:
    """Train `student` to answer the snapshot's prompts as `teacher` would. The new student is called `name`.

    teacher: a student of the store, a folder or a name on the hub, with the student's vocabulary. It does not change.
    selection, resume, given: as in `train_sft`.

    Raises InputError or SnapshotError before the first step if the snapshot was changed or is of another kind, if the
    teacher has another vocabulary, if the tokenizer cannot write conversations or lacks semantic IDs that the prompts
    show, if the split is empty, if a prompt leaves no room for an answer, if a resumed training was started with other
    settings, or if there are no valid lists to select by.
    """
    if resume:
        _, recorded = load_training(store, "distill", name)
        settings = resume_settings(name, recorded, settings, given, teacher=teacher)
        selection = resume_settings(name, recorded, selection, given)
        reference, student, teacher = recorded["reference"], recorded["student"], recorded["teacher"]
    # A snapshot of prompts is one for reinforcement.
    snapshot, rows, model, tokenizer, vocabulary, from_scratch = open_inputs(
        store, "dapo", reference, student, settings
    )
    settings = settings.resolve(from_scratch=from_scratch)
    teacher_model = _load_teacher(store, teacher, model, tokenizer)
    positions = min(most_tokens(model), most_tokens(teacher_model))
    check_lengths(rows["prompt"], ChatFormat.of(tokenizer), settings.max_tokens, positions)
    template = load_template(rows["template"][0])
    lists = open_valid_lists(store, snapshot, [template.name], tokenizer, selection)
    selection = selection if lists is None else lists.settings
    arguments = _arguments(settings, student_folder(store, name) / CHECKPOINTS, selection)
    facts = {
        **asdict(settings),
        **asdict(selection),
        "student": student,
        "teacher": teacher,
        "templates": [template.name],
    }
    with open_run(store, "distill", name, snapshot, facts, resume=resume) as run:
        on_progress(f"{student}: learns from {teacher}, learning rate {settings.learning_rate:g}")
        trainer = SelectingDistillationTrainer(
            add_adapters(model, vocabulary, settings, settings.seed),
            teacher_model,
            args=arguments,
            train_dataset=rows.select_columns(["prompt"]),
            processing_class=tokenizer,
            callbacks=[
                StoreCallback(run, SHOWN, on_progress),
                *selection_callbacks(selection),
                *tracker_callbacks(settings, run.folder / "tensorboard"),
            ],
            rank_valid_lists=lists,
        )
        return run.carry_out(trainer, tokenizer, resume=resume)


def _load_teacher(store: Store, teacher: str, model: Any, tokenizer: Any) -> Any:
    """The teacher's model. Raises InputError if a token of the student's does not mean the same to it."""
    on_gpu = torch.cuda.is_available()
    loaded, others = load_student(find_student(store, teacher), dtype=torch.bfloat16 if on_gpu else torch.float32)
    sizes = [each.config.get_text_config().vocab_size for each in (model, loaded)]
    if tokenizer.get_vocab() != others.get_vocab() or sizes[0] != sizes[1]:
        raise InputError(
            f"the teacher {teacher!r} has another vocabulary than the student ({sizes[1]:,} and {sizes[0]:,} tokens), "
            "so their probabilities cannot be compared; choose a teacher of the same family, or students that gr2 "
            "train init made from the same snapshot"
        )
    return loaded


def _arguments(settings: DistillationSettings, folder: Path, selection: SelectionSettings) -> DistillationConfig:
    """TRL's settings, of resolved ones. folder: for checkpoints."""
    arguments: dict[str, Any] = {
        "beta": settings.beta,
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.prompts_per_batch,
        "max_completion_length": settings.max_tokens,
        "temperature": settings.temperature,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "logging_steps": settings.log_steps,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        **selection_arguments(selection, folder),
    }
    return DistillationConfig(**arguments, **shared_arguments(settings, folder))
