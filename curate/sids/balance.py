"""Assigns points to clusters of bounded size at minimum total cost, with Bertsekas' auction algorithm.

Points bid for clusters. A full cluster raises its price and drops its lowest bidder. If every bid exceeds the last by
at least epsilon, the total cost is within N * epsilon of the optimum (Bertsekas and Castañón 1989, "The auction
algorithm for the transportation problem"). All bids of a round are computed in one array operation.
"""

import numpy as np
from numpy.typing import NDArray


def assign_balanced(costs_N_C: NDArray[np.floating], capacity: int, *, tolerance: float = 0.02) -> NDArray[np.int64]:
    """Assign each of N points to one of C clusters, with at most `capacity` points per cluster.

    costs_N_C: the cost of each point in each cluster. tolerance: epsilon relative to the mean difference between a
    point's mean and lowest cost; a smaller value is closer to the optimum, but slower. Returns cluster numbers (N,).

    Raises ValueError if N > C * capacity.
    """
    points, clusters = costs_N_C.shape
    if points > clusters * capacity:
        raise ValueError(f"{points} points do not fit into {clusters} clusters of {capacity}")
    if clusters == 1:
        return np.zeros(points, np.int64)
    epsilon = max(float((costs_N_C.mean(axis=1) - costs_N_C.min(axis=1)).mean()) * tolerance, 1e-12)
    price_C = np.zeros(clusters)
    cluster_N = np.full(points, -1)
    bid_N = np.zeros(points)
    free = np.arange(points)
    while len(free):
        values = -costs_N_C[free] - price_C
        best = values.argmax(axis=1)
        rows = np.arange(len(free))
        best_value = values[rows, best]
        # This hides the best cluster, so that the maximum below is the second best.
        values[rows, best] = -np.inf
        # The bid is the price at which the second best cluster becomes as good as the best, plus epsilon, so that
        # prices always rise and the auction ends.
        bid_N[free] = price_C[best] + best_value - values.max(axis=1) + epsilon
        cluster_N[free] = best
        touched = np.unique(best)
        inside = np.flatnonzero(np.isin(cluster_N, touched))
        order = inside[np.lexsort((-bid_N[inside], cluster_N[inside]))]
        sorted_clusters = cluster_N[order]
        starts = np.searchsorted(sorted_clusters, touched)
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        # Within a cluster the highest bids stay. The lowest bid that stays is the new price.
        full = order[rank == capacity - 1]
        price_C[cluster_N[full]] = bid_N[full]
        free = order[rank >= capacity]
        cluster_N[free] = -1
    return cluster_N
