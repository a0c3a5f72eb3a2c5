"""Assignment of points to clusters of bounded size, at the least total cost: Bertsekas' auction.

Points bid for clusters; a full cluster raises its price and lets its lowest bidder go. With every bid raised by at
least epsilon, the total cost ends within N * epsilon of the optimum (Bertsekas and Castañón 1989, "The auction
algorithm for the transportation problem"). All bids of a round are one array operation.
"""

import numpy as np
from numpy.typing import NDArray


def assign_balanced(costs_N_C: NDArray[np.floating], capacity: int, *, tolerance: float = 0.02) -> NDArray[np.int64]:
    """For each of N points one of C clusters, none with more than `capacity` points.

    tolerance: epsilon as a share of the mean distance between a point's cheapest and mean cost; smaller is nearer to
    the optimum and slower. Raises ValueError where N > C * capacity.
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
        values[rows, best] = -np.inf
        # What the point would still pay for its best cluster before the second best is as good.
        bid_N[free] = price_C[best] + best_value - values.max(axis=1) + epsilon
        cluster_N[free] = best
        touched = np.unique(best)
        inside = np.flatnonzero(np.isin(cluster_N, touched))
        order = inside[np.lexsort((-bid_N[inside], cluster_N[inside]))]
        sorted_clusters = cluster_N[order]
        starts = np.searchsorted(sorted_clusters, touched)
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
        full = order[rank == capacity - 1]
        price_C[cluster_N[full]] = bid_N[full]
        free = order[rank >= capacity]
        cluster_N[free] = -1
    return cluster_N
