"""Ranking metrics over target ranks, with bootstrap intervals.

One relevant item a list: recall@K is the share of lists whose target is in the first K, NDCG@K the mean of
1 / log2(1 + rank) there, MRR the mean of 1 / rank (Järvelin and Kekäläinen 2002; one relevant item makes the ideal
DCG 1). An unranked target, 0, counts as nothing.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_SAMPLES = 2_000


class Metric(NamedTuple):
    """A mean over `n` lists with its 95% bootstrap interval."""

    name: str
    value: float
    low: float
    high: float
    n: int


def recall_at_k(ranks_B: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """1 where the target's rank is 1..k, else 0; rank 0 means not ranked.

    >>> recall_at_k(np.array([1, 6, 0]), 5).tolist()
    [1.0, 0.0, 0.0]
    """
    return ((ranks_B >= 1) & (ranks_B <= k)).astype(np.float64)


def ndcg_at_k(ranks_B: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """1 / log2(1 + rank) where the target's rank is 1..k, else 0.

    >>> ndcg_at_k(np.array([1, 3, 0]), 5).tolist()
    [1.0, 0.5, 0.0]
    """
    return recall_at_k(ranks_B, k) / np.log2(1.0 + np.maximum(ranks_B, 1))


def reciprocal_rank(ranks_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / rank, or 0 where the target is not ranked."""
    return (ranks_B >= 1) / np.maximum(ranks_B, 1)


def score_ranks(ranks_B: NDArray[np.int64], ks: tuple[int, ...], *, seed: int = 0) -> list[Metric]:
    """recall@K and NDCG@K for each K, and MRR, with percentile bootstrap intervals over lists.

    Lists with the same rank are alike, so a resample is one draw of a multinomial over the ranks: exact, and cheap for
    millions of lists. Empty input gives no metric.
    """
    if len(ranks_B) == 0:
        return []
    rank_values, counts = np.unique(ranks_B, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(ranks_B), counts / len(ranks_B), size=BOOTSTRAP_SAMPLES)
    by_name = {"mrr": reciprocal_rank(rank_values)}
    for k in ks:
        by_name[f"recall_at_{k}"] = recall_at_k(rank_values, k)
        by_name[f"ndcg_at_{k}"] = ndcg_at_k(rank_values, k)
    metrics = []
    for name, values in by_name.items():
        low, high = np.quantile(draws @ values / len(ranks_B), (0.025, 0.975))
        metrics.append(Metric(name, float(counts @ values / len(ranks_B)), float(low), float(high), len(ranks_B)))
    return metrics
