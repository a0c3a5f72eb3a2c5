"""What a training works on, opened and checked before its first step: a snapshot's rows, and the student of them."""

from typing import Any, NamedTuple

import datasets

from store import InputError, Store
from store.snapshots import Snapshot
from train.runs import find_student, open_snapshot, sid_sizes
from train.snapshots import load_snapshot
from train.students.student import load_student
from train.students.vocabulary import Vocabulary, find_vocabulary


class TrainingInputs(NamedTuple):
    """rows: the training split. vocabulary: where the snapshot's semantic IDs stand in the student's tokenizer."""

    snapshot: Snapshot
    rows: datasets.Dataset
    model: Any
    tokenizer: Any
    vocabulary: Vocabulary


def open_inputs(store: Store, kind: str, reference: str, student: str) -> TrainingInputs:
    """A snapshot of a kind, verified, and a student of the store, a folder or the hub.

    Raises InputError and SnapshotError on a snapshot that is unknown, changed, of another kind or without training
    split, and on a student that cannot be loaded or whose tokenizer lacks the semantic IDs.
    """
    snapshot = open_snapshot(store, reference)
    splits = load_snapshot(snapshot.path, kind=kind)
    if "train" not in splits:
        raise InputError(f"snapshot {reference} has no training split; publish one with the splits train and valid")
    model, tokenizer = load_student(find_student(store, student))
    return TrainingInputs(snapshot, splits["train"], model, tokenizer, find_vocabulary(tokenizer, *sid_sizes(snapshot)))
