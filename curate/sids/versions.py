"""Versions of semantic IDs in the store: their names, their rows, and the fitted quantizers stored with them."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl
from numpy import uint16
from numpy.typing import NDArray

from curate.sids.measures import Measure
from prompts.semantic_ids import render_sid
from store import InputError, Session, Store
from store.records import Item
from store.temporary import temporary_folder
from store.values import utc_now

# Versions with a smaller share of distinct IDs are rejected for training.
UNIQUENESS_BAR = 0.99


class SidVersion(NamedTuple):
    """A version of a dataset's semantic IDs, written `dataset@version`."""

    dataset: str
    sid_version: str

    def __str__(self) -> str:
        return f"{self.dataset}@{self.sid_version}"


@dataclass(frozen=True, slots=True)
class SidSummary:
    """A stored version.

    settings: the settings that it was made with. uniqueness: distinct IDs / items. already_there: whether it was in the
    store before this call. seconds: the time that this call took.
    """

    version: SidVersion
    settings: dict[str, Any]
    items: int
    distinct_ids: int
    uniqueness: float
    fit_for_training: bool
    measures: list[Measure]
    already_there: bool
    seconds: float

    def figure(self, measure: str, level: int | None = None) -> float | None:
        """The value of one measure, or None if the version does not have it."""
        return next((row.value for row in self.measures if (row.measure, row.level) == (measure, level)), None)


def name_version(dataset: str, settings: dict[str, Any]) -> SidVersion:
    """Name the version of these settings: method, sizes and a hash of all settings."""
    digest = hashlib.sha256(orjson.dumps(settings, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return SidVersion(dataset, f"{settings['method']}-{settings['levels']}x{settings['codebook_size']}-{digest[:6]}")


def find_version(session: Session, text: str) -> SidVersion:
    """Find a version by `dataset@version`, by dataset, or by version.

    A dataset alone means its newest version that is fit for training, or else its newest. The beginning of a version's
    name is enough. Raises InputError, with the known versions, if none or several match.
    """
    dataset, _, name = text.partition("@")
    versions = [
        (SidVersion(*row[:2]), row[2])
        for row in session.frame("sid_version_list").select("dataset", "sid_version", "fit_for_training").rows()
    ]
    named = [version for version, _ in versions if version.dataset == dataset and version.sid_version.startswith(name)]
    if not name and named:
        return next((version for version, fit in versions if version.dataset == dataset and fit), named[0])
    matches = named if name else [version for version, _ in versions if version.sid_version.startswith(text)]
    # A full name may also be the beginning of a longer one.
    exact = [version for version in matches if text in {str(version), version.sid_version}]
    matches = exact or matches
    if len(matches) == 1:
        return matches[0]
    names = ", ".join(map(str, matches or [version for version, _ in versions]))
    raise InputError(
        f"{text!r} names {'several versions' if matches else 'no version'} of semantic IDs; there are: "
        f"{names or 'none yet (gr2 sids NAME makes one)'}"
    )


def list_versions(store: Store) -> pl.DataFrame:
    """A table of all versions, newest first."""
    with store.reading() as session:
        return session.frame("sid_version_list")


def model_folder(store: Store, version: SidVersion) -> Path:
    """The folder of a version's fitted quantizer."""
    return store.models / "sids" / version.dataset / version.sid_version


def load_items(session: Session, dataset: str) -> list[Item]:
    """The items of a dataset, ordered by item_id."""
    return [
        Item(item_id, title, tuple(categories), brand, description)
        for item_id, title, categories, brand, description in session.rows("items_of", dataset=dataset)
    ]


def load_codes(session: Session, version: SidVersion) -> dict[str, tuple[int, ...]]:
    """The codes of a version's IDs, by item_id."""
    return {item_id: tuple(codes) for item_id, codes in session.rows("codes_of", **version._asdict())}


def load_settings(session: Session, version: SidVersion) -> dict[str, Any]:
    """The settings of a version, which must exist."""
    settings: dict[str, Any] = orjson.loads(session.rows("sid_version", **version._asdict())[0][0])
    return settings


def load_summary(
    session: Session, version: SidVersion, started: float | None = None, *, already_there: bool = True
) -> SidSummary | None:
    """Load a stored version, or None if there is none. started: start of the work, by time.perf_counter()."""
    rows = session.frame("sid_version", **version._asdict())
    if rows.height == 0:
        return None
    row = rows.row(0, named=True)
    return SidSummary(
        version=version,
        settings=orjson.loads(row.pop("settings")),
        **row,
        measures=[Measure(*values) for values in session.rows("sid_measures_of", **version._asdict())],
        already_there=already_there,
        seconds=time.perf_counter() - started if started else 0.0,
    )


def put_version(
    store: Store,
    version: SidVersion,
    settings: dict[str, Any],
    items: Sequence[Item],
    ids_N_L: NDArray[uint16],
    *,
    measures: Sequence[Measure],
    save_model: Callable[[Path], object],
    accept_shared: bool,
    started: float,
) -> SidSummary:
    """Store a version: its model as files, its IDs and measures as rows.

    save_model: writes the model into a folder. Returns the stored version, even if another process stored it first.
    """
    target = model_folder(store, version)
    # The files are moved first: a crash in between may leave a model without rows, but never rows without their model.
    with temporary_folder(store.models) as temporary:
        save_model(temporary)
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.replace(target / file.name)
    codes = ids_N_L.tolist()
    texts = [render_sid(item_codes) for item_codes in codes]
    distinct = len(set(texts))
    row = {
        **version._asdict(),
        "method": settings["method"],
        "settings": orjson.dumps(settings).decode(),
        "items": len(items),
        "distinct_ids": distinct,
        "uniqueness": distinct / len(items),
        "fit_for_training": accept_shared or distinct / len(items) >= UNIQUENESS_BAR,
        "created_at": utc_now(),
    }
    key = [pl.lit(value).alias(name) for name, value in version._asdict().items()]
    ids = pl.DataFrame(
        {
            "item_id": [item.item_id for item in items],
            "codes": pl.Series(codes, dtype=pl.List(pl.UInt16)),
            "text": texts,
        }
    ).with_columns(key)
    figures = pl.DataFrame(
        measures, schema={"measure": pl.String, "level": pl.Int32, "value": pl.Float64}, orient="row"
    ).with_columns(key)
    with store.writing() as session:
        inserted = session.put("sid_versions", pl.DataFrame([row])).inserted
        # If another process was first, it has stored the IDs and measures too.
        if inserted:
            session.insert("append_semantic_ids", ids)
            session.insert("append_sid_measures", figures)
        summary = load_summary(session, version, started, already_there=not inserted)
    assert summary is not None
    return summary
