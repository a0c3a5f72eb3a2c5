"""Data for the page Overview: the funnel over rules, acceptance rates, losses over time, costs, and target moves.

The store is scanned once for each of a few small tables, and all figures are computed from those. Each scan is a
separate transaction, so that writers never wait long for the page. All scans count the traces that the store had when
the page began to read, so that the figures agree even while traces are being made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, NamedTuple

import polars as pl

from curate.traces.filter import ANSWERED, NOT_JUDGED, TraceFilter, check_filter
from curate.traces.rules import RULE_NAMES
from store import Store

PROMPTS, ATTEMPTS, LABELLED = "prompts", "attempts", "labelled"
RULESETS = ("paper", "strict")
# The stages at which a trace can be lost, in the order of ruleset strict.
LOSSES = (ANSWERED, *RULE_NAMES)
STAGES = (PROMPTS, ATTEMPTS, *LOSSES, *RULESETS, LABELLED)

USAGE = ("cost_usd", "prompt_tokens", "completion_tokens")
MOST_BARS = 8

# Each width is at most three times the previous one, so that a span has at least a third of MOST_BUCKETS.
MOST_BUCKETS = 60
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
BUCKET_SECONDS = (
    *(1, 2, 5, 10, 30),
    *(minutes * _MINUTE for minutes in (1, 2, 5, 10, 30)),
    *(hours * _HOUR for hours in (1, 2, 6, 12)),
    *(days * _DAY for days in (1, 3, 7, 14, 28, 84, 252)),
)

# 95% of a normal distribution lies within this many standard deviations of the mean.
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Overview:
    """The counts for the traces of one filter. Each field is the result of its function `load_...` or `count_...`."""

    attempts: pl.DataFrame
    prompts: int
    labelled: int
    losses: pl.DataFrame
    pass_rates: pl.DataFrame
    moves: pl.DataFrame


def load_overview(store: Store, chosen: TraceFilter) -> Overview:
    """Load the data of the page. Raises InputError on an unknown ruleset or an invalid regular expression."""
    with store.reading() as session:
        check_filter(session, chosen)
        ((end,),) = session.rows("overview_end")
    counted = Counted(store, chosen, end)
    prompts, labelled = count_prompts(counted), count_labelled(counted)
    losses, pass_rates, moves = load_losses(counted), load_pass_rates(counted), load_moves(counted)
    # The attempts are loaded last, because an answer may replace a failed attempt in the meantime: each trace that is
    # counted here is also in the other tables.
    return Overview(load_attempts(counted), prompts, labelled, losses, pass_rates, moves)


class Counted(NamedTuple):
    """The traces of a filter among those in the first `end` rows of the store."""

    store: Store
    chosen: TraceFilter
    end: int

    def frame(self, name: str, **parameters: Any) -> pl.DataFrame:
        """Return the result of one query, in a separate transaction."""
        with self.store.reading() as session:
            return session.frame(name, where=self.chosen.where, end=self.end, **self.chosen.parameters, **parameters)


def load_attempts(counted: Counted) -> pl.DataFrame:
    """Load the attempts, grouped by template, teacher, model, temperature, copied and verdicts.

    Columns beside those: attempts, their number; first_failed_rule, "answered" if the request failed, else the first
    failed rule of ruleset strict, or None if all passed; accepted, whether ruleset paper accepts them; for each of
    USAGE the sum, or None if unknown for all, and in `*_counted` the number of attempts for which it is known.
    """
    return counted.frame("overview_attempts")


def count_prompts(counted: Counted) -> int:
    """The number of prompts with a matching trace."""
    return int(counted.frame("overview_prompts").item())


def count_labelled(counted: Counted) -> int:
    """The number of matching traces with a label by anybody."""
    return int(counted.frame("overview_labelled").item())


def load_losses(counted: Counted) -> pl.DataFrame:
    """Traces over time. Columns: start and end of a bucket (UTC), first_failed_rule as in `load_attempts`, traces.

    Empty buckets are left out.
    """
    first, last = counted.frame("overview_span").row(0)
    seconds = choose_bucket(first, last) if first else BUCKET_SECONDS[0]
    return counted.frame("overview_losses", bucket_seconds=seconds)


def choose_bucket(first: datetime, last: datetime) -> int:
    """The width, in seconds, that divides a span into 20 to 60 buckets, or fewer if it is shorter than 20 s."""
    span = (last - first).total_seconds()
    return next((width for width in BUCKET_SECONDS if span <= width * (MOST_BUCKETS - 1)), BUCKET_SECONDS[-1])


def load_pass_rates(counted: Counted) -> pl.DataFrame:
    """The histogram of pass rates under ruleset paper. Columns: tenths (from 0 to 11), groups.

    tenths is 0 for a rate of zero, 1 for (0, 0.1], ..., 10 for (0.9, 1) and 11 for a rate of one. A group is all
    answered attempts of one teacher, model and temperature at one prompt. It counts if any of its traces matches.
    """
    groups = counted.frame("overview_groups")
    attempts, accepted = pl.col("attempts"), pl.col("accepted")
    # The rate is rounded up, in integers, so that no rate lands in a wrong bin.
    tenths = pl.when(accepted == attempts).then(11).otherwise((10 * accepted + attempts - 1) // attempts)
    counts = groups.group_by(tenths=tenths.cast(pl.Int64)).agg(pl.col("groups").sum())
    bins = pl.DataFrame({"tenths": range(12)}, schema={"tenths": pl.Int64})
    return bins.join(counts, on="tenths", how="left", maintain_order="left").with_columns(pl.col("groups").fill_null(0))


def load_moves(counted: Counted) -> pl.DataFrame:
    """The moves of the target. Columns: target_rank and predicted_rank (1 is first, 0 is absent), traces."""
    return counted.frame("overview_moves")


def make_funnel(overview: Overview) -> pl.DataFrame:
    """The funnel over the STAGES. Columns: stage, traces (or prompts, at the first stage), lost.

    At a stage of LOSSES, traces counts those that are not lost up to and including this stage. lost is None at all
    other stages. Other rules of ruleset strict, and NOT_JUDGED, follow the LOSSES if they hold traces.
    """
    attempts = overview.attempts
    total = _count(attempts)
    at = dict(attempts.group_by("first_failed_rule").agg(pl.col("attempts").sum()).rows())
    rows: list[tuple[str, int, int | None]] = [(PROMPTS, overview.prompts, None), (ATTEMPTS, total, None)]
    remaining = total
    for stage in (*LOSSES, *other_losses(attempts)):
        lost = at.get(stage, 0)
        remaining -= lost
        rows.append((stage, remaining, lost))
    rows.append(("paper", _count(attempts.filter("accepted")), None))
    rows.append(("strict", at.get(None, 0), None))
    rows.append((LABELLED, overview.labelled, None))
    return pl.DataFrame(rows, schema={"stage": pl.String, "traces": pl.Int64, "lost": pl.Int64}, orient="row")


def other_losses(counted: pl.DataFrame) -> list[str]:
    """The values of first_failed_rule that are not in LOSSES: rules that were added to strict, then NOT_JUDGED."""
    others = set(counted["first_failed_rule"].drop_nulls()) - {*LOSSES}
    return sorted(others, key=lambda stage: (stage == NOT_JUDGED, stage))


def filter_stage(chosen: TraceFilter, stage: str) -> TraceFilter | None:
    """Return a filter for the traces of a stage of the funnel: those lost there, accepted or labelled, or else all.

    Returns None if the stage contradicts `chosen`, see `narrow`.
    """
    if stage in (PROMPTS, ATTEMPTS):
        return chosen
    if stage in RULESETS:
        return narrow(chosen, passes=stage)
    return narrow(chosen, label="any") if stage == LABELLED else narrow(chosen, first_failed_rule=stage)


def narrow(chosen: TraceFilter, **fields: Any) -> TraceFilter | None:
    """The filter with additional conditions, or None if it requires another value of one of these fields.

    >>> narrow(TraceFilter(split="valid"), first_failed_rule="cites")
    TraceFilter(split='valid', first_failed_rule='cites')
    """
    held = chosen.parameters
    return replace(chosen, **fields) if all(held.get(name, fields[name]) == fields[name] for name in fields) else None


def measure_acceptance(attempts: pl.DataFrame) -> pl.DataFrame:
    """The share of attempts that ruleset paper accepts, by template, by teacher and model, and by temperature.

    Columns: by, value, hits, n, share, low, high (95% Wilson interval), for the MOST_BARS values with most attempts.
    """
    return _share_by(attempts, "accepted", ("template", "teacher", "temperature"))


def measure_copying(attempts: pl.DataFrame) -> pl.DataFrame:
    """The share of rankings that copy the input, by teacher and model, and by temperature.

    The columns are those of `measure_acceptance`. n counts the traces with a ranking.
    """
    return _share_by(attempts.drop_nulls("copied"), "copied", ("teacher", "temperature"))


def share_accepted(attempts: pl.DataFrame) -> float | None:
    """The share of all attempts that ruleset paper accepts, or None without attempts."""
    return _share(attempts, "accepted")


def share_copied(attempts: pl.DataFrame) -> float | None:
    """The share of all rankings that copy the input, or None without rankings."""
    return _share(attempts.drop_nulls("copied"), "copied")


def wilson_interval(hits: pl.Expr, n: pl.Expr, z: float = Z_95) -> tuple[pl.Expr, pl.Expr]:
    """The bounds of a share's confidence interval by Wilson (1927). n must not be 0.

    Centre (p + z²/2n) / (1 + z²/n), half width z·sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n). The interval stays within [0, 1]
    and has a width even if p is 0 or 1, where the normal interval has none.
    """
    share, scale = hits / n, 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / scale
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)).sqrt() / scale
    # Rounding must not move a bound beyond 0 or 1.
    return (centre - half).clip(0, None), (centre + half).clip(None, 1)


def measure_usage(attempts: pl.DataFrame) -> pl.DataFrame:
    """Tokens and cost by teacher and model, most attempts first. A last row sums them up if there are several.

    Columns: teacher and model (None in the last row), attempts, accepted, and for each of USAGE the total,
    `*_per_attempt` and `*_per_accepted`, over the attempts for which it is known. They are None if it is unknown for
    all; `*_per_accepted` also if none of those attempts was accepted.
    """
    each = (
        attempts.group_by("teacher", "model")
        .agg(_usage())
        .sort("attempts", "teacher", "model", descending=[True, False, False])
    )
    if each.height < 2:
        return each
    return pl.concat([each, attempts.select(_usage())], how="diagonal")


def _usage() -> list[pl.Expr]:
    accepted = pl.col("attempts").filter("accepted").sum().alias("accepted")
    figures = [pl.col("attempts").sum(), accepted]
    for name in USAGE:
        counted = pl.col(f"{name}_counted")
        total = pl.when(counted.sum() > 0).then(pl.col(name).sum())
        hits = counted.filter("accepted").sum()
        figures += [
            total.alias(name),
            (total / counted.sum()).alias(f"{name}_per_attempt"),
            pl.when(hits > 0).then(total / hits).alias(f"{name}_per_accepted"),
        ]
    return figures


_NAMES = {
    "template": pl.col("template"),
    "teacher": pl.concat_str("teacher", "model", separator="/"),
    "temperature": pl.format("T = {}", "temperature"),
}


def _share_by(attempts: pl.DataFrame, hit: str, by: Sequence[str]) -> pl.DataFrame:
    low, high = wilson_interval(pl.col("hits"), pl.col("n"))
    count = pl.col("attempts")
    return pl.concat(
        attempts.group_by(pl.lit(name).alias("by"), _NAMES[name].alias("value"))
        .agg(hits=count.filter(hit).sum(), n=count.sum())
        .sort("n", "value", descending=[True, False])
        .head(MOST_BARS)
        for name in by
    ).with_columns(share=pl.col("hits") / pl.col("n"), low=low, high=high)


def _share(attempts: pl.DataFrame, hit: str) -> float | None:
    total = _count(attempts)
    return _count(attempts.filter(hit)) / total if total else None


def _count(attempts: pl.DataFrame) -> int:
    return int(attempts["attempts"].sum())
