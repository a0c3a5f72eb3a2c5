"""Position bias: how much a ranker's order depends on the order that it is shown.

The same candidates are shown several times, shuffled by a seed. A ranker that looks at the candidates alone answers
the same each time; one that copies what it is shown answers at random. Source: Kendall 1938 for tau; the report (arXiv
2606.31984) describes training that is gamed by position. What is measured here is ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prompts.tasks import RerankTask


class PositionBias(NamedTuple):
    """What shuffling did to each of B lists.

    tau_B: Kendall's tau between the orders of two shuffles, over all pairs of them: 1 where the order never moves,
    about 0 where it follows the shuffle. top1_consistent_B: whether all shuffles got the same first item.
    first_picks_B_P: share of shuffles whose first item was shown at position P.
    """

    tau_B: NDArray[np.float64]
    top1_consistent_B: NDArray[np.bool_]
    first_picks_B_P: NDArray[np.float64]


def shuffle_candidates(tasks: Sequence[RerankTask], shuffles: int, seed: int) -> list[RerankTask]:
    """Each task `shuffles` times with its candidates shuffled, all of one task one after the other."""
    rng = np.random.default_rng(seed)
    return [
        replace(task, candidates=tuple(task.candidates[k] for k in rng.permutation(len(task.candidates))))
        for task in tasks
        for _ in range(shuffles)
    ]


def measure_position_bias(
    shuffled: Sequence[RerankTask], orders: Sequence[Sequence[str]], shuffles: int
) -> PositionBias:
    """How the orders of shuffled tasks moved. Both are as `shuffle_candidates` gives them, two shuffles at least."""
    taus, consistent = [], []
    lists = len(shuffled) // shuffles
    first_picks_B_P = np.zeros((lists, max((len(task.candidates) for task in shuffled), default=0)))
    for index in range(lists):
        block = slice(index * shuffles, (index + 1) * shuffles)
        places = [{item_id: place for place, item_id in enumerate(order)} for order in orders[block]]
        taus.append(mean_kendall_tau(np.array([[place[item] for item in places[0]] for place in places])))
        consistent.append(len({order[0] for order in orders[block]}) == 1)
        for task, order in zip(shuffled[block], orders[block], strict=True):
            shown = next(k for k, candidate in enumerate(task.candidates) if candidate.item.item_id == order[0])
            first_picks_B_P[index, shown] += 1 / shuffles
    return PositionBias(np.array(taus), np.array(consistent), first_picks_B_P)


def mean_kendall_tau(ranks_N_K: NDArray[np.int64]) -> float:
    """The mean of Kendall's tau over all pairs of N rankings of the same K items; 1 for a single item.

    For two items a ranking is +1 or -1, and tau is the mean over pairs of items of the product of two rankings' signs.
    The square of the signs' sum over all rankings is N and twice the sum of these products.

    >>> mean_kendall_tau(np.array([[0, 1, 2], [2, 1, 0]]))
    -1.0
    """
    rankings, items = ranks_N_K.shape
    left, right = np.triu_indices(items, k=1)
    if len(left) == 0:
        return 1.0
    signs_N_P = np.sign(ranks_N_K[:, left] - ranks_N_K[:, right])
    squares_P = signs_N_P.sum(axis=0) ** 2
    return float((squares_P.mean() - rankings) / (rankings * (rankings - 1)))
