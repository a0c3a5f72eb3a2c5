"""Ranking metrics over target ranks, with bootstrap intervals that are paired between rankers.

Each list has one relevant item. recall@K is the share of lists whose target is among the first K, NDCG@K the mean of
1 / log2(1 + rank) over those and 0 for the rest, and MRR the mean of 1 / rank (Järvelin and Kekäläinen 2002; with one
relevant item the ideal DCG is 1). Rank 0 means that the target is not ranked, and counts as 0. Intervals are 95%
percentile bootstrap intervals over lists (Efron 1979). A resample takes the same lists for all rankers, so that the
variation between lists cancels in differences.

Axes: B lists, C columns, U distinct rows, S resamples.
"""

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

BOOTSTRAP_SAMPLES = 2_000


class Metric(NamedTuple):
    """A mean over `n` lists with its 95% bootstrap interval. The bounds are None if there is no interval."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int


def recall_at_k(ranks_B: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return 1 where the target's rank is from 1 to k, else 0. Rank 0 means not ranked.

    >>> recall_at_k(np.array([1, 6, 0]), 5).tolist()
    [1.0, 0.0, 0.0]
    """
    return ((ranks_B >= 1) & (ranks_B <= k)).astype(np.float64)


def ndcg_at_k(ranks_B: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return 1 / log2(1 + rank) where the target's rank is from 1 to k, else 0.

    >>> ndcg_at_k(np.array([1, 3, 0]), 5).tolist()
    [1.0, 0.5, 0.0]
    """
    # maximum() keeps rank 0 from dividing by log2(1) = 0; its recall is 0 anyway.
    return recall_at_k(ranks_B, k) / np.log2(1.0 + np.maximum(ranks_B, 1))


def reciprocal_rank(ranks_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 / rank, or 0 where the target is not ranked."""
    return (ranks_B >= 1) / np.maximum(ranks_B, 1)


class Bootstrap:
    """One set of bootstrap resamples of lists. All metrics of one object use it, so they are paired.

    columns_B_C: one row per list, at least one, for example the target's rank by each of C rankers. rows_U_C: the
    distinct rows. Lists with equal rows are interchangeable, so a resample is a single draw of a multinomial over the
    distinct rows. This is exact, and cheap for millions of lists.
    """

    def __init__(self, columns_B_C: NDArray[np.generic], *, seed: int = 0) -> None:
        self.rows_U_C, self._counts_U = _count_rows(columns_B_C)
        self._n = len(columns_B_C)
        chances_U = self._counts_U / self._n
        self._draws_S_U = np.random.default_rng(seed).multinomial(self._n, chances_U, size=BOOTSTRAP_SAMPLES)

    def mean(self, name: str, values_U: NDArray[np.float64]) -> Metric:
        """The mean over lists, with its interval, of values that are given for each distinct row."""
        low, high = np.quantile(self._draws_S_U @ values_U / self._n, (0.025, 0.975))
        return Metric(name, float(self._counts_U @ values_U / self._n), float(low), float(high), self._n)

    def score(self, column: int, ks: tuple[int, ...]) -> list[Metric]:
        """MRR, and recall@K and NDCG@K for each K, of the ranks in one column."""
        ranks_U = self.rows_U_C[:, column]
        metrics = [self.mean("mrr", reciprocal_rank(ranks_U))]
        for k in ks:
            metrics.append(self.mean(f"recall_at_{k}", recall_at_k(ranks_U, k)))
            metrics.append(self.mean(f"ndcg_at_{k}", ndcg_at_k(ranks_U, k)))
        return metrics

    def ndcg_gain(self, column: int, other: int, k: int) -> Metric:
        """The NDCG@K of the ranks in `column` minus that of the ranks in `other`."""
        gains_U = ndcg_at_k(self.rows_U_C[:, column], k) - ndcg_at_k(self.rows_U_C[:, other], k)
        return self.mean(f"ndcg_at_{k}_gain", gains_U)


def score_ranks(ranks_B: NDArray[np.int64], ks: tuple[int, ...], *, seed: int = 0) -> list[Metric]:
    """Return recall@K and NDCG@K for each K, and MRR, with their intervals. Empty input gives an empty list."""
    return Bootstrap(ranks_B[:, None], seed=seed).score(0, ks) if len(ranks_B) else []


def mean_value(name: str, values_B: NDArray[np.float64] | NDArray[np.bool_], *, seed: int = 0) -> Metric:
    """The mean, with its interval, of one value per list. There must be at least one list."""
    lists = Bootstrap(values_B[:, None], seed=seed)
    return lists.mean(name, lists.rows_U_C[:, 0].astype(np.float64))


def _count_rows(columns_B_C: NDArray[np.generic]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The distinct rows in ascending order, and the count of each. Much faster than np.unique with axis=0."""
    columns = pl.from_numpy(columns_B_C)
    counted = columns.group_by(columns.columns).agg(counts=pl.len().cast(pl.Int64)).sort(columns.columns)
    return counted.drop("counts").to_numpy(), counted["counts"].to_numpy()
