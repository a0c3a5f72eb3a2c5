"""Semantic IDs for a data set's items: text -> vectors -> codes -> a version in the store."""

import hashlib
import time
from dataclasses import asdict, dataclass

import orjson
import polars as pl

from curate.data_sets import find_data_set
from curate.sids.embedders import TfidfSvdEmbedder
from curate.sids.quantizers import ResidualKMeans
from prompts.semantic_ids import render_sid
from store import InputError, Store
from store.records import Item
from store.values import utc_now


@dataclass(frozen=True, slots=True)
class SidSettings:
    """How IDs are made: `levels` codes of `codebook_size`, from vectors of `dimensions`."""

    method: str = "rq-kmeans"
    levels: int = 4
    codebook_size: int = 256
    dimensions: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method != "rq-kmeans":
            raise InputError(f"--method is {self.method!r}; this gr2 has rq-kmeans")
        if not 1 <= self.levels <= 8:
            raise InputError(f"--levels is {self.levels}; it must be from 1 to 8")
        if not 2 <= self.codebook_size <= 65_536:
            raise InputError(f"--codebook-size is {self.codebook_size}; it must be from 2 to 65,536")

    @property
    def version(self) -> str:
        """The name of what these settings make."""
        digest = hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()
        return f"{self.method}-{self.levels}x{self.codebook_size}-{digest[:6]}"


@dataclass(frozen=True, slots=True)
class SidSummary:
    """A stored version of semantic IDs; uniqueness = distinct IDs / items."""

    dataset: str
    sid_version: str
    items: int
    distinct_ids: int
    uniqueness: float
    already_there: bool
    seconds: float


def assign_semantic_ids(store: Store, dataset: str, settings: SidSettings | None = None) -> SidSummary:
    """Give each item of `dataset` an ID; the same settings again change nothing.

    Raises InputError where there is no such data set.
    """
    settings = settings or SidSettings()
    started = time.perf_counter()
    with store.reading() as session:
        find_data_set(session, dataset)
        items = [
            Item(item_id, title, tuple(categories), brand, description)
            for item_id, title, categories, brand, description in session.rows("items_of", dataset=dataset)
        ]
        known = session.frame("sid_version", dataset=dataset, sid_version=settings.version)
    if not known.height:
        vectors = TfidfSvdEmbedder(dimensions=settings.dimensions, seed=settings.seed).embed(
            [item.text for item in items]
        )
        quantizer = ResidualKMeans(levels=settings.levels, codebook_size=settings.codebook_size, seed=settings.seed)
        codes_N_L = quantizer.fit_assign(vectors).codes_N_L
        texts = [render_sid(codes) for codes in codes_N_L.tolist()]
        known = pl.DataFrame(
            {
                "dataset": [dataset],
                "sid_version": [settings.version],
                "method": [settings.method],
                "settings": [orjson.dumps(asdict(settings)).decode()],
                "items": [len(items)],
                "distinct_ids": [len(set(texts))],
                "uniqueness": [len(set(texts)) / len(items)],
                "created_at": [utc_now()],
            }
        )
        ids = pl.DataFrame(
            {
                "dataset": [dataset] * len(items),
                "sid_version": [settings.version] * len(items),
                "item_id": [item.item_id for item in items],
                "codes": pl.Series(codes_N_L.tolist(), dtype=pl.List(pl.UInt16)),
                "text": texts,
            }
        )
        with store.writing() as session:
            inserted = session.put("sid_versions", known).inserted
            session.put("semantic_ids", ids)
    else:
        inserted = 0
    row = known.row(0, named=True)
    return SidSummary(
        dataset,
        settings.version,
        row["items"],
        row["distinct_ids"],
        row["uniqueness"],
        already_there=inserted == 0,
        seconds=time.perf_counter() - started,
    )
