"""Position bias: how much a ranker's output depends on the order of its input.

The ranker gets the same candidates several times, shuffled with a seed. If it looks at the candidates alone, it gives
the same ranking each time. If it copies its input, its rankings are random. Source: Kendall 1938 for tau. A report
(arXiv 2606.31984) describes training that is gamed by position. The measures here are ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prompts.tasks import RerankTask


class PositionBias(NamedTuple):
    """The effect of shuffling on each of B lists.

    tau_B: the mean of Kendall's tau over all pairs of shuffles: 1 if the ranking never changes, about 0 if it follows
    the input. top1_consistent_B: whether all shuffles led to the same first item. first_picks_B_P: the share of
    shuffles whose first item stood at input position P.
    """

    tau_B: NDArray[np.float64]
    top1_consistent_B: NDArray[np.bool_]
    first_picks_B_P: NDArray[np.float64]


def shuffle_candidates(tasks: Sequence[RerankTask], shuffles: int, seed: int) -> list[RerankTask]:
    """Each task `shuffles` times with its candidates shuffled. The copies of a task are adjacent."""
    rng = np.random.default_rng(seed)
    return [
        replace(task, candidates=tuple(task.candidates[k] for k in rng.permutation(len(task.candidates))))
        for task in tasks
        for _ in range(shuffles)
    ]


def measure_position_bias(
    shuffled: Sequence[RerankTask], orders: Sequence[Sequence[str]], shuffles: int
) -> PositionBias:
    """Measure how much the rankings of shuffled tasks differ.

    shuffled: the tasks of `shuffle_candidates`. orders: the ranked item ids of each. shuffles: at least 2.
    """
    taus, consistent = [], []
    lists = len(shuffled) // shuffles
    first_picks_B_P = np.zeros((lists, max((len(task.candidates) for task in shuffled), default=0)))
    for index in range(lists):
        block = slice(index * shuffles, (index + 1) * shuffles)
        places = [{item_id: place for place, item_id in enumerate(order)} for order in orders[block]]
        taus.append(mean_kendall_tau(np.array([[place[item] for item in places[0]] for place in places])))
        consistent.append(len({order[0] for order in orders[block]}) == 1)
        for task, order in zip(shuffled[block], orders[block], strict=True):
            position = next(k for k, candidate in enumerate(task.candidates) if candidate.item.item_id == order[0])
            first_picks_B_P[index, position] += 1 / shuffles
    return PositionBias(np.array(taus), np.array(consistent), first_picks_B_P)


def mean_kendall_tau(ranks_N_K: NDArray[np.int64]) -> float:
    """The mean of Kendall's tau over all pairs of N rankings of the same K items. It is 1 for a single item.

    A ranking gives each pair of items a sign, +1 or -1. The tau of two rankings is the mean over pairs of items of the
    product of their signs. The squared sum of a pair's N signs equals N plus twice the sum of these products, which
    gives the mean over all pairs of rankings without a loop over them.

    >>> mean_kendall_tau(np.array([[0, 1, 2], [2, 1, 0]]))
    -1.0
    """
    rankings, items = ranks_N_K.shape
    left, right = np.triu_indices(items, k=1)
    if len(left) == 0:
        return 1.0
    signs_N_P = np.sign(ranks_N_K[:, left] - ranks_N_K[:, right])
    # _P: pairs of items.
    squares_P = signs_N_P.sum(axis=0) ** 2
    return float((squares_P.mean() - rankings) / (rankings * (rankings - 1)))
