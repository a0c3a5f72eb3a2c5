"""Attempts beside each other: all of one candidate list, two of them word by word, and two arms over many lists.

An arm is one way to make traces: template, strategy, teacher, model and temperature. Accepted means: by policy paper.
Intervals are 95% percentile bootstrap intervals over lists (`curate.metrics`); what is shown of hostile texts is their
beginning, and characters that steer a screen are spelled out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum
from itertools import groupby, permutations
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.browsing import TraceView, load_trace_view
from curate.metrics import BOOTSTRAP_SAMPLES, Metric
from curate.tasks import ListedTask, load_tasks
from curate.trace_text import Part, annotate, name_of, short_sid
from store import InputError, Store

MOST_ATTEMPTS = 60
MOST_DIFFERENT = 25
# difflib takes about a second, at worst, for two texts of so many tokens.
MOST_TOKENS = 5_000
MOST_CHARACTERS = 30_000


class Arm(NamedTuple):
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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One trace of a list. name: A1, A2, ... of those that are accepted, R1, R2, ... of the others.

    failures: the rules that it failed, the first of policy strict first; or "not answered" or "not judged". ranking:
    item ids, None where it cannot be read. labels: what people say of it now.
    """

    name: str
    trace_id: str
    group_id: int
    arm: Arm
    sample_index: int
    accepted: bool
    failures: tuple[str, ...]
    ranking: tuple[str, ...] | None
    target_rank: int | None
    new_rank: int | None
    completion_tokens: int | None
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListAttempts:
    """What was tried on one list. attempts: accepted ones first, at most MOST_ATTEMPTS. accepted, rejected: of all."""

    dataset: str
    split: str
    user_id: str
    listed: ListedTask
    attempts: tuple[Attempt, ...]
    accepted: int
    rejected: int


def load_attempts(store: Store, id_: str) -> ListAttempts:
    """The attempts on a list; id_: the list's, or that of one of its prompts or traces.

    Raises InputError where there is none of that id, or no prompt shows the list yet.
    """
    with store.reading() as session:
        found = session.rows("compared_list", id=id_)
        if not found:
            raise InputError(f"there is no candidate list, prompt or trace {id_!r} in this store; copy its id again")
        ((list_id,), *_) = found
        prompts = session.rows("list_prompt", list_id=list_id)
        if not prompts:
            raise InputError(f"nothing was tried on candidate list {list_id!r} yet; make traces with gr2 trace")
        ((dataset, sid_version, split, user_id),) = prompts
        rows = session.frame("list_attempts", list_id=list_id, limit=MOST_ATTEMPTS)
        labels = dict(session.rows("attempt_labels", trace_ids=rows["trace_id"].to_list()))
        listed = load_tasks(session, dataset, sid_version, [list_id])[list_id]
    accepted, total = (rows[name][0] if rows.height else 0 for name in ("all_accepted", "all_attempts"))
    attempts = _name_attempts(rows, labels)
    return ListAttempts(dataset, split, user_id, listed, attempts, accepted, total - accepted)


def _name_attempts(rows: pl.DataFrame, labels: dict[str, list[str]]) -> tuple[Attempt, ...]:
    ordered = rows.sort(pl.col("accepted").not_(), *Arm._fields, "sample_index", "trace_id")
    attempts = []
    for accepted, group in groupby(ordered.iter_rows(named=True), lambda row: row["accepted"]):
        for number, row in enumerate(group, 1):
            attempts.append(
                Attempt(
                    name=f"{'A' if accepted else 'R'}{number}",
                    trace_id=row["trace_id"],
                    group_id=row["group_id"],
                    arm=Arm(*(row[field] for field in Arm._fields)),
                    sample_index=row["sample_index"],
                    accepted=accepted,
                    failures=_failures(row),
                    ranking=None if row["ranking"] is None else tuple(row["ranking"]),
                    target_rank=row["target_rank"],
                    new_rank=row["new_rank"],
                    completion_tokens=row["completion_tokens"],
                    labels=tuple(labels.get(row["trace_id"], ())),
                )
            )
    return tuple(attempts)


def _failures(row: dict[str, Any]) -> tuple[str, ...]:
    if row["unanswered"]:
        return ("not answered",)
    if row["failed_rules"] is None:
        return ("not judged",)
    return tuple(sorted(row["failed_rules"], key=lambda rule: (rule != row["lost_at"], rule)))


def load_pair(store: Store, first: str, second: str) -> tuple[TraceView, TraceView]:
    """Two traces in full. Raises InputError where there is none of an id."""
    with store.reading() as session:
        return load_trace_view(session, first), load_trace_view(session, second)


# Orders


def order_text(candidates: Sequence[str], ranking: Sequence[str] | None) -> str:
    """An order as the candidates' numbers in the input, with how far each was moved.

    >>> order_text(["a", "b", "c"], ["c", "a", "b"])
    '3▲2 1▼1 2▼1'
    """
    numbers = {item: number for number, item in enumerate(candidates, 1)}
    return " ".join(
        f"{numbers[item]}{arrow(numbers[item] - rank)}" if item in numbers else "?"
        for rank, item in enumerate(ranking or (), 1)
    )


def arrow(moved: int) -> str:
    """▲ and by how many places something moved up, ▼ down, nothing where it stayed."""
    return f"▲{moved}" if moved > 0 else f"▼{-moved}" if moved < 0 else ""


def rank_orders(candidates: Sequence[str], rankings: Sequence[Sequence[str] | None]) -> NDArray[np.float64]:
    """The rank, from 1 on, that each of N orders gives each of K candidates; nan where it leaves one out."""
    ranks_N_K = np.full((len(rankings), len(candidates)), np.nan)
    for row, ranking in enumerate(rankings):
        places = {item: rank for rank, item in reversed(list(enumerate(ranking or (), 1)))}
        ranks_N_K[row] = [places.get(item, np.nan) for item in candidates]
    return ranks_N_K


def kendall_taus(ranks_N_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau (1938) between any two of N orders, over the candidates that both rank; nan below two of these.

    1: the same order, 0: unrelated, -1: reversed.

    >>> kendall_taus(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]))[0, 1].round(3)
    np.float64(0.333)
    """
    left, right = np.triu_indices(ranks_N_K.shape[1], k=1)
    signs_N_P = np.nan_to_num(np.sign(ranks_N_K[:, left] - ranks_N_K[:, right]))
    shared_N_N = np.abs(signs_N_P) @ np.abs(signs_N_P).T
    taus_N_N: NDArray[np.float64] = np.full_like(shared_N_N, np.nan)
    np.divide(signs_N_P @ signs_N_P.T, shared_N_N, out=taus_N_N, where=shared_N_N > 0)
    return taus_N_N


# Two attempts


def pick_pair(attempts: Sequence[Attempt], wanted: str | None = None) -> tuple[Attempt, Attempt] | None:
    """The two attempts that say most beside each other; None where there are fewer than two.

    The best accepted and the worst rejected one of the same group (`group_id`) where there is such a pair, both with
    an order that can be read if possible; else of different groups; else the best and the worst. wanted: the trace id
    of one of them, if it is there.
    """
    pairs = list(permutations(attempts, 2))
    with_wanted = [pair for pair in pairs if wanted in {attempt.trace_id for attempt in pair}]

    def tells(pair: tuple[Attempt, Attempt]) -> tuple[object, ...]:
        best, worst = pair
        return (
            best.accepted and not worst.accepted,
            bool(best.ranking and worst.ranking),
            best.group_id == worst.group_id,
            _quality(best),
            tuple(-value for value in _quality(worst)),
        )

    return max(with_wanted or pairs, key=tells, default=None)


def _quality(attempt: Attempt) -> tuple[float, ...]:
    rank = attempt.new_rank or float("inf")
    return (attempt.accepted, bool(attempt.ranking), -rank, -len(attempt.failures), -attempt.sample_index)


class ReadText(NamedTuple):
    """What there is to read of a trace. source: "reasoning", "completion" where none could be parsed, or "error".

    cut: whether this is only its beginning.
    """

    text: str
    source: str
    cut: bool


# What moves a cursor, turns the direction of a line round or ends a line unseen.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# A word, an item or a sign, with the blanks before it and the full stop or comma after it.
_TOKEN = re.compile(r"\s*(?:‹[^‹›\n]*›|\w+(?:[.,'’-]\w+)*|[^\w\s])[.,;:!?]*|\s+")


def read_text(view: TraceView) -> ReadText:
    """The reasoning with each semantic ID as ‹codes title›, or ‹codes› where the prompt does not show it."""
    source = next((name for name in ("reasoning", "completion", "error") if view.trace[name]), "reasoning")
    whole: str = view.trace[source] or ""
    titled = "".join(
        stretch.text if stretch.part is Part.WORDS else f"‹{f'{short_sid(stretch.text)} {stretch.title}'.strip()}›"
        for stretch in annotate(whole[:MOST_CHARACTERS], view.listed)
    )
    spelled = _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", titled[:MOST_CHARACTERS])
    tokens = _TOKEN.findall(spelled)
    cut = max(len(whole), len(titled)) > MOST_CHARACTERS or len(tokens) > MOST_TOKENS
    return ReadText("".join(tokens[:MOST_TOKENS]), source, cut)


class Side(StrEnum):
    """Where a stretch of text stands; the value is how a diff marks it."""

    BOTH = " "
    FIRST = "-"
    SECOND = "+"


class Change(NamedTuple):
    """A stretch of text that both texts, or one of them, have."""

    side: Side
    text: str


# Fewer words in common between two changes are taken into the changes: a diff of shreds cannot be read.
_FEWEST_COMMON = 3
# So many lines in common are shown around a change.
_CONTEXT = 2


def diff_texts(first: str, second: str) -> list[Change]:
    """How two texts differ, by words; what stands in BOTH and FIRST is the first text, BOTH and SECOND the second.

    The other way round it says the same with the sides changed.
    """
    # difflib depends on which text comes first, so that is always the smaller one.
    turned = first > second
    texts = (second, first) if turned else (first, second)
    left, right = (_TOKEN.findall(text) for text in texts)
    opcodes = SequenceMatcher(None, left, right).get_opcodes()
    blocks = []
    for place, (tag, start, end, other_start, other_end) in enumerate(opcodes):
        between = 0 < place < len(opcodes) - 1
        same = tag == "equal" and not (between and _count_words(left[start:end]) < _FEWEST_COMMON)
        blocks.append((same, "".join(left[start:end]), "".join(right[other_start:other_end])))
    changes: list[Change] = []
    for same, group in groupby(blocks, lambda block: block[0]):
        parts = list(group)
        sides = ["".join(part for _, part, _ in parts), "".join(part for _, _, part in parts)]
        first_part, second_part = reversed(sides) if turned else sides
        if same:
            changes.append(Change(Side.BOTH, first_part))
        else:
            changes += [Change(Side.FIRST, first_part), Change(Side.SECOND, second_part)]
    return [change for change in changes if change.text]


def _count_words(tokens: Sequence[str]) -> int:
    return sum(token.lstrip()[:1].isalnum() or token.lstrip()[:1] == "‹" for token in tokens)


def diff_lines(changes: Sequence[Change]) -> str:
    """A diff as lines, a sentence or a part of one each, marked by "-" and "+"; what is long and alike is folded."""
    lines: list[str] = []
    for place, change in enumerate(changes):
        marked = [f"{change.side} {line}" for line in _sentences(change.text)]
        if change.side is Side.BOTH:
            before = _CONTEXT if place else 0
            after = _CONTEXT if place < len(changes) - 1 else 0
            folded = len(marked) - before - after
            if folded > 1 and len(changes) > 1:
                marked[before : before + folded] = [f"@@ {folded} lines alike @@"]
        lines += marked
    return "\n".join(lines)


def _sentences(text: str) -> list[str]:
    """The text cut after sentences and at line ends, without blank lines."""
    lines = [""]
    for token in _TOKEN.findall(text):
        if token[0].isspace() and lines[-1].endswith((".", "!", "?", ";")):
            lines.append("")
        lines[-1] += token
    return [part.strip() for line in lines for part in line.splitlines() if part.strip()]


def order_moves(listed: ListedTask, first: Sequence[str] | None, second: Sequence[str] | None) -> pl.DataFrame:
    """Candidates by their rank in the first order, with that in the second and how far that moves them."""
    candidates = [candidate.item for candidate in listed.task.candidates]
    ids = [item.item_id for item in candidates]
    ranks_K_N = rank_orders(ids, [first, second]).T
    rows = [
        {
            "first": None if np.isnan(rank) else int(rank),
            "second": None if np.isnan(other) else int(other),
            "moved": "" if np.isnan(rank - other) else arrow(int(rank - other)),
            "target": "★" if item.item_id == listed.target_item_id else "",
            "item": name_of(item),
            "semantic ID": short_sid(item.sid),
        }
        for item, (rank, other) in zip(candidates, ranks_K_N, strict=True)
    ]
    return pl.DataFrame(rows, schema_overrides={"first": pl.Int64, "second": pl.Int64}).sort(
        "first", "second", nulls_last=True, maintain_order=True
    )


# Two arms


class ArmMeasure(NamedTuple):
    """A mean over the lists in which both arms have it. difference: the first arm's less the second's, paired."""

    name: str
    first: float
    second: float
    difference: Metric


@dataclass(frozen=True, slots=True)
class ArmComparison:
    """Two arms on the lists that both tried.

    lists: how many. rank_before: the target's mean rank in the input, over the lists of measure RANK; None where there
    is none. passed_2_2: lists by whether the first (row) and the second arm (column) passed with an attempt at least,
    yes before no. first_better, second_better: the lists where one arm's share of accepted attempts exceeds the other's
    most, with a row each: list_id, gap, rank_before, and attempts, accepted and rank (of the target at the first
    attempt) of either arm, those of the second with _2.
    """

    lists: int
    measures: tuple[ArmMeasure, ...]
    rank_before: float | None
    passed_2_2: NDArray[np.int64]
    first_better: pl.DataFrame
    second_better: pl.DataFrame


FIRST_ACCEPTED = "accepted at the first attempt"
SHARE = "share of attempts accepted"
ANY = "accepted at least once"
ATTEMPTS = "attempts per list"
RANK = "target's rank at the first attempt"


def list_arms(store: Store) -> dict[Arm, int]:
    """How many traces each arm made; those with most come first."""
    with store.reading() as session:
        return {Arm(*fields): traces for *fields, traces in session.rows("arms")}


def compare_arms(store: Store, first: Arm, second: Arm, *, seed: int = 0) -> ArmComparison:
    """What two arms made of the lists that both tried; seed: of resamples.

    Raises InputError on an arm that made nothing.
    """
    with store.reading() as session:
        tried = [session.frame("arm_lists", **arm._asdict()) for arm in (first, second)]
    for arm, lists in zip((first, second), tried, strict=True):
        if lists.height == 0:
            raise InputError(f"no trace was made by {arm.name}; choose another arm")
    return measure_arms(*tried, seed=seed)


def measure_arms(first: pl.DataFrame, second: pl.DataFrame, *, seed: int = 0) -> ArmComparison:
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
                ArmMeasure(
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
    return ArmComparison(
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
    """The mean with its interval; for that alone differences are rounded to thousandths, so that few are distinct.

    Lists that differ by the same are alike: a resample is one draw of a multinomial over distinct differences.
    """
    counted = differences.round(3).value_counts().sort(differences.name)
    values_U, counts_U = counted[differences.name].to_numpy(), counted["count"].to_numpy()
    n = len(differences)
    draws_S_U = np.random.default_rng(seed).multinomial(n, counts_U / n, size=BOOTSTRAP_SAMPLES)
    low, high = np.quantile(draws_S_U @ values_U / n, (0.025, 0.975))
    return Metric(name, float(differences.to_numpy().mean()), float(low), float(high), n)
