"""Rankers beside each other on the same lists: their metrics, gains over the pre-ranker and over each other.

Everything follows from the target's rank in each order, and is paired: a resample takes the same lists for all rankers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.evaluation.metrics import Bootstrap, Metric

CONDITIONAL = "conditional_"
"""Prefix of metrics over only those lists that hold their target."""

KS = (1, 3, 5)
GAIN_K = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """rankers: R names, the pre-ranker first. ranks_B_R: the target's rank, 1 = best, in lists that hold it. misses:
    how many lists besides do not. seed: of resamples.
    """

    rankers: tuple[str, ...]
    ranks_B_R: NDArray[np.int64]
    misses: int
    seed: int

    def metrics(self) -> Iterator[tuple[str, Metric]]:
        """(ranker, metric): end to end, where a list that does not hold its target is a miss, and conditional."""
        misses_R = np.zeros((self.misses, len(self.rankers)), self.ranks_B_R.dtype)
        end_to_end = Bootstrap(np.concatenate([self.ranks_B_R, misses_R]), seed=self.seed)
        for column, ranker in enumerate(self.rankers):
            yield from ((ranker, metric) for metric in end_to_end.score(column, KS))
        yield from self._conditional(self.ranks_B_R)

    def differences(self) -> Iterator[tuple[str, str, Metric]]:
        """(ranker, other, gain of the ranker over the other) for any two."""
        lists = Bootstrap(self.ranks_B_R, seed=self.seed)
        for other, column in combinations(range(len(self.rankers)), 2):
            yield self.rankers[column], self.rankers[other], _prefixed(lists.ndcg_gain(column, other, GAIN_K))

    def slices(self, buckets: pl.DataFrame) -> Iterator[tuple[str, str, str, Metric]]:
        """(ranker, slice, bucket, metric), conditional. buckets: a row for each list, a column for each slice."""
        for labels in buckets.iter_columns():
            for bucket in labels.unique().drop_nulls():
                inside_B = (labels == bucket).fill_null(False).to_numpy()
                for ranker, metric in self._conditional(self.ranks_B_R[inside_B]):
                    yield ranker, labels.name, bucket, metric

    def _conditional(self, ranks_B_R: NDArray[np.int64]) -> Iterator[tuple[str, Metric]]:
        """Scores of all rankers, and gains of all but the first over the first."""
        lists = Bootstrap(ranks_B_R, seed=self.seed)
        for column, ranker in enumerate(self.rankers):
            yield from ((ranker, _prefixed(metric)) for metric in lists.score(column, KS))
            if column:
                yield ranker, _prefixed(lists.ndcg_gain(column, 0, GAIN_K))


def _prefixed(metric: Metric) -> Metric:
    return metric._replace(name=CONDITIONAL + metric.name)
