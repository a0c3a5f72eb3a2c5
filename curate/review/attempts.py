"""All attempts on one candidate list: their outcomes, their rankings, and the pair that is most worth comparing.

"Accepted" means accepted by ruleset paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, permutations
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.review.configurations import Configuration
from curate.review.trace_pages import TraceView, load_trace_view
from curate.review.trace_text import name_of, short_sid
from curate.traces.tasks import ListedTask, load_tasks
from store import InputError, Store

MOST_ATTEMPTS = 60


@dataclass(frozen=True, slots=True)
class Attempt:
    """One trace of a list.

    name: A1, A2, ... for accepted traces, R1, R2, ... for the others. failures: the failed rules, beginning with the
    first failed rule of ruleset strict, or "not answered" or "not judged". ranking: item ids, or None if it cannot be
    read. labels: the current labels by people.
    """

    name: str
    trace_id: str
    group_id: int
    configuration: Configuration
    sample_index: int
    accepted: bool
    failures: tuple[str, ...]
    ranking: tuple[str, ...] | None
    target_rank: int | None
    predicted_rank: int | None
    completion_tokens: int | None
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListAttempts:
    """The attempts on one list.

    attempts: at most MOST_ATTEMPTS, accepted ones first. accepted, rejected: counts of all attempts.
    """

    dataset: str
    split: str
    user_id: str
    listed: ListedTask
    attempts: tuple[Attempt, ...]
    accepted: int
    rejected: int


def load_attempts(store: Store, id_: str) -> ListAttempts:
    """Load the attempts on a list. id_: the id of the list, or of one of its prompts or traces.

    Raises InputError if nothing has this id, or if there is no prompt for the list yet.
    """
    with store.reading() as session:
        lists = session.rows("compared_list", id=id_)
        if not lists:
            raise InputError(f"there is no candidate list, prompt or trace {id_!r} in this store; copy its id again")
        ((list_id,), *_) = lists
        prompts = session.rows("list_prompt", list_id=list_id)
        if not prompts:
            raise InputError(f"candidate list {list_id!r} has no traces yet; make some with gr2 trace")
        ((dataset, sid_version, split, user_id),) = prompts
        rows = session.frame("list_attempts", list_id=list_id, id=id_, limit=MOST_ATTEMPTS)
        labels = dict(session.rows("attempt_labels", trace_ids=rows["trace_id"].to_list()))
        listed = load_tasks(session, dataset, sid_version, [list_id])[list_id]
    accepted, total = (rows[name][0] if rows.height else 0 for name in ("all_accepted", "all_attempts"))
    attempts = _name_attempts(rows, labels)
    return ListAttempts(dataset, split, user_id, listed, attempts, accepted, total - accepted)


def _name_attempts(rows: pl.DataFrame, labels: dict[str, list[str]]) -> tuple[Attempt, ...]:
    ordered = rows.sort(pl.col("accepted").not_(), *Configuration._fields, "sample_index", "trace_id")
    attempts = []
    for accepted, group in groupby(ordered.iter_rows(named=True), lambda row: row["accepted"]):
        for number, row in enumerate(group, 1):
            attempts.append(
                Attempt(
                    name=f"{'A' if accepted else 'R'}{number}",
                    trace_id=row["trace_id"],
                    group_id=row["group_id"],
                    configuration=Configuration(*(row[field] for field in Configuration._fields)),
                    sample_index=row["sample_index"],
                    accepted=accepted,
                    failures=_failures(row),
                    ranking=None if row["ranking"] is None else tuple(row["ranking"]),
                    target_rank=row["target_rank"],
                    predicted_rank=row["predicted_rank"],
                    completion_tokens=row["completion_tokens"],
                    labels=tuple(labels.get(row["trace_id"], ())),
                )
            )
    return tuple(attempts)


def _failures(row: dict[str, Any]) -> tuple[str, ...]:
    if row["unanswered"]:
        return ("not answered",)
    if row["failed_rules"] is None:
        return ("not judged",)
    return tuple(sorted(row["failed_rules"], key=lambda rule: (rule != row["first_failed_rule"], rule)))


def load_pair(store: Store, first: str, second: str) -> tuple[TraceView, TraceView]:
    """Load two traces with everything that belongs to them. Raises InputError on an unknown id."""
    with store.reading() as session:
        return load_trace_view(session, first), load_trace_view(session, second)


# Orders


def order_text(candidates: Sequence[str], ranking: Sequence[str] | None, target: str) -> str:
    """A ranking as the candidates' numbers in the prompt, best first. ★ marks the target, ? an unknown item.

    >>> order_text(["a", "b", "c"], ["c", "a", "b"], "a")
    '3, ★1, 2'
    """
    numbers = {item: number for number, item in enumerate(candidates, 1)}
    return ", ".join(f"{'★' if item == target else ''}{numbers.get(item, '?')}" for item in ranking or ())


def arrow(moved: int) -> str:
    """▲ or ▼ with the number of places that something moved up or down, or "" if it did not move."""
    return f"▲{moved}" if moved > 0 else f"▼{-moved}" if moved < 0 else ""


def rank_orders(candidates: Sequence[str], rankings: Sequence[Sequence[str] | None]) -> NDArray[np.float64]:
    """The rank, from 1, that each of N rankings gives each of K candidates. NaN if it leaves the candidate out."""
    ranks_N_K = np.full((len(rankings), len(candidates)), np.nan)
    for row, ranking in enumerate(rankings):
        # The reversed order lets the first place count for an item that is ranked twice.
        places = {item: rank for rank, item in reversed(list(enumerate(ranking or (), 1)))}
        ranks_N_K[row] = [places.get(item, np.nan) for item in candidates]
    return ranks_N_K


def kendall_taus(ranks_N_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau (1938) between all pairs of N rankings, over the candidates that both rank.

    1 means the same order, 0 unrelated, and -1 reversed. NaN if the two have fewer than two candidates in common.

    >>> kendall_taus(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]))[0, 1].round(3)
    np.float64(0.333)
    """
    left, right = np.triu_indices(ranks_N_K.shape[1], k=1)
    # _P: pairs of candidates. A missing candidate makes a sign NaN; 0 removes the pair from the products below.
    signs_N_P = np.nan_to_num(np.sign(ranks_N_K[:, left] - ranks_N_K[:, right]))
    shared_N_N = np.abs(signs_N_P) @ np.abs(signs_N_P).T
    taus_N_N: NDArray[np.float64] = np.full_like(shared_N_N, np.nan)
    np.divide(signs_N_P @ signs_N_P.T, shared_N_N, out=taus_N_N, where=shared_N_N > 0)
    return taus_N_N


def order_moves(listed: ListedTask, first: Sequence[str] | None, second: Sequence[str] | None) -> pl.DataFrame:
    """The candidates by rank in the first ranking, with the rank in the second and the move between the two."""
    candidates = [candidate.item for candidate in listed.task.candidates]
    ids = [item.item_id for item in candidates]
    ranks_K_N = rank_orders(ids, [first, second]).T
    rows = [
        {
            "first": None if np.isnan(rank) else int(rank),
            "second": None if np.isnan(other) else int(other),
            "moved": "" if np.isnan(rank - other) else arrow(int(rank - other)),
            "target": "★" if item.item_id == listed.target_item_id else "",
            "item": name_of(item),
            "semantic ID": short_sid(item.sid),
        }
        for item, (rank, other) in zip(candidates, ranks_K_N, strict=True)
    ]
    return pl.DataFrame(rows, schema_overrides={"first": pl.Int64, "second": pl.Int64}).sort(
        "first", "second", nulls_last=True, maintain_order=True
    )


# Two attempts


def pick_pair(attempts: Sequence[Attempt], trace_id: str | None = None) -> tuple[Attempt, Attempt] | None:
    """The two attempts that are most worth comparing, or None if there are fewer than two.

    Preferably these are the best accepted and the worst rejected attempt, both with a readable ranking and from the
    same group (`group_id`); otherwise from different groups; otherwise simply the best and the worst. trace_id: the id
    of a trace that should be one of them.
    """
    pairs = list(permutations(attempts, 2))
    with_trace = [pair for pair in pairs if trace_id in {attempt.trace_id for attempt in pair}]

    def tells(pair: tuple[Attempt, Attempt]) -> tuple[object, ...]:
        best, worst = pair
        return (
            best.accepted and not worst.accepted,
            bool(best.ranking and worst.ranking),
            best.group_id == worst.group_id,
            _quality(best),
            tuple(-value for value in _quality(worst)),
        )

    return max(with_trace or pairs, key=tells, default=None)


def _quality(attempt: Attempt) -> tuple[float, ...]:
    rank = attempt.predicted_rank or float("inf")
    return (attempt.accepted, bool(attempt.ranking), -rank, -len(attempt.failures), -attempt.sample_index)
