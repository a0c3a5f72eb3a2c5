"""What the page Overview shows of the traces that a filter lets through: how many are left after each rule, who is
accepted how often, when and where the others are lost, what an accepted trace costs, how the target moves.

All of it is counted in one transaction, so that the figures agree with each other while traces are being made. The
store is scanned once for each of a few small tables; what people look at is summed up from those.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import polars as pl

from curate.traces.filter import ANSWERED, NOT_JUDGED, TraceFilter, check_filter
from curate.traces.rules import RULE_NAMES
from store import Session, Store

PROMPTS, ATTEMPTS, LABELLED = "prompts", "attempts", "labelled"
RULESETS = ("paper", "strict")
# Where a trace can be lost, in the order in which ruleset strict asks.
LOSSES = (ANSWERED, *RULE_NAMES)
STAGES = (PROMPTS, ATTEMPTS, *LOSSES, *RULESETS, LABELLED)

USAGE = ("cost_usd", "prompt_tokens", "completion_tokens")
MOST_BARS = 8

# Each at most three times the one before, so that at least a third of MOST_BUCKETS remains.
MOST_BUCKETS = 60
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
BUCKET_SECONDS = (
    *(1, 2, 5, 10, 30),
    *(minutes * _MINUTE for minutes in (1, 2, 5, 10, 30)),
    *(hours * _HOUR for hours in (1, 2, 6, 12)),
    *(days * _DAY for days in (1, 3, 7, 14, 28, 84, 252)),
)

# Of the normal distribution: 95% of it lies within so many standard deviations.
Z_95 = 1.959964


@dataclass(frozen=True, slots=True)
class Overview:
    """What is counted of the traces of one filter; each field is what its function `load_` or `count_` returns."""

    attempts: pl.DataFrame
    prompts: int
    labelled: int
    losses: pl.DataFrame
    pass_rates: pl.DataFrame
    moves: pl.DataFrame


def load_overview(store: Store, chosen: TraceFilter) -> Overview:
    """Everything that the page shows. Raises InputError on an unknown ruleset and on a bad regular expression."""
    with store.reading() as session:
        check_filter(session, chosen)
        return Overview(
            attempts=load_attempts(session, chosen),
            prompts=count_prompts(session, chosen),
            labelled=count_labelled(session, chosen),
            losses=load_losses(session, chosen),
            pass_rates=load_pass_rates(session, chosen),
            moves=load_moves(session, chosen),
        )


def load_attempts(session: Session, chosen: TraceFilter) -> pl.DataFrame:
    """Traces, those together that agree in template, teacher, model, temperature, copied and what the rules say.

    attempts: how many. first_failed_rule: "answered" where the request failed, else the first rule of ruleset strict
    that is not passed; None where all are. accepted: under ruleset paper. For each of USAGE its sum, and in `*_counted`
    over how many attempts; None where it is known of none.
    """
    return session.frame("overview_attempts", where=chosen.where, **chosen.parameters)


def count_prompts(session: Session, chosen: TraceFilter) -> int:
    """How many prompts have a trace that fits."""
    ((prompts,),) = session.rows("overview_prompts", where=chosen.where, **chosen.parameters)
    return int(prompts)


def count_labelled(session: Session, chosen: TraceFilter) -> int:
    """How many traces have a label by anybody."""
    ((labelled,),) = session.rows("overview_labelled", where=chosen.where, **chosen.parameters)
    return int(labelled)


def load_losses(session: Session, chosen: TraceFilter) -> pl.DataFrame:
    """Traces over time: start and end of a bucket (UTC), first_failed_rule as in load_attempts, traces.

    Empty buckets are left out.
    """
    ((first, last),) = session.rows("overview_span", where=chosen.where, **chosen.parameters)
    seconds = choose_bucket(first, last) if first else BUCKET_SECONDS[0]
    return session.frame("overview_losses", where=chosen.where, bucket_seconds=seconds, **chosen.parameters)


def choose_bucket(first: datetime, last: datetime) -> int:
    """Seconds that part a span into 20 to 60 buckets; fewer where it is shorter than 20 seconds."""
    span = (last - first).total_seconds()
    return next((width for width in BUCKET_SECONDS if span <= width * (MOST_BUCKETS - 1)), BUCKET_SECONDS[-1])


def load_pass_rates(session: Session, chosen: TraceFilter) -> pl.DataFrame:
    """Histogram of pass rates under ruleset paper: tenths from 0 to 11, groups.

    tenths is 0 for a rate of zero, 1 for (0, 0.1], ..., 10 for (0.9, 1) and 11 for a rate of one. A group is all
    answered attempts of one teacher, model and temperature at one prompt; it counts where any of its traces fits.
    """
    groups = session.frame("overview_groups", where=chosen.where, **chosen.parameters)
    attempts, accepted = pl.col("attempts"), pl.col("accepted")
    tenths = pl.when(accepted == attempts).then(11).otherwise((10 * accepted + attempts - 1) // attempts)
    found = groups.group_by(tenths=tenths.cast(pl.Int64)).agg(pl.col("groups").sum())
    bins = pl.DataFrame({"tenths": range(12)}, schema={"tenths": pl.Int64})
    return bins.join(found, on="tenths", how="left", maintain_order="left").with_columns(pl.col("groups").fill_null(0))


def load_moves(session: Session, chosen: TraceFilter) -> pl.DataFrame:
    """How often the target went from target_rank to predicted_rank: 1 is first, 0 absent or left out; traces."""
    return session.frame("overview_moves", where=chosen.where, **chosen.parameters)


def make_funnel(overview: Overview) -> pl.DataFrame:
    """The STAGES in their order: stage, traces (of the first, prompts), lost.

    traces of a stage where traces are lost: those that are not lost here nor before; lost is None at other stages.
    Other rules of ruleset strict, and NOT_JUDGED, follow LOSSES where they hold some.
    """
    attempts = overview.attempts
    total = _count(attempts)
    at = dict(attempts.group_by("first_failed_rule").agg(pl.col("attempts").sum()).rows())
    rows: list[tuple[str, int, int | None]] = [(PROMPTS, overview.prompts, None), (ATTEMPTS, total, None)]
    left = total
    for stage in (*LOSSES, *other_losses(attempts)):
        lost = at.get(stage, 0)
        left -= lost
        rows.append((stage, left, lost))
    rows.append(("paper", _count(attempts.filter("accepted")), None))
    rows.append(("strict", at.get(None, 0), None))
    rows.append((LABELLED, overview.labelled, None))
    return pl.DataFrame(rows, schema={"stage": pl.String, "traces": pl.Int64, "lost": pl.Int64}, orient="row")


def other_losses(counted: pl.DataFrame) -> list[str]:
    """What the column first_failed_rule has besides LOSSES: rules that somebody added to strict, then NOT_JUDGED."""
    found = set(counted["first_failed_rule"].drop_nulls()) - {*LOSSES}
    return sorted(found, key=lambda stage: (stage == NOT_JUDGED, stage))


def filter_stage(chosen: TraceFilter, stage: str) -> TraceFilter | None:
    """The traces that a stage of the funnel is about: lost there, accepted, labelled; else all.

    None where `chosen` asks for something else already, see narrow.
    """
    if stage in (PROMPTS, ATTEMPTS):
        return chosen
    if stage in RULESETS:
        return narrow(chosen, passes=stage)
    return narrow(chosen, label="any") if stage == LABELLED else narrow(chosen, first_failed_rule=stage)


def narrow(chosen: TraceFilter, **fields: Any) -> TraceFilter | None:
    """Those of the traces that meet `fields` too; None where the filter asks for another value of one of them.

    >>> narrow(TraceFilter(split="valid"), first_failed_rule="cites")
    TraceFilter(split='valid', first_failed_rule='cites')
    """
    held = chosen.parameters
    return replace(chosen, **fields) if all(held.get(name, fields[name]) == fields[name] for name in fields) else None


def measure_acceptance(attempts: pl.DataFrame) -> pl.DataFrame:
    """Share of attempts that ruleset paper accepts, by template, by teacher and model, and by temperature.

    A row for each of the MOST_BARS values with the most attempts: by, value, hits, n, share, low, high (95%, Wilson).
    """
    return _share_by(attempts, "accepted", ("template", "teacher", "temperature"))


def measure_copying(attempts: pl.DataFrame) -> pl.DataFrame:
    """Share of orders that are the input's, by teacher and model, and by temperature; columns of measure_acceptance.

    n counts traces with an order.
    """
    return _share_by(attempts.drop_nulls("copied"), "copied", ("teacher", "temperature"))


def share_accepted(attempts: pl.DataFrame) -> float | None:
    """Share of all attempts that ruleset paper accepts; None where there is none."""
    return _share(attempts, "accepted")


def share_copied(attempts: pl.DataFrame) -> float | None:
    """Share of all orders that are the input's; None where there is none."""
    return _share(attempts.drop_nulls("copied"), "copied")


def wilson_interval(hits: pl.Expr, n: pl.Expr, z: float = Z_95) -> tuple[pl.Expr, pl.Expr]:
    """Low and high end of a share's interval after Wilson (1927); n must not be 0.

    Centre (p + z²/2n) / (1 + z²/n), half width z·sqrt(p(1-p)/n + z²/4n²) / (1 + z²/n): within [0, 1] also where p is
    0 or 1, where the normal interval has no width.
    """
    share, scale = hits / n, 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / scale
    half = z * (share * (1 - share) / n + z**2 / (4 * n**2)).sqrt() / scale
    # Rounding must not put the end beyond the share where that is 0 or 1.
    return (centre - half).clip(0, None), (centre + half).clip(None, 1)


def measure_usage(attempts: pl.DataFrame) -> pl.DataFrame:
    """Tokens and cost by teacher and model, most attempts first, then one row for all of them where there are several.

    teacher and model (None in that last row), attempts, accepted; for each of USAGE its total, `*_per_attempt` and
    `*_per_accepted`, over those attempts of which it is known: None where it is known of none, the last also where
    none of those was accepted.
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
