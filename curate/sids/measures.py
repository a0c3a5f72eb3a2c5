"""Quality measures of semantic IDs: pure functions over codes, vectors and categories.

The level of a measure counts codes from the left: level 2 looks at the first two codes of an ID.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.sids.quantizers import FittedQuantizer, squared_distances, sum_codes
from store.records import Item

NEIGHBOURS = 10
QUERIES = 1_000
# The number of queries per batch, which bounds the matrix of distances to all items.
CHUNK = 50


class Measure(NamedTuple):
    """One value of a version. level: None if it is about whole IDs."""

    measure: str
    level: int | None
    value: float


def measure_ids(
    ids_N_L: NDArray[np.uint16],
    codebook_size: int,
    vectors_N_D: NDArray[np.float32],
    quantizer: FittedQuantizer,
    items: Sequence[Item],
    *,
    seed: int = 0,
) -> list[Measure]:
    """All measures of a version's report, for each level.

    distinct_prefixes: the number of prefixes. largest_prefix: the most items that share one. shared: the share of items
    that share their prefix. codes_used, perplexity: of the codes of this level alone. category_purity,
    category_purity_chance: see `prefix_purity`. neighbour_recall: see the function. reconstruction_error: the share of
    the vectors' variance that the fitted levels up to this one do not explain. It exists for fitted levels only.
    """
    measures = []
    fitted = len(quantizer.codebooks)
    errors_L = reconstruction_error(ids_N_L[:, :fitted].astype(np.int64), vectors_N_D, quantizer)
    prefix_L_N = prefix_numbers(ids_N_L)
    kept_L = neighbour_recall(prefix_L_N, vectors_N_D, seed=seed)
    category_N = np.unique([" > ".join(item.categories) for item in items], return_inverse=True)[1]
    # Random items get the same categories, which shows the purity that small prefixes reach by chance.
    shuffled_N = np.random.default_rng(seed).permutation(category_N)
    for level, prefix_N in enumerate(prefix_L_N, 1):
        counts = np.bincount(prefix_N)
        by_name = {
            "distinct_prefixes": len(counts),
            "largest_prefix": counts.max(),
            "shared": (counts[prefix_N] > 1).mean(),
            "codes_used": len(np.unique(ids_N_L[:, level - 1])),
            "perplexity": perplexity(ids_N_L[:, level - 1], codebook_size),
            "category_purity": prefix_purity(prefix_N, category_N),
            "category_purity_chance": prefix_purity(prefix_N, shuffled_N),
            "neighbour_recall": kept_L[level - 1],
        }
        if level <= fitted:
            by_name["reconstruction_error"] = errors_L[level - 1]
        measures += [Measure(name, level, float(value)) for name, value in by_name.items() if np.isfinite(value)]
    return measures


def perplexity(codes_N: NDArray[np.integer], codebook_size: int) -> float:
    """Return exp of the entropy of the codes' shares, from 1 to codebook_size.

    It is the number of codes that would have this entropy if all were used equally.

    >>> perplexity(np.array([0, 0, 1, 1]), 4)
    2.0
    """
    share_C = np.bincount(codes_N, minlength=codebook_size) / len(codes_N)
    share_C = share_C[share_C > 0]
    return float(np.exp(-(share_C * np.log(share_C)).sum()))


def prefix_numbers(ids_N_L: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """For each level, an array (N,) of prefix numbers. Two items have equal numbers if they have equal prefixes."""
    numbers = []
    prefix_N = np.zeros(len(ids_N_L), np.int64)
    for level in range(ids_N_L.shape[1]):
        # Codes are below 65,536, and renumbering at each level keeps the product within 64 bits.
        prefix_N = np.unique(prefix_N * 65_536 + ids_N_L[:, level], return_inverse=True)[1]
        numbers.append(prefix_N)
    return numbers


def prefix_purity(prefix_N: NDArray[np.int64], category_N: NDArray[np.int64]) -> float:
    """The share of items that have the most common category of their prefix, over items that share a prefix.

    A prefix with a single item is pure by definition and does not count. Returns NaN if there are no other prefixes.
    For the value that chance would give, pass shuffled categories.

    >>> prefix_purity(np.array([0, 0, 0, 1]), np.array([7, 7, 8, 9]))
    0.6666666666666666
    """
    pairs, counts = np.unique(np.stack([prefix_N, category_N]), axis=1, return_counts=True)
    most = np.zeros(int(prefix_N.max()) + 1, np.int64)
    np.maximum.at(most, pairs[0], counts)
    size = np.bincount(prefix_N)
    together = size > 1
    return float(most[together].sum() / size[together].sum()) if together.any() else float("nan")


def neighbour_recall(
    prefix_L_N: Sequence[NDArray[np.int64]], vectors_N_D: NDArray[np.float32], *, seed: int = 0
) -> list[float]:
    """For each level, the share of an item's NEIGHBOURS nearest items, by Euclidean distance, that share its prefix.

    The mean covers all items, or a random sample of QUERIES items if there are more. NaN if there is only one item.
    """
    count = len(vectors_N_D)
    neighbours = min(NEIGHBOURS, count - 1)
    if neighbours == 0:
        return [float("nan")] * len(prefix_L_N)
    queries = np.sort(np.random.default_rng(seed).choice(count, min(QUERIES, count), replace=False))
    same = np.zeros(len(prefix_L_N))
    for start in range(0, len(queries), CHUNK):
        rows = queries[start : start + CHUNK]
        distances = squared_distances(vectors_N_D[rows], vectors_N_D)
        # An item is not its own neighbour.
        distances[np.arange(len(rows)), rows] = np.inf
        # The order among the nearest does not matter, so a partition is enough.
        nearest = np.argpartition(distances, neighbours - 1, axis=1)[:, :neighbours]
        same += [(prefix_N[nearest] == prefix_N[rows, None]).sum() for prefix_N in prefix_L_N]
    return [float(matches) / (len(queries) * neighbours) for matches in same]


def reconstruction_error(
    codes_N_F: NDArray[np.int64], vectors_N_D: NDArray[np.float32], quantizer: FittedQuantizer
) -> list[float]:
    """Return sum |vector - decoded|^2 / sum |vector - mean|^2 after each fitted level.

    It is 0 if all vectors are equal.
    """
    variance = float(((vectors_N_D - vectors_N_D.mean(axis=0)) ** 2).sum())
    if variance < 1e-9 * len(vectors_N_D):
        return [0.0] * codes_N_F.shape[1]
    left = []
    for levels in range(1, codes_N_F.shape[1] + 1):
        decoded_N_D = quantizer.decode(sum_codes(codes_N_F[:, :levels], quantizer.codebooks[:levels]))
        left.append(float(((decoded_N_D - vectors_N_D) ** 2).sum()) / variance)
    return left


def reconstruction_errors(vectors_N_D: NDArray[np.float32], decoded_N_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return |vector - decoded|^2 for each item, shape (N,)."""
    errors_N: NDArray[np.float32] = ((vectors_N_D - decoded_N_D) ** 2).sum(axis=1)
    return errors_N
