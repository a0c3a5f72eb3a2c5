"""Opens and checks the inputs of a training before its first step: a snapshot's rows, the student, the settings."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import datasets

from prompts.semantic_ids import BEGIN
from store import InputError, Store
from store.snapshots import Snapshot
from train.runs import find_student, open_snapshot, sid_sizes
from train.snapshots import load_snapshot
from train.students.chat import ChatFormat, Message
from train.students.settings import TrainerSettings
from train.students.student import is_from_scratch
from train.students.trainers import load_trainable
from train.students.vocabulary import Vocabulary, find_vocabulary, missing_token

# A dataclass of settings.
S = TypeVar("S", bound=Any)


class TrainingInputs(NamedTuple):
    """The inputs of a training.

    rows: the training split. vocabulary: the places of the snapshot's semantic IDs in the student's tokenizer, or None
    if no row shows a semantic ID. from_scratch: whether gr2 made the student, so that it is not a pretrained model.
    """

    snapshot: Snapshot
    rows: datasets.Dataset
    model: Any
    tokenizer: Any
    vocabulary: Vocabulary | None
    from_scratch: bool


def open_inputs(
    store: Store, kind: str, reference: str, student: str, settings: TrainerSettings | None = None
) -> TrainingInputs:
    """Open a snapshot and a student. The student is in the store, in a folder or on the hub.

    kind: the kind of snapshot to expect. settings: how the student is trained, which decides its precision; None means
    the defaults.

    Raises InputError or SnapshotError if the snapshot is unknown, changed, of another kind or without training split.
    Raises InputError if the student cannot be loaded, or if its tokenizer lacks semantic IDs that the rows show.
    """
    snapshot = open_snapshot(store, reference)
    splits = load_snapshot(snapshot.path, kind=kind)
    if "train" not in splits:
        raise InputError(f"snapshot {reference} has no training split; publish one with the splits train and valid")
    rows = splits["train"]
    model, tokenizer = load_trainable(find_student(store, student), settings or TrainerSettings())
    vocabulary = _find_vocabulary(tokenizer, snapshot, student) if _shows_sids(rows) else None
    return TrainingInputs(snapshot, rows, model, tokenizer, vocabulary, is_from_scratch(model, tokenizer))


def _shows_sids(rows: datasets.Dataset) -> bool:
    """Whether a prompt or a completion contains a semantic ID. Templates with numbers and levels show none."""
    columns = [name for name in ("prompt", "completion") if name in rows.column_names]
    return any(
        BEGIN in message["content"] for row in rows.select_columns(columns) for name in columns for message in row[name]
    )


def _find_vocabulary(tokenizer: Any, snapshot: Snapshot, student: str) -> Vocabulary:
    sizes = sid_sizes(snapshot)
    if missing := missing_token(tokenizer, *sizes):
        dataset = snapshot.manifest["lineage"]["dataset"]
        raise InputError(
            f"the model's tokenizer has no token {missing}, which the snapshot's semantic IDs need; add the tokens "
            f"with gr2 snapshot publish {dataset}-texts --dataset {dataset} --kind midtrain and gr2 train midtrain "
            f"{dataset}-texts --student {student} --name {Path(student).name}-mid, or publish a snapshot with a "
            "template without semantic IDs, such as rerank_levels.v1"
        )
    return find_vocabulary(tokenizer, *sizes)


def check_lengths(prompts: Iterable[Sequence[Message]], chat: ChatFormat, max_tokens: int, positions: int) -> None:
    """Check that each prompt leaves room for an answer.

    max_tokens: maximum length of an answer. positions: the most tokens that the model reads. Raises InputError if the
    longest prompt and the longest answer together exceed them.
    """
    longest = max(len(ids) for ids in chat.encode_prompts(prompts))
    if longest + max_tokens > positions:
        raise InputError(
            f"the longest prompt has {longest:,} tokens; with answers of up to {max_tokens:,} that is more than the "
            f"model's {positions:,}: lower `max_tokens`, or publish a snapshot with a shorter template"
        )


def resume_settings(
    name: str, recorded: Mapping[str, Any], settings: S, given: Collection[str] = (), **others: Any
) -> S:
    """The settings with which a training was started, to be used instead of `settings`.

    Settings that differ from their defaults, and those in `given`, were chosen by the caller. others: chosen values
    that are not in the dataclass; None or False if not chosen.

    Raises InputError with the names of the chosen settings that were recorded with another value.
    """
    defaults = type(settings)()
    chosen = {
        field.name: value
        for field in fields(settings)
        if (value := getattr(settings, field.name)) != getattr(defaults, field.name) or field.name in given
    }
    chosen |= {other: value for other, value in others.items() if value}
    # A setting that is newer than the record has no value to compare with.
    differing = {field: value for field, value in chosen.items() if field in recorded and recorded[field] != value}
    if differing:
        details = ", ".join(f"`{field}` {recorded[field]}, not {value}" for field, value in differing.items())
        raise InputError(
            f"the training of {name!r} was started with {details}; leave it out to resume that training, or choose "
            "another `name` for a new one"
        )
    return replace(
        settings, **{field.name: recorded[field.name] for field in fields(settings) if field.name in recorded}
    )
