"""What a kind of snapshot is, and what one selection of it gives."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import polars as pl

from curate.traces.filter import TraceFilter
from store import Gr2Error, InputError, Session, Store
from store.former_names import renamed
from store.records import FOLDS
from store.registry import Registry
from store.settings import check, option

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
Schema = Mapping[str, pl.DataType | type[pl.DataType]]
SplitRow = tuple[str, dict[str, Any]]
DEFAULT_RULESET = "paper"


@dataclass(frozen=True, slots=True)
class SnapshotSettings:
    """A selection. splits: of the candidate lists; test must not be published.

    kind: a name in KINDS. ruleset: of kinds made of traces. template: of dapo the prompt; of sft only traces of it,
    None for all. teacher: only traces of this kind of teacher, None for all. sid_version and pre_ranker: of what is not
    made of traces; None means the newest, and the only one. held_out_folds: folds of users that semantic IDs and
    mid-training leave out, so that their train lists are as new to a student as test lists are: midtrain tells nothing
    of these users, and of train lists the other kinds hold theirs alone. text_dir: of midtrain, general text, None for
    none. traces: which traces of those, of kinds made of traces; what the settings have a name for moves out of it, so
    that one selection has one manifest.

    Raises InputError on an unknown kind or fold, and where the filter contradicts the rest or asks of a kind what only
    traces have.
    """

    dataset: str
    ruleset: str = option(
        DEFAULT_RULESET, help="Ruleset that decides which traces are accepted: paper, strict, answered. Kind sft only."
    )
    kind: str = option(
        "sft",
        help="Kind of snapshot: sft (accepted traces), dapo (prompts with their targets), midtrain (texts with "
        "semantic IDs), or your own as module:object.",
    )
    splits: tuple[str, ...] = option(
        ("train", "valid"), help="Splits to publish, comma-separated; test cannot be published."
    )
    template: str | None = option(
        None,
        help="Kind sft: publish only traces of this prompt template. Kind dapo: the prompt template; default: "
        "rerank_evidence.v1.",
    )
    teacher: str | None = option(None, help="Publish only traces, or pass rates, of this teacher. Default: all.")
    sid_version: str | None = option(
        None,
        help="Version of the semantic IDs. Kinds dapo and midtrain only. Default: the newest that is fit for training.",
    )
    pre_ranker: str | None = option(
        None, help="Pre-ranker whose candidate lists are used, if there are several. Kind dapo only."
    )
    held_out_folds: tuple[int, ...] = option(
        (),
        help="Folds of users that semantic IDs and mid-training leave out, comma-separated. Kind midtrain: publish no "
        "text of their users. Kinds sft and dapo: publish only their train lists. Default: none.",
        low=0,
        high=FOLDS - 1,
    )
    text_dir: str | None = option(
        None, help="Folder of general text (.txt, .md) to mix in. Kind midtrain only. Default: none."
    )
    traces: TraceFilter = field(default_factory=TraceFilter)

    def __post_init__(self) -> None:
        check(self)
        asked = self.traces.parameters
        kind = KINDS.find(self.kind)
        if kind.filters is not None and (foreign := sorted(asked.keys() - kind.filters)):
            raise InputError(
                f"a snapshot of kind {self.kind} is not made of traces, so the filter cannot ask for "
                f"{', '.join(foreign)}; leave that out, or publish kind sft"
            )
        own: dict[str, Any] = {name: asked[name] for name in ("dataset", "template", "teacher") if name in asked}
        for name, value in own.items():
            if getattr(self, name) not in (None, value):
                raise _contradiction(name, getattr(self, name), value)
        if "split" in asked:
            if asked["split"] not in self.splits:
                raise _contradiction("splits", ", ".join(self.splits), asked["split"])
            own["splits"] = (asked["split"],)
        rest = replace(self.traces, dataset=None, split=None, template=None, teacher=None)
        if rest.passes == self.ruleset:
            rest = replace(rest, passes=None)
        own["held_out_folds"] = tuple(sorted(set(self.held_out_folds)))
        # To text and back, so that it is what a manifest gives back.
        own["traces"] = TraceFilter.from_query(rest.to_query())
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def trace_filter(self) -> TraceFilter:
        """The traces that are meant, but for ruleset and splits."""
        return replace(self.traces, dataset=self.dataset, template=self.template, teacher=self.teacher)

    @property
    def rulesets(self) -> tuple[str, ...]:
        """Names of the rulesets that decide what the selection holds; pass rates are those under the default one."""
        if not KINDS.find(self.kind).rulesets:
            return ()
        references = [DEFAULT_RULESET, self.ruleset, self.traces.passes, self.traces.fails]
        references += ["strict"] if self.traces.first_failed_rule else []
        return tuple(sorted({reference.partition("@")[0] for reference in references if reference}))

    def to_selection(self) -> dict[str, Any]:
        """What a manifest says of it. It is silent on a filter or folds not given: older manifests stay as they are."""
        selection = {name: getattr(self, name) for name in _SELECTION}
        given = {"traces": selection.pop("traces").to_query(), "held_out_folds": selection.pop("held_out_folds")}
        return selection | {name: value for name, value in given.items() if value}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "SnapshotSettings":
        """The settings that a snapshot was published with."""
        selection = {name: value for name, value in renamed(manifest["selection"]).items() if name in _SELECTION}
        selection["splits"] = tuple(selection["splits"])
        selection["held_out_folds"] = tuple(selection.get("held_out_folds", ()))
        selection["traces"] = TraceFilter.from_query(selection.get("traces", {}))
        return cls(dataset=manifest["lineage"]["dataset"], kind=manifest["kind"], **selection)


def _contradiction(name: str, own: str, asked: str) -> InputError:
    return InputError(
        f"the selection is of {name} {own!r}, its filter asks for {asked!r}; leave one of them out, or make them agree"
    )


# Dataset and kind stand elsewhere in the manifest.
_SELECTION = tuple(field.name for field in fields(SnapshotSettings) if field.name not in ("dataset", "kind"))


@dataclass(frozen=True, slots=True)
class Contents:
    """What is written of a selection.

    render: the rows in the order to keep, each with the split of the store that it belongs to; called when the store is
    free again. A generator keeps memory low. stream: the same, in place of `render`, for a kind that still has to read
    what its rows are made of: it reads the store in parts, each in a short transaction of its own. selection, lineage:
    what the manifest says beyond the settings.
    """

    render: Callable[[], Iterable[SplitRow]] | None = None
    sid_versions: tuple[str, ...] = ()
    selection: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    stream: Callable[[Store], Iterable[SplitRow]] | None = None

    def rows(self, store: Store) -> Iterable[SplitRow]:
        """The rows, made one after the other. Not within a transaction."""
        if self.stream is not None:
            return self.stream(store)
        return self.render() if self.render is not None else ()


@dataclass(frozen=True, slots=True)
class Counts:
    """How much a selection is. groups: numbers of `rows` by `split`, and by what else tells rows of a kind apart.

    prompts: None of what has none. labelled_bad: traces left out because somebody called them bad. mean_tokens: of
    completions, None where no teacher counted.
    """

    groups: pl.DataFrame
    users: int
    prompts: int | None = None
    labelled_bad: int = 0
    mean_tokens: float | None = None

    @property
    def rows(self) -> int:
        """How many rows there are to write."""
        return int(self.groups["rows"].sum())


@dataclass(frozen=True, slots=True)
class Selection:
    """What settings select, told without making a row.

    targets: (user_id, position) of every interaction that a row teaches, as a set or as a frame of these two columns.
    refusal: why nothing of it is to be published, None where nothing speaks against it. load: the contents, of the
    first so many rows or of all; only within the transaction. check: finds a further refusal that takes long to look
    for; called when the store is free again.
    """

    counts: Counts
    targets: set[tuple[str, int]] | pl.DataFrame
    refusal: Gr2Error | None
    load: Callable[[int | None], Contents]
    check: Callable[[Store], Gr2Error | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of snapshot.

    key: the column that tells rows apart. about: one sentence for the card. select: raises InputError where the
    settings name what is not there. filters: the fields of a filter of traces that it understands; None for a kind that
    is made of traces, which understands all. rulesets: whether one decides what it holds, if only by pass rates.
    """

    key: str
    schema: Schema
    about: str
    select: Callable[[Session, SnapshotSettings], Selection]
    filters: tuple[str, ...] | None = None
    rulesets: bool = True


KINDS: Registry[Kind] = Registry(
    "kind of snapshot",
    "gr2.snapshot_kinds",
    {
        "sft": "curate.snapshots.sft:SFT",
        "dapo": "curate.snapshots.dapo:DAPO",
        "midtrain": "curate.snapshots.midtrain:MIDTRAIN",
    },
    Kind,
)
