"""Runs one SFT training from a snapshot of traces. It is checked before the first step, recorded and resumable."""

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trl import SFTConfig

from store import Store
from train.inputs import open_inputs, resume_settings
from train.ranking.model_selection import open_valid_lists, selection_arguments, selection_callbacks
from train.ranking.settings import NO_SELECTION, SelectionSettings
from train.runs import (
    CHECKPOINTS,
    SELECTED_BY,
    OnProgress,
    StoreCallback,
    TrainingSummary,
    load_training,
    open_run,
    student_folder,
)
from train.sft.muon import MuonWithAdamW
from train.sft.settings import SftSettings
from train.sft.weighted_loss import SftLoss, WeightedSFTTrainer, encode_traces
from train.students.student import most_tokens
from train.students.trainers import add_adapters, shared_arguments, tracker_callbacks

SHOWN = ("loss", "mean_token_accuracy", "learning_rate", SELECTED_BY)


def train_sft(
    store: Store,
    reference: str,
    student: str,
    name: str,
    settings: SftSettings,
    *,
    selection: SelectionSettings = NO_SELECTION,
    resume: bool = False,
    given: Collection[str] = (),
    on_progress: OnProgress = lambda _: None,
) -> TrainingSummary:
    """Train `student` on the snapshot's training split. The new student is called `name`.

    selection: whether valid lists select the best student, and how. resume: continue an unfinished training of this
    name from its last checkpoint, with its original settings and in the same order of data. given: names of settings
    that were chosen although they equal the default, so that a resumed training checks them too.

    Raises InputError or SnapshotError before the first step if the snapshot was changed or is of another kind, if the
    tokenizer cannot write conversations or lacks semantic IDs that the rows show, if the split is empty, if a row is
    too long, if a resumed training was started with other settings, or if there are no valid lists to select by.
    """
    if resume:
        _, recorded = load_training(store, "sft", name)
        settings = resume_settings(name, recorded, settings, given)
        selection = resume_settings(name, recorded, selection, given)
        reference, student = recorded["reference"], recorded["student"]
    snapshot, rows, model, tokenizer, vocabulary, from_scratch = open_inputs(store, "sft", reference, student, settings)
    settings = settings.resolve(from_scratch=from_scratch)
    assert settings.learning_rate is not None
    loss = SftLoss(settings.reasoning_weight, settings.answer_weight)
    limit = min(settings.max_tokens, most_tokens(model))
    encoded = encode_traces(rows, tokenizer, loss, max_tokens=limit, reasoning=settings.reasoning)
    templates = sorted(set(rows["template"]))
    lists = open_valid_lists(store, snapshot, templates, tokenizer, selection)
    selection = selection if lists is None else lists.settings
    arguments = training_arguments(settings, student_folder(store, name) / CHECKPOINTS, limit, selection)
    facts = {**asdict(settings), **asdict(selection), "student": student, "templates": templates}
    with open_run(store, "sft", name, snapshot, facts, resume=resume) as run:
        on_progress(f"{student}: {settings.optimizer}, learning rate {settings.learning_rate:g}")
        model = add_adapters(model, vocabulary, settings, settings.seed)
        muon = settings.optimizer == "muon"
        trainer = WeightedSFTTrainer(
            model,
            arguments,
            encoded,
            processing_class=tokenizer,
            # None leaves the optimizer to the trainer, which takes AdamW. The trainer makes the schedule in both cases.
            optimizers=(MuonWithAdamW(model, settings.learning_rate, settings.weight_decay) if muon else None, None),
            callbacks=[
                StoreCallback(run, SHOWN, on_progress),
                *selection_callbacks(selection),
                *tracker_callbacks(settings, run.folder / "tensorboard"),
            ],
            rank_valid_lists=lists,
        )
        return run.carry_out(trainer, tokenizer, resume=resume)


def training_arguments(
    settings: SftSettings, folder: Path, limit: int, selection: SelectionSettings = NO_SELECTION
) -> SFTConfig:
    """Return the arguments of TRL's trainer. folder: for checkpoints. limit: maximum length of a packed row, in tokens.

    settings: without a learning rate, that of a student from scratch is used.
    """
    settings = settings.resolve(from_scratch=True)
    arguments: dict[str, Any] = {
        "num_train_epochs": settings.epochs,
        "max_steps": -1 if settings.max_steps is None else settings.max_steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        # This remembers fewer steps than 0.999, because a training here has few of them.
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        # Below 1, it is a share of all steps.
        "warmup_steps": settings.warmup_share,
        # Rows that are too long were refused by `encode_traces`, so nothing may be cut off here.
        "max_length": limit if settings.packing else None,
        "packing": settings.packing,
        # Rows of similar length need the least padding.
        "train_sampling_strategy": "random" if settings.packing else "group_by_length",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "logging_steps": settings.log_steps,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "dataloader_num_workers": 0,
        **selection_arguments(selection, folder),
    }
    return SFTConfig(**arguments, **shared_arguments(settings, folder))
