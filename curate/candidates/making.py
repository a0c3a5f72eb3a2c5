"""The pre-ranker, its candidate lists, and the evidence that links each candidate to its history.

The built-in pre-ranker is windowed item co-occurrence: an item's score is the number of its purchases near the items of
the history, weighted by distance and age and normalised by both popularities. The computation is SQL
(`store/sql/candidates.sql`) in a scratch database and in batches, so that memory does not grow with the number of
lists. The store is only read at the start and written at the end. Train lists are cross-fitted: the counts for a list
leave out the fold of its user.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.candidates.similarities import ItemVectors, fit_copurchases, measure_similarities, text_vectors
from curate.datasets.catalogue import find_dataset
from curate.evaluation.metrics import score_ranks
from curate.evaluation.results import RankerMetrics, put_evaluation
from store import InputError, Session, Store
from store.progress import Counted
from store.records import FOLDS, Item

PRE_RANKER = "cooccurrence.v1"
LIST_SIZE = 10
BATCH_LISTS = 4_000
KS = (1, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class PreRankerSettings:
    """Windowed co-occurrence, tuned on the valid splits of Beauty and Sports. New values need a new PRE_RANKER name.

    window: the maximum distance between two purchases that count as a pair. decay: weight per step of distance.
    backward: weight of items that came before, relative to items that came after. left_power, right_power:
    normalisation by the popularity of the history's item and of the candidate. recency: weight per step back in the
    history. history: the number of most recent items that count. neighbours: how many of an item's strongest pairs are
    scored.
    """

    window: int = 5
    decay: float = 0.85
    backward: float = 0.3
    left_power: float = 0.3
    right_power: float = 0.1
    recency: float = 0.7
    history: int = 20
    neighbours: int = 200


class Source(NamedTuple):
    """The lists of one split and fold (None for all), with the splits whose interactions count as their evidence."""

    split: str
    fold: int | None
    counted: tuple[str, ...]


SOURCES = (
    *(Source("train", fold, ("train",)) for fold in range(FOLDS)),
    Source("valid", None, ("train",)),
    # A test target comes after its user's valid interaction, so counting the latter leaks nothing.
    Source("test", None, ("train", "valid")),
)


class SplitCount(NamedTuple):
    """Counts for one split: all lists, those that contain their target, and those that are new in the store."""

    split: str
    lists: int
    with_target: int
    new: int


@dataclass(frozen=True, slots=True)
class CandidateSummary:
    """The candidate lists that were made. full: metrics over all lists. conditional: over the lists with their target.

    repeated_scores: imported scores that were dropped because the file has a better one for the same pair.
    """

    dataset: str
    pre_ranker: str
    splits: list[SplitCount]
    full: RankerMetrics
    conditional: RankerMetrics
    seconds: float
    repeated_scores: int = 0


def make_candidates(
    store: Store, dataset: str, *, list_size: int = LIST_SIZE, on_progress: Callable[[str], None] = lambda _: None
) -> CandidateSummary:
    """Make and store the lists of all splits with the built-in pre-ranker. A second call changes nothing.

    list_size: the number of candidates in a list. A history that is linked to fewer items gets fewer.

    Raises InputError on an unknown dataset, if no list can be made, or if the store has lists of another size.
    """
    return _make(store, dataset, PRE_RANKER, None, list_size=list_size, on_progress=on_progress)


def import_candidates(
    store: Store,
    dataset: str,
    scores: Path,
    pre_ranker: str | None = None,
    *,
    list_size: int = LIST_SIZE,
    on_progress: Callable[[str], None] = lambda _: None,
) -> CandidateSummary:
    """Make and store lists from the scores of another model: a Parquet file with user_id, item_id, score.

    The optional column `position` is the index of the target among the user's interactions (0 is the first). Without
    it, the optional column `split` selects the user's valid or test interaction; the default is test. Scores may have
    any scale: if one of them is 0 or less, all are treated as logits and stored as exp(score - best of the list).
    pre_ranker: the name of these lists; None means the name of the file. If the file repeats a pair of list and item,
    its best score is used.

    Raises InputError on an invalid file, or if the store has lists of this name with other candidates.
    """
    return _make(store, dataset, pre_ranker or scores.stem, scores, list_size=list_size, on_progress=on_progress)


def _make(
    store: Store,
    dataset: str,
    pre_ranker: str,
    scores: Path | None,
    *,
    list_size: int,
    on_progress: Callable[[str], None],
) -> CandidateSummary:
    if list_size < 2:
        raise InputError(f"`list_size` is {list_size}; a list that can be re-ranked has at least 2 candidates")
    started = time.perf_counter()
    with store.scratch() as scratch:
        _load(store, scratch, dataset)
        repeated = _load_scores(scratch, scores) if scores is not None else 0
        scratch.execute("create_made")
        texts = [Item(*columns).text for columns in scratch.rows("catalogue_texts")]
        text_N_D = text_vectors(store.embeddings, texts, on_progress)
        making = _Making(
            scratch, dataset, pre_ranker, PreRankerSettings(), list_size, text_N_D, imported=scores is not None
        )
        for number, source in enumerate(SOURCES, 1):
            _make_source(making, source)
            on_progress(
                Counted(f"part {number} of {len(SOURCES)} finished: {source.split} lists", number, len(SOURCES))
            )
        return replace(_store_made(store, scratch, dataset, pre_ranker, started), repeated_scores=repeated)


class _Making(NamedTuple):
    """The place and the settings for making lists. text_N_D: vectors of all items' texts, by item number."""

    scratch: Session
    dataset: str
    pre_ranker: str
    settings: PreRankerSettings
    list_size: int
    text_N_D: NDArray[np.float64]
    imported: bool


def _load(store: Store, scratch: Session, dataset: str) -> None:
    """Copy the dataset into the scratch database, so that the store is not locked during the computation."""
    with store.reading() as session:
        find_dataset(session, dataset)
        catalogue = session.frame("catalogue_of", dataset=dataset)
        interactions = session.frame("interactions_of", dataset=dataset)
    scratch.insert("create_catalogue", catalogue)
    scratch.insert("create_sequences", interactions)
    scratch.execute("create_lists")


def _make_source(making: _Making, source: Source) -> None:
    """Count co-occurrence for one source and make its lists, batch by batch."""
    scratch, settings = making.scratch, making.settings
    lists = int(scratch.rows("count_lists", split=source.split, fold=source.fold)[0][0])
    if lists == 0:
        return
    counted = {"splits": list(source.counted), "without_fold": source.fold}
    scratch.execute("create_popularity", **counted)
    scratch.execute(
        "create_pairs",
        **counted,
        window=settings.window,
        decay=settings.decay,
        backward=settings.backward,
        left_power=settings.left_power,
        right_power=settings.right_power,
    )
    scratch.execute("create_neighbours", neighbours=settings.neighbours)
    copurchase_N_D = fit_copurchases(scratch.frame("copurchase_counts"), len(making.text_N_D))
    vectors = ItemVectors(making.text_N_D, copurchase_N_D)
    # Rounded up.
    batches = -(-lists // BATCH_LISTS)
    for batch in range(batches):
        scratch.execute("create_batch", split=source.split, fold=source.fold, batches=batches, batch=batch)
        if making.imported:
            scratch.execute("keep_imported_lists")
        scratch.execute("create_recent", history=settings.history)
        if making.imported:
            scratch.execute("create_imported_ranked", candidates=making.list_size)
        else:
            scratch.execute(
                "create_ranked",
                recency=settings.recency,
                candidates=making.list_size,
                history=settings.history,
            )
        scratch.execute("create_facts")
        histories, candidates = scratch.frame("batch_histories"), scratch.frame("batch_candidates")
        scratch.insert("create_similarities", measure_similarities(vectors, histories, candidates))
        scratch.execute("append_made_lists", dataset=making.dataset, pre_ranker=making.pre_ranker)
        scratch.execute("append_made_evidence", dataset=making.dataset, pre_ranker=making.pre_ranker)


def _load_scores(scratch: Session, path: Path) -> int:
    """Read a Parquet file of scores and match its rows to lists. Returns how many repeated rows were dropped."""
    if not path.is_file():
        raise InputError(f"{path} is not a file; `scores` must be Parquet with user_id, item_id, score")
    try:
        schema = pl.read_parquet_schema(path)
        missing = [name for name in ("user_id", "item_id", "score") if name not in schema]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(schema)}")
        rows = (
            pl.scan_parquet(path)
            .select(
                _identifiers("user_id", schema),
                _identifiers("item_id", schema),
                pl.col("score").cast(pl.Float64),
                (pl.col("position").cast(pl.Int64) if "position" in schema else pl.lit(None, pl.Int64)).alias(
                    "position"
                ),
                (pl.col("split").cast(pl.String) if "split" in schema else pl.lit("test")).alias("split"),
            )
            .with_row_index("row", offset=1)
            .collect()
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet of scores: {error}") from error
    scratch.insert("create_imported", rows)
    # The query returns at most one row.
    for row, user_id, item_id, problem in scratch.rows("first_bad_score"):
        raise InputError(f"{path}: row {row} (user {user_id!r}, item {item_id!r}): {problem}")
    return scratch.execute("drop_repeated_scores")


def _identifiers(name: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """Identifiers in the form that ingestion stores: a data frame's 5.0 is the item "5"."""
    column = pl.col(name)
    if schema[name].is_float() or schema[name].is_decimal():
        column = pl.when(column == column.floor()).then(column.cast(pl.Int64, strict=False)).otherwise(None)
    return column.cast(pl.String).alias(name)


def _store_made(store: Store, scratch: Session, dataset: str, pre_ranker: str, started: float) -> CandidateSummary:
    counts = scratch.rows("list_counts")
    if not counts:
        raise InputError(
            f"no list could be made for {dataset!r}, because no user has two interactions; ingest a log with histories"
        )
    # Compared and written in one transaction, so that no other process can store lists of this name in between.
    with store.writing(patient=True) as session:
        known = dict(session.rows("known_lists", dataset=dataset, pre_ranker=pre_ranker))
        different = session.insert("different_lists", scratch.reader("made_lists")) if known else 0
        if different:
            raise InputError(
                f"the store has {different:,} lists of pre-ranker {pre_ranker!r} with other candidates, and lists "
                "never change; choose their `list_size`, or another name with `pre_ranker`"
            )
        session.insert("put_candidate_lists", scratch.reader("made_lists"))
        session.insert("put_evidence", scratch.reader("made_evidence"))
        if session.rows("lacks_similarities", dataset=dataset, pre_ranker=pre_ranker):
            session.insert("fill_similarities", scratch.reader("made_evidence"))
        now = dict(session.rows("known_lists", dataset=dataset, pre_ranker=pre_ranker))
    full: RankerMetrics = {}
    conditional: RankerMetrics = {}
    for split, _, with_target in counts:
        ranks = scratch.frame("target_ranks", split=split)["rank"].to_numpy()
        full[split, pre_ranker] = score_ranks(ranks, KS)
        if with_target:
            conditional[split, pre_ranker] = score_ranks(ranks[ranks > 0], KS)
    put_evaluation(store, dataset, full, conditional)
    return CandidateSummary(
        dataset,
        pre_ranker,
        [
            SplitCount(split, lists, with_target, now.get(split, 0) - known.get(split, 0))
            for split, lists, with_target in counts
        ],
        full,
        conditional,
        time.perf_counter() - started,
    )
