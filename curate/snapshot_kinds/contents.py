"""What a kind of snapshot is, and what one selection of it gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from store import Session

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
Schema = Mapping[str, pl.DataType | type[pl.DataType]]
SplitRow = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """A selection. splits: of the candidate lists; test must not be published.

    policy: of sft alone. template: of dapo the prompt; of sft only traces of it, None for all. teacher: only traces of
    this kind of teacher, None for all. sid_version and pre_ranker: of what is not made of traces; None means the
    newest, and the only one. text_folder: of midtrain, general text, None for none.
    """

    dataset: str
    policy: str = "paper"
    kind: str = "sft"
    splits: tuple[str, ...] = ("train", "valid")
    template: str | None = None
    teacher: str | None = None
    sid_version: str | None = None
    pre_ranker: str | None = None
    text_folder: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a selection gives.

    render: the rows, each with the split of the store that it belongs to; called when the store is free again.
    targets: (user_id, position) of every interaction that a row teaches. selection, lineage: what the manifest says
    beyond the settings.
    """

    render: Callable[[], list[SplitRow]]
    targets: set[tuple[str, int]]
    sid_versions: tuple[str, ...]
    selection: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of snapshot.

    key: the column that tells rows apart. about: one sentence for the card. select: raises InputError where nothing is
    selected, SnapshotError where what is must not be published.
    """

    name: str
    key: str
    schema: Schema
    about: str
    select: Callable[[Session, SnapshotSettings], Contents]
