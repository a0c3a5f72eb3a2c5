"""Two configurations on the candidate lists that both tried.

A configuration is one way to make traces: template, strategy, teacher, model and temperature. Accepted means: by
ruleset paper. Differences are paired, list by list; intervals are 95% percentile bootstrap intervals over lists
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
        """What people read: rerank.v1 · openai/some-model · T 0.5."""
        strategy = "" if self.strategy == "rejection" else f" {self.strategy}"
        return f"{self.template}{strategy} · {self.teacher}/{self.model} · T {self.temperature:g}"


class ConfigurationMeasure(NamedTuple):
    """A mean over the lists in which both configurations have it. difference: first less second, paired by list."""

    name: str
    first: float
    second: float
    difference: Metric


@dataclass(frozen=True, slots=True)
class ConfigurationComparison:
    """Two configurations on the lists that both tried.

    lists: how many. rank_before: the target's mean rank in the input, over the lists of measure RANK; None where there
    is none. passed_2_2: lists by whether the first (row) and the second configuration (column) passed with an attempt
    at least, yes before no. first_better, second_better: the lists where one configuration's share of accepted attempts
    exceeds the other's most, with a row each: list_id, gap, rank_before, and attempts, accepted and rank (of the target
    at the first attempt) of either configuration, those of the second with _2.
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
    """How many traces each configuration made; those with most come first."""
    with store.reading() as session:
        return {Configuration(*fields): traces for *fields, traces in session.rows("configurations")}


def compare_configurations(
    store: Store, first: Configuration, second: Configuration, *, seed: int = 0
) -> ConfigurationComparison:
    """What two configurations made of the lists that both tried; seed: of resamples.

    Raises InputError on a configuration that made nothing.
    """
    with store.reading() as session:
        tried = [session.frame("configuration_lists", **configuration._asdict()) for configuration in (first, second)]
    for configuration, lists in zip((first, second), tried, strict=True):
        if lists.height == 0:
            raise InputError(f"no trace was made by {configuration.name}; choose another configuration")
    return measure_configurations(*tried, seed=seed)


def measure_configurations(first: pl.DataFrame, second: pl.DataFrame, *, seed: int = 0) -> ConfigurationComparison:
    """The comparison of two frames of lists, one row a list: list_id, target_rank, attempts, accepted, and of sample 0
    first_accepted and first_rank, which may be null.

    Attempts end once enough are accepted, which favours in a share of all attempts who is accepted early; sample 0
    tells without that.
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
    """Where the gap is largest, and of the same gap where there were most attempts."""
    order = [gap, pl.col("attempts") + pl.col("attempts_2"), pl.col("list_id")]
    return gaps.filter(gap > 0).sort(order, descending=[True, True, False]).head(MOST_DIFFERENT)


def _mean_difference(name: str, differences: pl.Series, seed: int) -> Metric:
    """The mean with its interval; for that alone differences are rounded to thousandths, so that few are distinct."""
    interval = mean_value(name, differences.round(3).to_numpy(), seed=seed)
    return interval._replace(value=float(differences.to_numpy().mean()))
