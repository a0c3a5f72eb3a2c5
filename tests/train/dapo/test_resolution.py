import math
from statistics import mean, variance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.completion import render_completion
from train.dapo.resolution import prompts_seen, resolve
from train.dapo.rewards import JudgedCompletion, judge_completion
from train.dapo.settings import DapoSettings

CANDIDATES = list("abcdefghij")
RANKS = st.integers(1, 10)


def judge(rank_before: int, rank_after: int | None) -> JudgedCompletion:
    """An answer that moves the target; rank_after None for one that cannot be read."""
    target = CANDIDATES[rank_before - 1]
    order = [sid for sid in CANDIDATES if sid != target]
    if rank_after is not None:
        order.insert(rank_after - 1, target)
    return judge_completion("" if rank_after is None else render_completion("", order), CANDIDATES, target)


def gain(rank: int) -> float:
    return 1 / math.log2(1 + rank) if rank <= 5 else 0.0


def test_two_lists_by_hand() -> None:
    """Before 0.5 and 0; the groups are 1 and 0.5 (its copy), and 0.5 and 0 (unreadable, so as before)."""
    found = resolve([judge(3, 1), judge(3, 3), judge(6, 3), judge(6, None)], 2)
    assert (found.lists, found.answers) == (2, 2)
    assert found.ndcg_before == pytest.approx(0.25)
    assert found.ndcg == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert found.headroom == pytest.approx((0.25 + 0.25) / 2)
    # First answers gain 0.5 on both lists, and second ones nothing.
    assert found.deviation == 0
    lines = found.describe(400)
    assert lines[0] == (
        "the run draws 400 prompts, without those of refilling; no difference in NDCG@5 was found, so the standard "
        "error cannot be estimated"
    )
    assert lines[1].startswith(
        "estimated on 2 of its training prompts, with 2 answers each, 75% of them valid: NDCG@5 0.5"
    )
    assert "+0.2500 compared with the input order; headroom 0.2500" in lines[1]


@given(st.lists(st.tuples(RANKS, RANKS, RANKS), min_size=2, max_size=6))
def test_the_standard_error_is_that_of_paired_differences(ranks: list[tuple[int, int, int]]) -> None:
    found = resolve([judge(before, after) for before, *afters in ranks for after in afters], 2)
    columns = [[gain(row[place]) - gain(row[0]) for row in ranks] for place in (1, 2)]
    assert found.standard_error(400) == pytest.approx(math.sqrt(mean(map(variance, columns)) / 400), abs=1e-9)
    if found.deviation:
        assert f"a standard error of {found.standard_error(400):.4f}" in found.describe(400)[0]
    assert found.headroom == pytest.approx(mean(abs(gain(one) - gain(other)) / 2 for _, one, other in ranks), abs=1e-9)


def test_prompts_are_counted_by_batches_and_once_each() -> None:
    settings = DapoSettings(steps=10, prompts_per_batch=6)
    assert prompts_seen(settings, 1_000) == 60
    assert prompts_seen(settings, 1_000, processes=4) == 240
    assert prompts_seen(settings, 50) == 50
    # Three steps on each batch, and the fourth batch is begun.
    often = DapoSettings(steps=10, prompts_per_batch=6, num_iterations=3, save_steps=3)
    assert prompts_seen(often, 1_000) == 24
    split = DapoSettings(steps=10, prompts_per_batch=6, steps_per_generation=2)
    assert prompts_seen(split, 1_000) == 30
