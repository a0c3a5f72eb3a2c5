"""Compares two configurations on the candidate lists for which both have traces.

A configuration is one way to make traces: template, strategy, teacher, model and temperature. "Accepted" means accepted
by ruleset paper. Differences are paired by list. Intervals are 95% percentile bootstrap intervals over lists
(`curate.evaluation.metrics`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.evaluation.metrics import Metric, mean_value
from store import InputError, Store

MOST_DIFFERENT = 25


class Configuration(NamedTuple):
    """One way to make traces."""

    template: str
    strategy: str
    teacher: str
    model: str
    temperature: float

    @property
    def name(self) -> str:
        """The name for people, such as rerank.v1 · openai/some-model · T 0.5."""
        strategy = "" if self.strategy == "rejection" else f" {self.strategy}"
        return f"{self.template}{strategy} · {self.teacher}/{self.model} · T {self.temperature:g}"


class ConfigurationMeasure(NamedTuple):
    """A mean over the lists for which both configurations have a value. difference: first minus second, paired."""

    name: str
    first: float
    second: float
    difference: Metric


@dataclass(frozen=True, slots=True)
class ConfigurationComparison:
    """Two configurations on the lists for which both have traces.

    lists: the number of these lists. rank_before: the target's mean rank in the input, over the lists of measure RANK,
    or None if there are none. passed_2_2: counts of lists by whether the first configuration (row) and the second
    (column) had an accepted attempt, with yes before no. first_better, second_better: the lists with the largest gap
    between the shares of accepted attempts, in favour of one configuration. Columns: list_id, gap, rank_before, and
    attempts, accepted and rank (of the target at the first attempt), with suffix _2 for the second configuration.
    """

    lists: int
    measures: tuple[ConfigurationMeasure, ...]
    rank_before: float | None
    passed_2_2: NDArray[np.int64]
    first_better: pl.DataFrame
    second_better: pl.DataFrame


FIRST_ACCEPTED = "accepted at the first attempt"
SHARE = "share of attempts accepted"
ANY = "accepted at least once"
ATTEMPTS = "attempts per list"
RANK = "target's rank at the first attempt"


def list_configurations(store: Store) -> dict[Configuration, int]:
    """The number of traces of each configuration, the largest first."""
    with store.reading() as session:
        return {Configuration(*fields): traces for *fields, traces in session.rows("configurations")}


def compare_configurations(
    store: Store, first: Configuration, second: Configuration, *, seed: int = 0
) -> ConfigurationComparison:
    """Compare two configurations on the lists for which both have traces. seed: seed of the resamples.

    Raises InputError if a configuration has no traces.
    """
    with store.reading() as session:
        frames = [session.frame("configuration_lists", **configuration._asdict()) for configuration in (first, second)]
    for configuration, lists in zip((first, second), frames, strict=True):
        if lists.height == 0:
            raise InputError(f"there are no traces of {configuration.name}; choose another configuration")
    return measure_configurations(*frames, seed=seed)


def measure_configurations(first: pl.DataFrame, second: pl.DataFrame, *, seed: int = 0) -> ConfigurationComparison:
    """Compare two tables of lists.

    first, second: one row per list with list_id, target_rank, attempts, accepted, and first_accepted and first_rank of
    sample 0, which may be null. Sampling of a list ends once enough attempts are accepted, which biases the share of
    accepted attempts in favour of early acceptance. The measures of sample 0 do not have this bias.
    """
    both = first.join(second.drop("target_rank"), on="list_id", suffix="_2")
    any_1, any_2 = pl.col("accepted") > 0, pl.col("accepted_2") > 0
    share_1, share_2 = (pl.col(f"accepted{end}") / pl.col(f"attempts{end}") for end in ("", "_2"))
    measured = (
        (FIRST_ACCEPTED, pl.col("first_accepted"), pl.col("first_accepted_2")),
        (SHARE, share_1, share_2),
        (ANY, any_1, any_2),
        (ATTEMPTS, pl.col("attempts"), pl.col("attempts_2")),
        (RANK, pl.col("first_rank"), pl.col("first_rank_2")),
    )
    measures = []
    for name, left, right in measured:
        values = both.select(first=left.cast(pl.Float64), second=right.cast(pl.Float64)).drop_nulls()
        if values.height:
            measures.append(
                ConfigurationMeasure(
                    name,
                    float(values["first"].to_numpy().mean()),
                    float(values["second"].to_numpy().mean()),
                    _mean_difference(name, values["first"] - values["second"], seed),
                )
            )
    ranked = both.drop_nulls(["first_rank", "first_rank_2"])["target_rank"]
    counts = both.select(
        *(
            (one & other).sum().alias(f"{row}{column}")
            for row, one in enumerate((any_1, ~any_1))
            for column, other in enumerate((any_2, ~any_2))
        )
    )
    gaps = both.with_columns(gap=share_1 - share_2).select(
        "list_id", "gap", "attempts", "accepted", "attempts_2", "accepted_2",
        rank_before="target_rank", rank="first_rank", rank_2="first_rank_2",
    )  # fmt: skip
    return ConfigurationComparison(
        lists=both.height,
        measures=tuple(measures),
        rank_before=float(ranked.to_numpy().mean()) if ranked.len() else None,
        passed_2_2=np.array(counts.row(0), dtype=np.int64).reshape(2, 2),
        first_better=_largest(gaps, pl.col("gap")),
        second_better=_largest(gaps, -pl.col("gap")),
    )


def _largest(gaps: pl.DataFrame, gap: pl.Expr) -> pl.DataFrame:
    """The rows with the largest positive gap. Among equal gaps, those with the most attempts come first."""
    order = [gap, pl.col("attempts") + pl.col("attempts_2"), pl.col("list_id")]
    return gaps.filter(gap > 0).sort(order, descending=[True, True, False]).head(MOST_DIFFERENT)


def _mean_difference(name: str, differences: pl.Series, seed: int) -> Metric:
    """The mean difference with its interval."""
    # The differences are rounded for the interval only, since the bootstrap's cost grows with the number of distinct
    # values.
    interval = mean_value(name, differences.round(3).to_numpy(), seed=seed)
    return interval._replace(value=float(differences.to_numpy().mean()))
