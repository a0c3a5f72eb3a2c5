"""Turns users' files into items and interactions with splits.

Files are read in chunks into a scratch database, where they are checked, filtered and split. The result goes to the
store in a single transaction, so ingestion is all-or-nothing. Splits follow the paper (arXiv 2602.07774):
leave-last-out on 5-core data.
"""

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import polars as pl

from curate.datasets.columns import GivenColumns
from curate.datasets.formats import INTERACTION_SCHEMA, read_interactions, read_items
from curate.datasets.times import DATE_ORDERS
from store import InputError, Session, Store
from store.names import check_name
from store.settings import check, option
from store.values import utc_now


@dataclass(frozen=True, slots=True)
class IngestSettings:
    """Settings for turning files into a dataset.

    columns: pairs such as "user_id=visitorid", gr2's name of a column and its name in the files.
    min_rating: leave out interactions with a lower rating or none; None keeps all.
    date_order: the order of day and month in dates that write both in digits.
    k_core: keep users and items with at least this number of interactions, until nothing changes; 0 keeps all.
    split: "last" takes each user's last interaction for test and the one before for valid. "time" cuts all
    interactions by date into the last `test_share` and the `valid_share` before it.
    seed: shuffles a user's interactions at the same time.
    """

    format: str = option(
        "auto",
        help="Format of the files: auto (recognised by the columns), generic, amazon-2014, amazon-2018, amazon-2023, "
        "movielens, or your own as module:object.",
    )
    columns: tuple[str, ...] | None = option(
        None,
        help="Names of columns that gr2 does not recognise, as comma-separated pairs OURS=THEIRS, such as "
        "user_id=visitorid,item_id=itemid.",
    )
    min_rating: float | None = option(
        None, help="Leave out interactions with a lower rating, and those without one. Default: keep all."
    )
    date_order: str = option(
        "auto",
        help="Order of day and month in dates such as 03/04/2019. auto: the number that goes over 12 in the file is "
        "the day.",
        choices=DATE_ORDERS,
    )
    k_core: int = option(
        5, help="Minimum number of interactions per user and item; the others are left out. 0 keeps all.", low=0
    )
    split: str = option(
        "last",
        help="last: each user's last interaction is for test, the one before for valid. time: interactions are split "
        "by date.",
        choices=("last", "time"),
    )
    valid_share: float = option(0.1, help="Share of interactions for valid. Used by split time.", low=0.0, high=1.0)
    test_share: float = option(0.1, help="Share of interactions for test. Used by split time.", low=0.0, high=1.0)
    drop_unknown_items: bool = option(
        False, help="Leave out interactions whose item is not in the file of items, instead of failing."
    )
    seed: int = option(0, help="Seed for ordering interactions of one user at the same time.", low=0)

    def __post_init__(self) -> None:
        check(self)
        GivenColumns.parse(self.columns or ())
        if not (self.valid_share > 0 and self.test_share > 0 and self.valid_share + self.test_share < 1):
            raise InputError(
                f"`valid_share` is {self.valid_share} and `test_share` is {self.test_share}; each must be over 0, and "
                "their sum under 1"
            )


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """Counts of an ingest: rows read, dropped and stored. `already_there`: the store already had the same dataset.

    first_time, last_time: in UTC; None if the interactions have no times. shuffled_ties: interactions at the same time
    as another one of their user, so that the seed decides their order. before_1990, after_today: interactions in
    doubtful years.
    """

    dataset: str
    items: int
    users: int
    interactions: int
    train: int
    valid: int
    test: int
    read_items: int
    read_interactions: int
    dropped_repeated_items: int
    dropped_low_rating: int
    dropped_unknown: int
    dropped_repeated: int
    dropped_by_k_core: int
    first_time: datetime | None
    last_time: datetime | None
    shuffled_ties: int
    before_1990: int
    after_today: int
    already_there: bool
    seconds: float


def ingest(
    store: Store, dataset: str, items: Path | None, interactions: Path, settings: IngestSettings | None = None
) -> IngestSummary:
    """Read two files into the store as `dataset`. If the store already has the same dataset, nothing changes.

    items: None takes the items from the interactions file, with its categories, brands and product titles. Raises
    InputError with file and line on invalid input, and if another dataset has the name.
    """
    settings = settings or IngestSettings()
    check_name("dataset", dataset)
    started = time.perf_counter()
    given = GivenColumns.parse(settings.columns or ())
    with store.scratch() as scratch:
        read = _read_files(scratch, items, interactions, settings, given)
        given.check_used([interactions] if items is None else [items, interactions])
        repeated_items = scratch.execute("drop_repeated_items")
        for item_id, line, first in scratch.rows("first_duplicate_item"):
            raise InputError(
                f"{items}:{line}: item {item_id!r} is repeated with other values, first at line {first}; keep one of "
                "them"
            )
        low = _drop_low_ratings(scratch, interactions, settings.min_rating)
        unknown = scratch.execute("drop_unknown_items") if settings.drop_unknown_items else 0
        for item_id, line, count in scratch.rows("first_unknown_item"):
            alike = scratch.rows("item_alike", item_id=item_id)
            raise InputError(
                f"{interactions}:{line}: item {item_id!r} is not in {items} ({count:,} such items in all); "
                + (f"it has {alike[0][0]!r}: did identifiers lose leading zeros? " if alike else "")
                + "add the items, or leave out such interactions with `drop_unknown_items`"
            )
        if settings.split == "time":
            for (line,) in scratch.rows("first_interaction_without_time"):
                raise InputError(
                    f"{interactions}:{line}: no timestamp, which a split by time needs; set `split` to last"
                )
        return _finish(
            store,
            scratch,
            dataset,
            source="files",
            source_settings={"items_file": items and items.name, "interactions_file": interactions.name},
            settings=settings,
            counts={
                **read,
                "dropped_repeated_items": repeated_items,
                "dropped_low_rating": low,
                "dropped_unknown": unknown,
                "dropped_repeated": scratch.execute("drop_repeated_interactions"),
            },
            started=started,
        )


def _read_files(
    scratch: Session, items: Path | None, interactions: Path, settings: IngestSettings, given: GivenColumns
) -> dict[str, int]:
    """Load both files into the scratch database. Returns the number of rows that were read from each."""
    scratch.execute("create_raw_items")
    scratch.execute("create_raw_interactions")
    read_items_count = read = 0
    for chunk in read_items(items, settings.format, given) if items else ():
        read_items_count += scratch.insert("append_raw_items", chunk)
    for chunk in read_interactions(
        interactions,
        settings.format,
        given,
        items_too=items is None,
        rating_counts=settings.min_rating is not None,
        date_order=settings.date_order,
    ):
        if items is None:
            scratch.insert("append_items_of_log", chunk)
        read += scratch.insert("append_raw_interactions", chunk.select(INTERACTION_SCHEMA.names))
    if items is None:
        scratch.execute("merge_items_of_log")
    return {"read_items": read_items_count, "read_interactions": read}


def _drop_low_ratings(scratch: Session, interactions: Path, min_rating: float | None) -> int:
    if min_rating is None:
        return 0
    if scratch.rows("count_ratings") == [(0,)]:
        raise InputError(
            f"{interactions}: no interaction has a rating, so none is {min_rating:g} or more; leave out `min_rating`, "
            "or name the column with `columns`: rating=THEIRS"
        )
    return scratch.execute("drop_low_ratings", min_rating=min_rating)


def put_dataset(
    store: Store,
    dataset: str,
    items: pl.DataFrame,
    interactions: pl.DataFrame,
    *,
    source: str,
    source_settings: dict[str, object],
    settings: IngestSettings,
) -> IngestSummary:
    """Split and store rows that are in memory.

    items: columns item_id, title, categories, brand, description. interactions: columns user_id, item_id, timestamp.
    source, source_settings: the origin of the rows, for the record in the store. Raises InputError if another dataset
    has the name.
    """
    check_name("dataset", dataset)
    started = time.perf_counter()
    with store.scratch() as scratch:
        scratch.execute("create_raw_items")
        scratch.execute("create_raw_interactions")
        scratch.insert("append_raw_items", items.with_row_index("line", offset=1))
        scratch.insert("append_raw_interactions", interactions.with_row_index("line", offset=1))
        return _finish(
            store,
            scratch,
            dataset,
            source=source,
            settings=settings,
            source_settings=source_settings,
            counts={
                "read_items": items.height,
                "read_interactions": interactions.height,
                "dropped_repeated_items": 0,
                "dropped_low_rating": 0,
                "dropped_unknown": 0,
                "dropped_repeated": 0,
            },
            started=started,
        )


def _finish(
    store: Store,
    scratch: Session,
    dataset: str,
    *,
    source: str,
    settings: IngestSettings,
    counts: dict[str, int],
    started: float,
    source_settings: dict[str, object] | None = None,
) -> IngestSummary:
    """Filter and split the rows of the scratch database, and store them in one transaction."""
    dropped = _keep_core(scratch, settings.k_core)
    # One day of tolerance, because times without a zone may be from any zone.
    tomorrow = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
    span = scratch.frame("time_span", now=tomorrow).row(0, named=True)
    scratch.execute("create_ordered_interactions", seed=str(settings.seed))
    if settings.split == "last":
        scratch.execute("split_last_out", dataset=dataset)
    else:
        scratch.execute(
            "split_by_time", dataset=dataset, valid_share=settings.valid_share, test_share=settings.test_share
        )
    split = scratch.frame("split_counts").row(0, named=True)
    if split["interactions"] == 0:
        raise InputError(
            f"none of {counts['read_interactions']:,} interactions is left after removing users and items with fewer "
            f"than {settings.k_core}; use a smaller `k_core`, or 0 to keep all"
        )
    fingerprint = str(scratch.rows("fingerprint")[0][0])
    with store.writing() as session:
        rows = session.frame("dataset", dataset=dataset)
        if rows.height and rows["fingerprint"][0] != fingerprint:
            raise InputError(
                f"{store.folder} already has a dataset {dataset!r} with other contents, to which traces and snapshots "
                "may refer; choose another name"
            )
        if not rows.height:
            session.put(
                "datasets",
                pl.DataFrame(
                    {
                        "dataset": [dataset],
                        "source": [source],
                        "settings": [orjson.dumps({**asdict(settings), **(source_settings or {})}).decode()],
                        "fingerprint": [fingerprint],
                        "created_at": [utc_now()],
                    }
                ),
            )
            session.insert("append_items", scratch.reader("split_items_rows", dataset=dataset))
            session.insert("append_interactions", scratch.reader("split_interactions_rows"))
    return IngestSummary(
        dataset=dataset,
        **split,
        **counts,
        dropped_by_k_core=dropped,
        first_time=span["first_time"],
        last_time=span["last_time"],
        shuffled_ties=span["shuffled_ties"],
        before_1990=span["before_1990"],
        after_today=span["after_today"],
        already_there=rows.height > 0,
        seconds=time.perf_counter() - started,
    )


def _keep_core(scratch: Session, k_core: int) -> int:
    """Apply the k-core filter until nothing changes. Returns the number of interactions that were dropped."""
    if k_core == 0:
        return 0
    dropped = 0
    while True:
        now = scratch.execute("drop_rare_users", k_core=k_core) + scratch.execute("drop_rare_items", k_core=k_core)
        if now == 0:
            break
        dropped += now
    scratch.execute("drop_items_without_interactions")
    return dropped
