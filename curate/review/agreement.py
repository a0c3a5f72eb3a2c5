"""Measures how much annotators agree with each other and with the automatic rules.

Labels are nominal: good, bad and unsure are three unordered categories, and skip is no judgement. Agreement is
corrected for chance: (observed - expected) / (1 - expected) is 1 if all agree, and 0 if they agree as often as by
chance. Cohen's kappa (1960) compares two annotators on the traces that both labelled. Fleiss' kappa (1971) takes any
number of annotators, on traces with equally many labels. Krippendorff's alpha (2004) takes all traces with at least two
labels, and corrects for small samples. The values are those of scikit-learn, statsmodels and krippendorff.

Intervals are 95% percentile bootstrap intervals over traces (Efron 1979), so that the labels of a trace stay together.
All three statistics are functions of a table that is a sum over traces, so a resample is a sum with other weights.
Resamples in which all labels are the same have no value and are left out.

Axes: N traces, A annotators, C categories, S resamples, U distinct tables, B labels.
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import krippendorff
import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import fleiss_kappa

from curate.traces.filter import TraceFilter, check_filter
from curate.traces.rules import RULE_NAMES
from store import Store
from store.labels import Label

CATEGORIES = (Label.GOOD.value, Label.BAD.value, Label.UNSURE.value)
RULESET = "paper"
RESAMPLES = 1_000
ALPHA, FLEISS, COHEN = "Krippendorff's alpha", "Fleiss' kappa", "Cohen's kappa"
NOBODY = "undefined: no trace was labelled by two people"
ONE_CATEGORY = "undefined: all labels are the same, so agreement cannot be distinguished from chance"
ONE_SIDED = "one side always gives the same label or verdict, so kappa is 0"
NOT_JUDGED = "undefined: no trace with a verdict is labelled good or bad"
# The columns that say whether a trace passes or fails.
JUDGES = {"rule": ("passed_rules", "failed_rules"), "ruleset": ("accepted_by", "refused_by")}

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class Interval(NamedTuple):
    """A statistic with its 95% bootstrap interval. None means undefined. A single trace gives no interval."""

    value: float | None
    low: float | None
    high: float | None


class Agreement(NamedTuple):
    """One agreement statistic of some annotators.

    traces: the number of traces that it covers. note: which traces these are, or why there is no value.
    """

    measure: str
    annotators: tuple[str, ...]
    value: float | None
    low: float | None
    high: float | None
    traces: int
    note: str


def load_judgements(
    store: Store, chosen: TraceFilter | None = None, *, queue_id: str | None = None, unsure: bool = True
) -> pl.DataFrame:
    """Load the labels that count, one row per trace and annotator. All other functions of this module take this table.

    chosen: the traces; None means all. queue_id: only labels of this queue, or None for all. unsure: whether "unsure"
    counts as a judgement. Columns: trace_id, annotator, label, seconds, created_at, and the lists passed_rules,
    failed_rules, accepted_by and refused_by (rulesets).

    Raises InputError on an unknown ruleset or an invalid regular expression.
    """
    chosen = chosen or TraceFilter()
    with store.reading() as session:
        check_filter(session, chosen)
        labels = session.frame("agreement_labels", where=chosen.where, queue_id=queue_id, **chosen.parameters)
    return labels if unsure else labels.filter(pl.col("label") != Label.UNSURE.value)


def load_labelled_queues(store: Store) -> dict[str, str]:
    """The names of all queues with labels, by queue_id, newest first."""
    with store.reading() as session:
        return dict(session.rows("agreement_queues"))


def measure_agreement(labels: pl.DataFrame, *, seed: int = 0) -> list[Agreement]:
    """Krippendorff's alpha, Fleiss' kappa, and Cohen's kappa of every pair of annotators, each with its interval.

    Fleiss' kappa covers the traces with the most common number of labels, of two or more. The list is empty if there
    are fewer than two annotators.
    """
    annotators, codes_N_A = _to_codes(labels)
    if len(annotators) < 2:
        return []
    counts_N_C = np.stack([(codes_N_A == code).sum(axis=1) for code in range(len(CATEGORIES))], axis=1)
    counts_N_C = counts_N_C[counts_N_C.sum(axis=1) >= 2]
    return [
        _measure_alpha(annotators, counts_N_C, seed),
        _measure_fleiss(annotators, counts_N_C, seed),
        *(
            _measure_cohen((annotators[first], annotators[second]), codes_N_A[:, [first, second]], seed)
            for first, second in combinations(range(len(annotators)), 2)
        ),
    ]


def confuse_annotators(labels: pl.DataFrame, first: str, second: str) -> pl.DataFrame:
    """The confusion table of two annotators over the traces that both labelled.

    Columns: first, second (labels) and traces. Every combination has a row, also if its count is 0.
    """
    both = labels.filter(annotator=first).select("trace_id", first="label")
    both = both.join(labels.filter(annotator=second).select("trace_id", second="label"), on="trace_id")
    used = labels["label"].unique().to_list()
    categories = [name for name in CATEGORIES if name in used or name != Label.UNSURE.value]
    cells = pl.DataFrame({"first": categories}).join(pl.DataFrame({"second": categories}), how="cross")
    counts = both.group_by("first", "second").agg(traces=pl.len().cast(pl.Int64))
    return cells.join(counts, on=["first", "second"], how="left", maintain_order="left").with_columns(
        pl.col("traces").fill_null(0)
    )


def measure_rules(labels: pl.DataFrame, *, seed: int = 0) -> pl.DataFrame:
    """How well each rule and each ruleset agrees with the labels good and bad. Every label counts once.

    A rule is measured on the labels of traces that it judged. Columns: kind (rule or ruleset), name, labels, traces;
    the counts good_passed, good_failed, bad_passed, bad_failed; agreement (share of labels); kappa (Cohen's) with low
    and high; precision and recall of "failed" as a prediction of "bad"; note (why there is no kappa). Undefined values
    are None.
    """
    judgements = labels.filter(pl.col("label").is_in([Label.GOOD.value, Label.BAD.value]))
    rulesets = pl.concat([labels["accepted_by"], labels["refused_by"]]).explode().drop_nulls().unique().sort()
    judged = pl.concat([labels["passed_rules"], labels["failed_rules"]]).explode().drop_nulls().unique().sort()
    rules = dict.fromkeys((*RULE_NAMES, *judged))
    rows = [
        *(_measure_rule(judgements, "rule", name, seed) for name in rules),
        *(_measure_rule(judgements, "ruleset", name, seed) for name in rulesets),
    ]
    return pl.DataFrame(rows, schema=RULE_COLUMNS)


RULE_COLUMNS = {
    "kind": pl.String,
    "name": pl.String,
    **dict.fromkeys(("labels", "traces", "good_passed", "good_failed", "bad_passed", "bad_failed"), pl.Int64),
    **dict.fromkeys(("agreement", "kappa", "low", "high", "precision", "recall"), pl.Float64),
    "note": pl.String,
}


def find_disagreements(labels: pl.DataFrame) -> pl.DataFrame:
    """Traces with labels good and bad, the most evenly split first, then those with the most labels.

    Columns: trace_id, share (of the smaller side among good and bad), and lists of annotators good, bad and unsure.
    """
    votes = _gather_votes(labels).filter((pl.col("good").list.len() > 0) & (pl.col("bad").list.len() > 0))
    good, bad = pl.col("good").list.len(), pl.col("bad").list.len()
    return (
        votes.with_columns(share=pl.min_horizontal(good, bad) / (good + bad), votes=good + bad)
        .sort("share", "votes", "trace_id", descending=[True, True, False])
        .select("trace_id", "share", *CATEGORIES)
    )


def find_ruleset_disagreements(labels: pl.DataFrame) -> pl.DataFrame:
    """Traces on which the majority of people contradicts ruleset paper, the largest majority first.

    Columns: trace_id, people (the majority's label, good or bad), accepted, failed_rules, and lists of annotators good,
    bad and unsure.
    """
    good, bad = pl.col("good").list.len().cast(pl.Int64), pl.col("bad").list.len().cast(pl.Int64)
    return (
        _gather_votes(labels)
        .filter(good != bad, (good > bad) != pl.col("accepted"))
        .with_columns(
            people=pl.when(good > bad).then(pl.lit(Label.GOOD.value)).otherwise(pl.lit(Label.BAD.value)),
            margin=(good - bad).abs(),
        )
        .sort("margin", "trace_id", descending=[True, False])
        .select("trace_id", "people", "accepted", "failed_rules", *CATEGORIES)
    )


def summarize_annotators(labels: pl.DataFrame) -> pl.DataFrame:
    """Summarize the labels of each annotator, most labels first.

    Columns: annotator, labels, good, bad, unsure, share_good (of all of their labels), median_seconds (None if no time
    is known), first, last (times of labels).
    """
    return (
        labels.group_by("annotator")
        .agg(
            pl.len().alias("labels"),
            *((pl.col("label") == name).sum().alias(name) for name in CATEGORIES),
            (pl.col("label") == Label.GOOD.value).mean().alias("share_good"),
            pl.col("seconds").median().alias("median_seconds"),
            pl.col("created_at").min().alias("first"),
            pl.col("created_at").max().alias("last"),
        )
        .sort("labels", "annotator", descending=[True, False])
    )


def kappa(tables_S_C_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa of each confusion table, or Fleiss' kappa of each table of coincidences. NaN if undefined.

    >>> kappa(np.array([[[20.0, 5.0], [10.0, 15.0]]])).round(3).tolist()
    [0.4]
    """
    totals_S = tables_S_C_C.sum(axis=(1, 2))
    expected_S = (tables_S_C_C.sum(axis=1) * tables_S_C_C.sum(axis=2)).sum(axis=1) / totals_S**2
    return _beyond_chance(tables_S_C_C, totals_S, expected_S)


def alpha(tables_S_C_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """Krippendorff's nominal alpha of each table of coincidences. NaN if undefined."""
    totals_S = tables_S_C_C.sum(axis=(1, 2))
    sums_S_C = tables_S_C_C.sum(axis=1)
    expected_S = (sums_S_C * (sums_S_C - 1)).sum(axis=1) / (totals_S * (totals_S - 1))
    return _beyond_chance(tables_S_C_C, totals_S, expected_S)


def _beyond_chance(
    tables_S_C_C: NDArray[np.float64], totals_S: NDArray[np.float64], expected_S: NDArray[np.float64]
) -> NDArray[np.float64]:
    observed_S = np.trace(tables_S_C_C, axis1=1, axis2=2) / totals_S
    # If all labels are the same, 0 / 0 gives NaN, which stands for "undefined".
    with np.errstate(invalid="ignore"):
        return np.asarray((observed_S - expected_S) / (1 - expected_S))


def _to_codes(labels: pl.DataFrame) -> tuple[list[str], NDArray[np.int64]]:
    """Return the sorted annotators, and the category that each of them gave each trace, with -1 for no label."""
    annotators, columns_B = np.unique(labels["annotator"].to_numpy(), return_inverse=True)
    traces, rows_B = np.unique(labels["trace_id"].to_numpy(), return_inverse=True)
    codes_N_A = np.full((len(traces), len(annotators)), -1)
    codes_N_A[rows_B, columns_B] = [CATEGORIES.index(label) for label in labels["label"]]
    return annotators.tolist(), codes_N_A


def _coincidences(counts_N_C: NDArray[np.int64]) -> NDArray[np.float64]:
    """The ordered pairs of labels on each trace, counted by category and weighted so that each label counts once."""
    # The subtraction removes the pairs of a label with itself.
    pairs_N_C_C = counts_N_C[:, :, None] * counts_N_C[:, None, :] - counts_N_C[:, :, None] * np.eye(counts_N_C.shape[1])
    return np.asarray(pairs_N_C_C / (counts_N_C.sum(axis=1) - 1)[:, None, None])


def _measure_alpha(annotators: list[str], counts_N_C: NDArray[np.int64], seed: int) -> Agreement:
    tables_N_C_C = _coincidences(counts_N_C)

    def value() -> float:
        return krippendorff.alpha(value_counts=counts_N_C, level_of_measurement="nominal")

    interval = _estimate(tables_N_C_C, alpha, value, seed)
    note = _explain(tables_N_C_C, interval) or "traces with two labels or more"
    return Agreement(ALPHA, tuple(annotators), *interval, len(tables_N_C_C), note)


def _measure_fleiss(annotators: list[str], counts_N_C: NDArray[np.int64], seed: int) -> Agreement:
    ratings_N = counts_N_C.sum(axis=1)
    # Among equally common numbers of labels, the larger one gives more pairs.
    most = max(range(2, len(annotators) + 1), key=lambda ratings: ((ratings_N == ratings).sum(), ratings))
    counts_N_C = counts_N_C[ratings_N == most]
    tables_N_C_C = _coincidences(counts_N_C)
    interval = _estimate(tables_N_C_C, kappa, lambda: fleiss_kappa(counts_N_C), seed)
    note = (
        _explain(tables_N_C_C, interval) or f"traces with exactly {most} labels, of {len(ratings_N):,} with two or more"
    )
    return Agreement(FLEISS, tuple(annotators), *interval, len(tables_N_C_C), note)


def _measure_cohen(annotators: tuple[str, str], codes_N_2: NDArray[np.int64], seed: int) -> Agreement:
    codes_N_2 = codes_N_2[(codes_N_2 >= 0).all(axis=1)]
    tables_N_C_C = np.zeros((len(codes_N_2), len(CATEGORIES), len(CATEGORIES)))
    tables_N_C_C[np.arange(len(codes_N_2)), codes_N_2[:, 0], codes_N_2[:, 1]] = 1
    interval = _estimate(tables_N_C_C, kappa, lambda: cohen_kappa_score(codes_N_2[:, 0], codes_N_2[:, 1]), seed)
    note = _explain(tables_N_C_C, interval) or "traces that both labelled"
    return Agreement(COHEN, annotators, *interval, len(tables_N_C_C), note)


def _explain(tables_N_C_C: NDArray[np.float64], interval: Interval) -> str | None:
    """Explain why there is no value, or only a meaningless one. None if there is nothing to explain."""
    if len(tables_N_C_C) == 0:
        return NOBODY
    if interval.value is None:
        return ONE_CATEGORY
    table_C_C = tables_N_C_C.sum(axis=0)
    return ONE_SIDED if min(np.count_nonzero(table_C_C.sum(axis=axis)) for axis in (0, 1)) == 1 else None


def _estimate(
    tables_N_C_C: NDArray[np.float64], statistic: Statistic, value: Callable[[], float], seed: int
) -> Interval:
    """A statistic of the sum of all traces' tables, with its interval.

    value: computes the same statistic with a library; it is called only if the statistic is defined. Traces with equal
    tables are interchangeable, so a resample is a single draw of a multinomial over the distinct tables.
    """
    traces, categories = tables_N_C_C.shape[:2]
    if not traces or np.isnan(statistic(tables_N_C_C.sum(axis=0, keepdims=True)))[0]:
        return Interval(None, None, None)
    if traces == 1:
        return Interval(float(value()), None, None)
    distinct_U_CC, counts_U = np.unique(tables_N_C_C.reshape(traces, -1), axis=0, return_counts=True)
    draws_S_U = np.random.default_rng(seed).multinomial(traces, counts_U / traces, size=RESAMPLES)
    values_S = statistic((draws_S_U @ distinct_U_CC).reshape(-1, categories, categories))
    # nanquantile leaves out resamples without a value.
    low, high = np.nanquantile(values_S, (0.025, 0.975))
    return Interval(float(value()), float(low), float(high))


def _measure_rule(judgements: pl.DataFrame, kind: str, name: str, seed: int) -> dict[str, str | int | float | None]:
    passed, failed = JUDGES[kind]
    rows = judgements.filter(pl.col(passed).list.contains(name) | pl.col(failed).list.contains(name))
    bad_B = (rows["label"] == Label.BAD.value).to_numpy().astype(np.int64)
    failed_B = rows[failed].list.contains(name).to_numpy().astype(np.int64)
    traces, trace_B = np.unique(rows["trace_id"].to_numpy(), return_inverse=True)
    tables_N_2_2 = np.zeros((len(traces), 2, 2))
    np.add.at(tables_N_2_2, (trace_B, bad_B, failed_B), 1)
    interval = _estimate(tables_N_2_2, kappa, lambda: cohen_kappa_score(bad_B, failed_B), seed)
    (good_passed, good_failed), (bad_passed, bad_failed) = tables_N_2_2.sum(axis=0).astype(int).tolist()
    return {
        "kind": kind,
        "name": name,
        "labels": rows.height,
        "traces": len(traces),
        "good_passed": good_passed,
        "good_failed": good_failed,
        "bad_passed": bad_passed,
        "bad_failed": bad_failed,
        "agreement": _share(good_passed + bad_failed, rows.height),
        "kappa": interval.value,
        "low": interval.low,
        "high": interval.high,
        "precision": _share(bad_failed, good_failed + bad_failed),
        "recall": _share(bad_failed, bad_passed + bad_failed),
        "note": (_explain(tables_N_2_2, interval) or "") if rows.height else NOT_JUDGED,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _gather_votes(labels: pl.DataFrame) -> pl.DataFrame:
    """Gather one row per trace: annotators by label, whether ruleset paper accepts the trace, and its failed rules."""
    return labels.group_by("trace_id").agg(
        *(pl.col("annotator").filter(pl.col("label") == name).sort().alias(name) for name in CATEGORIES),
        pl.col("accepted_by").first().list.contains(RULESET).alias("accepted"),
        pl.col("failed_rules").first(),
    )
