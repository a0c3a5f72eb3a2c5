"""Compares rankers on the same lists: their metrics, and their gains over the pre-ranker and over each other.

All metrics follow from the target's rank in each ranking. They are paired: a resample takes the same lists for all
rankers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.evaluation.metrics import Bootstrap, Metric

CONDITIONAL = "conditional_"
"""Prefix of metrics that cover only lists that contain their target."""

KS = (1, 3, 5)
GAIN_K = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """R rankers on the same B lists.

    rankers: their names, the pre-ranker first. ranks_B_R: the target's rank (1 is the best) in the lists that contain
    it. misses: the number of further lists, which do not contain it. seed: the seed of the resamples.
    """

    rankers: tuple[str, ...]
    ranks_B_R: NDArray[np.int64]
    misses: int
    seed: int

    def metrics(self) -> Iterator[tuple[str, Metric]]:
        """Yield (ranker, metric): end-to-end metrics, then conditional ones. A list without its target is a miss."""
        # A miss has rank 0 for every ranker, since none can rank an item that it does not get.
        misses_R = np.zeros((self.misses, len(self.rankers)), self.ranks_B_R.dtype)
        end_to_end = Bootstrap(np.concatenate([self.ranks_B_R, misses_R]), seed=self.seed)
        for column, ranker in enumerate(self.rankers):
            yield from ((ranker, metric) for metric in end_to_end.score(column, KS))
        yield from self._conditional(self.ranks_B_R)

    def differences(self) -> Iterator[tuple[str, str, Metric]]:
        """Yield (ranker, other, gain of the ranker over the other) for all pairs of rankers."""
        lists = Bootstrap(self.ranks_B_R, seed=self.seed)
        for other, column in combinations(range(len(self.rankers)), 2):
            yield self.rankers[column], self.rankers[other], _prefixed(lists.ndcg_gain(column, other, GAIN_K))

    def slices(self, buckets: pl.DataFrame) -> Iterator[tuple[str, str, str, Metric]]:
        """Yield (ranker, slice, bucket, metric) with conditional metrics.

        buckets: one row per list, one column per slice.
        """
        for labels in buckets.iter_columns():
            for bucket in labels.unique().drop_nulls():
                inside_B = (labels == bucket).fill_null(False).to_numpy()
                for ranker, metric in self._conditional(self.ranks_B_R[inside_B]):
                    yield ranker, labels.name, bucket, metric

    def _conditional(self, ranks_B_R: NDArray[np.int64]) -> Iterator[tuple[str, Metric]]:
        """Yield the metrics of all rankers, and the gains of all others over the first one."""
        lists = Bootstrap(ranks_B_R, seed=self.seed)
        for column, ranker in enumerate(self.rankers):
            yield from ((ranker, _prefixed(metric)) for metric in lists.score(column, KS))
            if column:
                yield ranker, _prefixed(lists.ndcg_gain(column, 0, GAIN_K))


def _prefixed(metric: Metric) -> Metric:
    return metric._replace(name=CONDITIONAL + metric.name)
