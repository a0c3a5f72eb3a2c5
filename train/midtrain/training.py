"""Runs one mid-training from a snapshot of texts. It adds semantic IDs to any model, is recorded and resumable."""

from collections.abc import Collection, Sequence
from dataclasses import asdict

import numpy as np
from numpy.typing import NDArray

from curate.sids.versions import SidVersion, load_settings, model_folder
from store import InputError, Store
from store.progress import Counted
from store.snapshots import Snapshot
from train.inputs import resume_settings
from train.midtrain.settings import MidtrainSettings
from train.midtrain.tasks import midtrain
from train.runs import (
    OnProgress,
    TrainingSummary,
    find_student,
    load_training,
    metric_rows,
    open_run,
    open_snapshot,
    sid_sizes,
)
from train.sids.methods import load_quantizer
from train.snapshots import load_snapshot
from train.students.student import is_from_scratch
from train.students.trainers import add_adapters, load_trainable
from train.students.vocabulary import add_vocabulary


def train_midtrain(
    store: Store,
    reference: str,
    student: str,
    name: str,
    settings: MidtrainSettings,
    *,
    codebook_rows: bool = False,
    resume: bool = False,
    given: Collection[str] = (),
    on_progress: OnProgress = lambda _: None,
) -> TrainingSummary:
    """Teach `student` the snapshot's semantic IDs. The new student is called `name`. resume, given: as in `train_sft`.

    If the model's tokenizer lacks the IDs, they are added, so a pretrained model from elsewhere starts here.
    codebook_rows: initialize their embeddings with the quantizer's vectors, and not with the mean of all rows.

    Raises InputError or SnapshotError before the first step if the snapshot was changed or is of another kind, if its
    training split is empty, if a text is too long, or if the store lacks the codebooks.
    """
    if resume:
        _, recorded = load_training(store, "midtrain", name)
        settings = resume_settings(name, recorded, settings, given, codebook_rows=codebook_rows)
        reference, student, codebook_rows = recorded["reference"], recorded["student"], recorded["codebook_rows"]
    snapshot = open_snapshot(store, reference)
    rows = load_snapshot(snapshot.path, kind="midtrain")
    model, tokenizer = load_trainable(find_student(store, student), settings)
    settings = settings.resolve(from_scratch=is_from_scratch(model, tokenizer))
    codebooks = _load_codebooks(store, snapshot) if codebook_rows else ()
    vocabulary = add_vocabulary(model, tokenizer, *sid_sizes(snapshot), codebooks=codebooks, seed=settings.seed)
    facts = {**asdict(settings), "student": student, "codebook_rows": codebook_rows, "templates": []}
    steps = settings.warmup_steps + settings.steps
    with open_run(store, "midtrain", name, snapshot, facts, resume=resume) as run:
        on_progress(f"{student}: learning rate {settings.learning_rate:g}")
        model = add_adapters(model, vocabulary, settings, settings.seed)

        def tell(step: int, metrics: dict[str, float]) -> None:
            run.keep(metric_rows(step, metrics))
            on_progress(Counted(f"step {step:,} of {steps:,}: loss {metrics['loss']:.4g}", step, steps))

        figures = midtrain(
            model, tokenizer, rows, vocabulary, settings, output_dir=run.checkpoints, on_log=tell, resume=resume
        )
        return run.finish(model, tokenizer, steps, figures)


def _load_codebooks(store: Store, snapshot: Snapshot) -> Sequence[NDArray[np.float32]]:
    """Load the quantizer's vectors, by level, for a snapshot's semantic IDs.

    Raises InputError if the store lacks them.
    """
    lineage = snapshot.manifest["lineage"]
    version = SidVersion(lineage["dataset"], lineage["semantic_ids"][0]["sid_version"])
    folder = model_folder(store, version)
    if not folder.is_dir():
        raise InputError(f"the store has no codebooks of {version}; leave `codebook_rows` out")
    with store.reading() as session:
        method = load_settings(session, version)["method"]
    return load_quantizer(method, folder).codebooks
