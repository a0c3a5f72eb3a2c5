"""Defines a kind of snapshot, and a selection of its rows."""

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
    """The selection of rows for a snapshot.

    splits: splits of the candidate lists. The split test must not be published.
    kind: a name in KINDS.
    ruleset: the ruleset that accepts traces, for kinds made of traces.
    template: for dapo, the template of the prompts. For sft, only traces of this template; None for all.
    teacher: only traces of this kind of teacher; None for all.
    sid_version, pre_ranker: for kinds not made of traces. None means the newest version, and the only pre-ranker.
    held_out_folds: folds of users that semantic IDs and mid-training leave out, so that their train lists are as new
    to a student as test lists are. Kind midtrain contains no text of these users. Of train lists, the other kinds
    contain only theirs.
    text_dir: a folder of general text, for midtrain; None for no such text.
    traces: a filter of traces, for kinds made of traces. A value that another setting can hold is moved there, so
    that one selection has one manifest.

    Raises InputError on an unknown kind or fold, if the filter contradicts the other settings, or if it asks for
    properties of traces although the kind is not made of traces.
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
        parameters = self.traces.parameters
        kind = KINDS.find(self.kind)
        if kind.filters is not None and (foreign := sorted(parameters.keys() - kind.filters)):
            raise InputError(
                f"a snapshot of kind {self.kind} is not made of traces, so the filter cannot contain "
                f"{', '.join(foreign)}; clear it in the filter, or publish kind sft"
            )
        own: dict[str, Any] = {
            name: parameters[name] for name in ("dataset", "template", "teacher") if name in parameters
        }
        for name, value in own.items():
            if getattr(self, name) not in (None, value):
                raise _contradiction(name, getattr(self, name), value)
        if "split" in parameters:
            if parameters["split"] not in self.splits:
                raise _contradiction("splits", ", ".join(self.splits), parameters["split"])
            own["splits"] = (parameters["split"],)
        rest = replace(self.traces, dataset=None, split=None, template=None, teacher=None)
        if rest.passes == self.ruleset:
            rest = replace(rest, passes=None)
        own["held_out_folds"] = tuple(sorted(set(self.held_out_folds)))
        # Convert to text and back, so that the filter equals the one that is read from a manifest.
        own["traces"] = TraceFilter.from_query(rest.to_query())
        for name, value in own.items():
            object.__setattr__(self, name, value)

    @property
    def trace_filter(self) -> TraceFilter:
        """The filter of the selected traces, except for the ruleset and the splits."""
        return replace(self.traces, dataset=self.dataset, template=self.template, teacher=self.teacher)

    @property
    def rulesets(self) -> tuple[str, ...]:
        """Names of the rulesets that affect the selection. Pass rates are always those under the default ruleset."""
        if not KINDS.find(self.kind).rulesets:
            return ()
        references = [DEFAULT_RULESET, self.ruleset, self.traces.passes, self.traces.fails]
        references += ["strict"] if self.traces.first_failed_rule else []
        return tuple(sorted({reference.partition("@")[0] for reference in references if reference}))

    def to_selection(self) -> dict[str, Any]:
        """The settings as a manifest stores them.

        An empty filter and empty folds are left out, so that older manifests do not change.
        """
        selection = {name: getattr(self, name) for name in _SELECTION}
        given = {"traces": selection.pop("traces").to_query(), "held_out_folds": selection.pop("held_out_folds")}
        return selection | {name: value for name, value in given.items() if value}

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "SnapshotSettings":
        """The settings of a published snapshot."""
        selection = {name: value for name, value in renamed(manifest["selection"]).items() if name in _SELECTION}
        selection["splits"] = tuple(selection["splits"])
        selection["held_out_folds"] = tuple(selection.get("held_out_folds", ()))
        selection["traces"] = TraceFilter.from_query(selection.get("traces", {}))
        return cls(dataset=manifest["lineage"]["dataset"], kind=manifest["kind"], **selection)


def _contradiction(name: str, own: str, in_filter: str) -> InputError:
    return InputError(
        f"the selection has {name} {own!r}, but its filter has {in_filter!r}; leave one of them out, or make them equal"
    )


# The manifest has dataset and kind in other places.
_SELECTION = tuple(field.name for field in fields(SnapshotSettings) if field.name not in ("dataset", "kind"))


@dataclass(frozen=True, slots=True)
class Contents:
    """The rows of a selection, and additions to the manifest.

    render: returns the rows in their final order, each with its split in the store. It is called after the transaction.
    A generator keeps memory low. stream: replaces `render` for a kind that still has to read from the store. It reads
    in parts, each in a short transaction. selection, lineage: entries of the manifest beyond the settings.
    """

    render: Callable[[], Iterable[SplitRow]] | None = None
    sid_versions: tuple[str, ...] = ()
    selection: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)
    stream: Callable[[Store], Iterable[SplitRow]] | None = None

    def rows(self, store: Store) -> Iterable[SplitRow]:
        """The rows, made one at a time. Call it outside of a transaction."""
        if self.stream is not None:
            return self.stream(store)
        return self.render() if self.render is not None else ()


@dataclass(frozen=True, slots=True)
class Counts:
    """The size of a selection.

    groups: numbers of `rows` by `split`, and by further columns that depend on the kind. prompts: None for a kind
    without prompts. labelled_bad: traces left out because a user labelled them bad. mean_tokens: the mean for
    completions; None if no teacher reported tokens.
    """

    groups: pl.DataFrame
    users: int
    prompts: int | None = None
    labelled_bad: int = 0
    mean_tokens: float | None = None

    @property
    def rows(self) -> int:
        """The number of rows."""
        return int(self.groups["rows"].sum())


@dataclass(frozen=True, slots=True)
class Selection:
    """The selected rows, described before any of them is made.

    targets: (user_id, position) of every interaction that a row teaches, as a set or as a frame of these two columns.
    refusal: the reason not to publish, or None. load: returns the contents with the first rows up to a limit, or with
    all rows for None; call it only within the transaction. check: looks for a further reason not to publish, which
    takes long; it is called after the transaction.
    """

    counts: Counts
    targets: set[tuple[str, int]] | pl.DataFrame
    refusal: Gr2Error | None
    load: Callable[[int | None], Contents]
    check: Callable[[Store], Gr2Error | None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of snapshot.

    key: the column that identifies a row. about: one sentence for the dataset card. select: raises InputError if the
    settings name something that does not exist. filters: the fields of a trace filter that the kind supports; None for
    a kind made of traces, which supports all. rulesets: whether a ruleset affects the contents, even if only by pass
    rates.
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
