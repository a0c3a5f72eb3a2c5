import math
import pickle
import runpy
import subprocess
import sys
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score
from trl.rewards import get_soft_overlong_punishment

from curate.evaluation.metrics import ndcg_at_k
from prompts.completion import render_completion
from prompts.semantic_ids import render_sid
from store import InputError
from train.dapo.rewards import (
    INVALID,
    REWARDS,
    OutcomeFunction,
    RewardFunction,
    RewardSettings,
    auc,
    judge_completion,
    ndcg,
    overlong_punishment,
    rank_promotion,
)

SIDS = [render_sid((n, 1, 2, 3)) for n in range(10)]
FIVE = SIDS[:5]
FOREIGN = render_sid((99, 1, 2, 3))
ALPHA = RewardSettings().format_weight
ORDERS = [list(order) for order in permutations(FIVE)]
RANK_REWARDS = ("unconditional", "conditional", "format_gated", "auc", "ndcg")
PERMUTATIONS = st.permutations(SIDS)
RANKS = st.integers(1, 10)


def write(sids: list[str], reasoning: str | None = None) -> str:
    return render_completion(f"{SIDS[0]} fits." if reasoning is None else reasoning, sids)


def earn(name: str, completion: str, target: str | None, candidates: list[str] = SIDS, **columns: object) -> float:
    rows = {column: [value] for column, value in columns.items()}
    return RewardFunction(name)([None], [completion], candidates=[candidates], target=[target], **rows)[0]


def expect(name: str, policy: Callable[[str], str], candidates: list[str] = SIDS) -> float:
    """What a policy earns on average over targets at every rank, all equally likely."""
    return math.fsum(earn(name, policy(target), target, candidates) for target in candidates) / len(candidates)


def moved(target: str, rank: int, candidates: list[str] = SIDS) -> list[str]:
    """The candidates with one of them moved to a rank."""
    others = [sid for sid in candidates if sid != target]
    return [*others[: rank - 1], target, *others[rank - 1 :]]


@pytest.mark.parametrize(
    ("rank_before", "rank_after", "plain", "paper", "auc_reward"),
    [
        (4, 1, 0.5, 0.5, 1.2),
        (4, 3, 0.3, 0.3, 0.2 + 7 / 9),
        (4, 4, 0.2, 0.0, 0.2),  # copied
        (4, 6, 0.0, -0.2, 0.2 + 4 / 9),
        (10, 1, 1.1, 1.1, 1.2),
        (1, 1, 0.2, 0.2, 1.2),  # copied, and nothing could be better
        (1, 3, 0.0, 0.0, 0.2 + 7 / 9),  # the paper's condition asks only where the target was
        (1, 10, -0.7, -0.7, 0.2),
    ],
)
def test_hand_worked_rewards_of_ten_candidates(
    rank_before: int, rank_after: int, plain: float, paper: float, auc_reward: float
) -> None:
    target = SIDS[rank_before - 1]
    text = write(moved(target, rank_after))
    assert earn("unconditional", text, target) == earn("format_gated", text, target) == pytest.approx(plain)
    assert earn("conditional", text, target) == pytest.approx(paper)
    assert earn("auc", text, target) == pytest.approx(auc_reward)


def test_hand_worked_rewards_of_several_positives() -> None:
    gains = [0, 1, 0, 2]
    order = [FIVE[1], FIVE[3], FIVE[0], FIVE[2]]
    found = judge_completion(write(order), FIVE[:4], gains=gains)
    assert found.gains_K == (1, 2, 0, 0)
    assert found.auc() == 4 / 5
    dcg, best = 1 + 2 / math.log2(3), 2 + 1 / math.log2(3)
    assert found.ndcg() == pytest.approx(dcg / best)
    assert earn("ndcg", write(order), None, FIVE[:4], gains=gains) == pytest.approx(ALPHA + dcg / best)


def test_every_permutation_of_five_agrees_with_a_slow_implementation() -> None:
    for order in ORDERS:
        for target in FIVE:
            # Promotion counted one by one: who stood above the target and no longer does, and the other way round.
            above = set(FIVE[: FIVE.index(target)])
            above_now = {sid for sid in order if order.index(sid) < order.index(target)}
            promotion = (len(above - above_now) - len(above_now - above)) / 5
            share = sum(order.index(target) < order.index(sid) for sid in FIVE) / 4
            stuck = order == FIVE and share < 1
            expected = {
                "unconditional": promotion + ALPHA,
                "conditional": promotion + (ALPHA if promotion > 0 or not above else 0),
                "format_gated": promotion + ALPHA,
                "auc": ALPHA + (0 if stuck else share),
                "ndcg": ALPHA + (0 if stuck else 1 / math.log2(2 + order.index(target))),
            }
            assert {name: earn(name, write(order), target, FIVE) for name in expected} == pytest.approx(expected)


@given(positives=st.lists(st.booleans(), min_size=2, max_size=10).filter(lambda row: len(set(row)) == 2))
def test_auc_agrees_with_scikit_learn(positives: list[bool]) -> None:
    assert auc(positives) == pytest.approx(roc_auc_score(positives, np.arange(len(positives), 0, -1)))


@given(gains_K=st.lists(st.integers(0, 2), min_size=2, max_size=10))
def test_ndcg_agrees_with_scikit_learn(gains_K: list[int]) -> None:
    expected = ndcg_score(np.array([gains_K]), np.arange(len(gains_K), 0, -1.0)[None])
    assert ndcg(gains_K) == pytest.approx(expected)


@given(gains_K=st.lists(st.integers(0, 2), min_size=1, max_size=10))
def test_auc_and_ndcg_are_1_where_no_order_is_better_and_only_there(gains_K: list[int]) -> None:
    best = sorted(gains_K, reverse=True)
    assert 0 <= auc(gains_K) <= 1
    assert 0 <= ndcg(gains_K) <= 1 + 1e-12
    if len(set(gains_K)) > 1:
        assert (auc(gains_K) == 1) == (ndcg(gains_K) > 1 - 1e-12) == (gains_K == best)


@given(rank=RANKS)
def test_one_target_is_discounted_as_evaluation_discounts_it(rank: int) -> None:
    assert ndcg([float(n == rank) for n in range(1, 11)]) == ndcg_at_k(np.array([rank]), 10)[0]


@given(tokens=st.integers(0, 300), max_tokens=st.integers(1, 200), data=st.data())
def test_overlong_punishment_agrees_with_trl(tokens: int, max_tokens: int, data: st.DataObject) -> None:
    cache_tokens = data.draw(st.integers(0, max_tokens))
    (expected,) = get_soft_overlong_punishment(max_tokens, cache_tokens)([[0] * tokens])
    assert overlong_punishment(tokens, max_tokens, cache_tokens) == expected


def test_overlong_punishment_by_hand() -> None:
    assert [overlong_punishment(tokens, 100, 20) for tokens in (80, 85, 100, 101)] == [0, -0.25, -1, -1]
    assert [overlong_punishment(tokens, 100, 0) for tokens in (100, 101)] == [0, -1]


@given(order=PERMUTATIONS, target=st.sampled_from(SIDS))
def test_a_permutation_earns_within_its_bounds_and_more_than_an_invalid_answer(order: list[str], target: str) -> None:
    for name, low, high in (
        ("unconditional", -0.7, 1.1),
        ("conditional", -0.8, 1.1),
        ("format_gated", -0.7, 1.1),
        ("auc", 0.2, 1.2),
        ("ndcg", 0.2, 1.2),
    ):
        assert INVALID < low <= earn(name, write(order), target) + 1e-12 <= high + 2e-12


@given(rank_before=RANKS, ranks=st.tuples(RANKS, RANKS))
def test_moving_the_target_up_never_earns_less(rank_before: int, ranks: tuple[int, int]) -> None:
    high, low = sorted(ranks)
    assert rank_promotion(rank_before, high, 10) >= rank_promotion(rank_before, low, 10)
    target = SIDS[rank_before - 1]
    for name in RANK_REWARDS:
        # Moving up into the copied order is the one exception: that is the copy clause.
        if name not in ("auc", "ndcg") or high != rank_before:
            assert earn(name, write(moved(target, high)), target) >= earn(name, write(moved(target, low)), target)


@given(order=PERMUTATIONS, target=st.sampled_from(SIDS), kept=st.integers(0, 9))
def test_leaving_candidates_out_never_earns_more(order: list[str], target: str, kept: int) -> None:
    for name in RANK_REWARDS:
        assert earn(name, write(order[:kept]), target) <= earn(name, write(order), target)


@given(text=st.text(max_size=100), target=st.sampled_from([*SIDS, FOREIGN, None]))
def test_no_text_raises_or_leaves_the_bounds(text: str, target: str | None) -> None:
    for name in REWARDS.builtin:
        assert -1 <= earn(name, text, target) <= 1.2


# Hacks: policies that do not look at the user


def test_copying_earns_alpha_for_ever_under_the_plain_sum() -> None:
    assert [earn("unconditional", write(SIDS), target) for target in SIDS] == [ALPHA] * 10


def test_copying_earns_nothing_under_the_papers_condition_unless_the_target_is_first() -> None:
    assert [earn("conditional", write(SIDS), target) for target in SIDS] == [ALPHA] + [0] * 9


def test_the_gate_alone_does_not_close_copying() -> None:
    assert [earn("format_gated", write(SIDS), target) for target in SIDS] == [ALPHA] * 10


@pytest.mark.parametrize("name", ["auc", "ndcg"])
def test_copying_earns_the_least_of_all_permutations_of_several_positives(name: str) -> None:
    for gains in ([0, 1, 0, 1, 0], [1, 2, 0, 0, 0], [0, 0, 0, 0, 1]):
        rewards = [earn(name, write(order), None, FIVE, gains=gains) for order in ORDERS]
        assert earn(name, write(FIVE), None, FIVE, gains=gains) == min(rewards) == ALPHA
    assert earn(name, write(FIVE), None, FIVE, gains=[2, 1, 1, 0, 0]) == pytest.approx(ALPHA + 1)


def test_an_order_fixed_beforehand_promotes_nothing_on_average() -> None:
    """All 120 orders of five candidates, so any mixture of them: random orders, one place always first, reversed."""
    for order in ORDERS:
        assert expect("unconditional", lambda _, order=order: write(order), FIVE) == pytest.approx(ALPHA)
        assert expect("format_gated", lambda _, order=order: write(order), FIVE) == pytest.approx(ALPHA)


def test_under_the_papers_condition_a_fixed_order_earns_alpha_for_each_rank_that_it_promotes() -> None:
    rotated = [*FIVE[1:], FIVE[0]]
    for order in ORDERS:
        promoted = sum(order.index(sid) < FIVE.index(sid) for sid in FIVE)
        earned = expect("conditional", lambda _, order=order: write(order), FIVE)
        assert earned == pytest.approx(ALPHA * (1 + promoted) / 5)
        # No order earns more than alpha; one alone earns as much.
        assert earned < ALPHA - 0.01 or order == rotated


@pytest.mark.parametrize(("first", "rotating_pays"), [(0.2, True), (0.24, True), (0.26, False), (0.31, False)])
def test_rotating_beats_copying_only_behind_a_weak_pre_ranker(first: float, rotating_pays: bool) -> None:
    shares = [first] + [(1 - first) / 9] * 9
    copied, rotated = (
        sum(share * earn("conditional", write(order), target) for share, target in zip(shares, SIDS, strict=True))
        for order in (SIDS, [*SIDS[1:], SIDS[0]])
    )
    assert (rotated > copied) == rotating_pays


@pytest.mark.parametrize(("name", "average"), [("auc", 0.5), ("ndcg", np.mean(1 / np.log2(np.arange(2, 7))))])
def test_every_fixed_order_but_the_copy_earns_the_same_of_auc_and_ndcg(name: str, average: float) -> None:
    for order in ORDERS:
        earned = expect(name, lambda _, order=order: write(order), FIVE)
        assert earned == pytest.approx(ALPHA + (1 / 5 if order == FIVE else average))


@pytest.mark.parametrize("name", RANK_REWARDS)
def test_no_policy_that_ignores_the_user_comes_near_one_that_knows_the_target(name: str) -> None:
    best = max(expect(name, lambda _, order=order: write(order), FIVE) for order in ORDERS)
    assert expect(name, lambda target: write(moved(target, 1, FIVE)), FIVE) > best + 0.35


# Hacks: answers that are no permutation

UNREADABLE = ["", "I cannot help.", "<think>and so on", write(SIDS)[:-200], write([]), write([FOREIGN] * 10)]
INCOMPLETE = [
    [SIDS[2]],
    [SIDS[2]] * 10,
    [*SIDS[:5], *SIDS[:5]],
    [*SIDS, SIDS[2]],
    [SIDS[2], *SIDS],
    [*SIDS[:9], FOREIGN],
    [*SIDS, FOREIGN],
]


@pytest.mark.parametrize("text", UNREADABLE)
@pytest.mark.parametrize("name", RANK_REWARDS)
def test_what_cannot_be_read_earns_the_least(name: str, text: str) -> None:
    assert earn(name, text, SIDS[2]) == INVALID


@pytest.mark.parametrize("sids", INCOMPLETE)
def test_what_is_no_permutation_earns_the_least_behind_the_gate_and_no_alpha_elsewhere(sids: list[str]) -> None:
    for name in ("format_gated", "auc", "ndcg"):
        assert earn(name, write(sids), SIDS[2]) == INVALID
    for name in ("unconditional", "conditional"):
        assert earn(name, write(sids), SIDS[2]) == rank_promotion(3, sids.index(SIDS[2]) + 1, 10)
        assert earn(name, write([sid for sid in sids if sid != SIDS[2]]), SIDS[2]) == INVALID


def test_repeating_others_first_counts_each_of_them_once() -> None:
    found = judge_completion(write([SIDS[0]] * 30 + [SIDS[9]]), SIDS, SIDS[9])
    assert found.ranking == (SIDS[0], SIDS[9])
    assert (found.valid, found.rank_after) == (False, 2)


def test_rambling_to_the_limit_after_a_good_answer_is_punished_by_length_and_by_the_chain() -> None:
    text = write(moved(SIDS[2], 1)) + " and so on" * 500
    limit = RewardSettings().max_tokens
    assert earn("conditional", text, SIDS[2], completion_ids=range(limit)) == pytest.approx(0.4)
    assert earn("overlong", text, SIDS[2], completion_ids=range(limit)) == -1
    assert earn("chain", text, SIDS[2], completion_ids=range(limit)) == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("order", "punished"),
    [
        (moved(SIDS[2], 1), True),
        (moved(SIDS[2], 2), True),
        (SIDS, False),
        (moved(SIDS[2], 4), False),
        (moved(SIDS[2], 1)[:9], False),
    ],
)
def test_length_can_count_for_answers_that_succeed_alone(order: list[str], punished: bool) -> None:
    settings = RewardSettings(max_tokens=100, cache_tokens=20)
    reward = RewardFunction("overlong_on_success", settings)
    for tokens, worth in ((80, 0.0), (90, -0.5), (100, -1.0)):
        columns = {"candidates": [SIDS], "target": [SIDS[2]], "completion_ids": [range(tokens)]}
        assert reward([""], [write(order)], **columns) == [worth if punished else 0.0]


@pytest.mark.parametrize(("rank_after", "punished"), [(1, True), (2, False)])
def test_a_target_that_stays_first_is_a_success(rank_after: int, punished: bool) -> None:
    text = write(moved(SIDS[0], rank_after))
    earned = earn("overlong_on_success", text, SIDS[0], completion_ids=range(RewardSettings().max_tokens))
    assert earned == (-1.0 if punished else 0.0)
    assert earn("overlong_on_success", text, None, completion_ids=range(RewardSettings().max_tokens)) == 0.0


# The chain


@pytest.mark.parametrize(
    ("text", "passed"),
    [
        (write(SIDS), 5),
        (write(SIDS[::-1]), 5),
        (write(SIDS, f"Goes with {FOREIGN}."), 4),
        (write(SIDS, ""), 4),
        (write(SIDS[:9]), 4),
        (write([*SIDS[:9], FOREIGN]), 3),
        ("nothing to read", 0),
    ],
)
def test_the_chain_is_the_share_of_checks_passed(text: str, passed: int) -> None:
    assert earn("chain", text, SIDS[2]) == passed / 5


def test_the_chain_takes_the_history_for_shown() -> None:
    text = write(SIDS, f"Goes with {FOREIGN}.")
    assert earn("chain", text, SIDS[2], history=[FOREIGN]) == 1


# Records and TRL's form


def test_a_record_says_what_a_trainer_logs() -> None:
    found = judge_completion(write(moved(SIDS[3], 2)), SIDS, SIDS[3], finish_reason="length")
    assert found.ranking == tuple(moved(SIDS[3], 2))
    assert found.diagnostics() == {
        "valid": 1,
        "copied": 0,
        "truncated": 1,
        "rank_before": 4,
        "rank_after": 2,
        "promotion": 0.2,
        "auc": 8 / 9,
        "ndcg": pytest.approx(1 / math.log2(3)),
    }


def test_what_cannot_be_measured_is_none_and_not_zero() -> None:
    unmeasured = {"rank_after", "promotion", "auc", "ndcg"}
    found = judge_completion("", SIDS, SIDS[3]).diagnostics()
    assert {name for name, value in found.items() if value is None} == unmeasured


@pytest.mark.parametrize("target", [None, FOREIGN])
def test_a_list_without_the_target_pays_for_the_format_at_most(target: str | None) -> None:
    earned = {"unconditional": ALPHA, "conditional": 0, "format_gated": ALPHA, "auc": ALPHA, "ndcg": ALPHA}
    for name, value in earned.items():
        assert earn(name, write(SIDS[::-1]), target) == value
        assert earn(name, "", target) == INVALID


def test_a_reward_of_ones_own_is_called_and_pickled_by_its_name(write_module: Callable[[str, str], Path]) -> None:
    write_module("own_reward", "def first(judged, settings):\n    return 1.0 if judged.rank_after == 1 else 0.0\n")
    reward = pickle.loads(pickle.dumps(RewardFunction("own_reward:first")))
    texts = [write(moved(SIDS[2], rank)) for rank in (1, 2)]
    assert reward(["", ""], texts, candidates=[SIDS] * 2, target=[SIDS[2]] * 2) == [1.0, 0.0]
    assert reward.__name__ == "own_reward:first"


@pytest.mark.parametrize("name", REWARDS.builtin)
def test_trl_can_call_pickle_and_name_a_reward(name: str) -> None:
    reward = pickle.loads(pickle.dumps(RewardFunction(name, RewardSettings(format_weight=0.1))))
    text = write(moved(SIDS[2], 1))
    columns = {
        "prompts": ["x"] * 2,
        "candidates": [SIDS] * 2,
        "target": [SIDS[2]] * 2,
        "completion_ids": [[1, 2]] * 2,
        "trainer_state": None,
        "log_metric": print,
    }
    texts = reward(completions=[text, ""], **columns)
    messages = [[{"role": "assistant", "content": text}], [{"role": "assistant", "content": None}]]
    assert reward(completions=messages, **columns) == texts
    assert [type(value) for value in texts] == [float, float]
    assert reward.__name__ == name
    pickle.dumps(REWARDS.find(name))


# Outcomes


@pytest.mark.parametrize("name", RANK_REWARDS)
def test_equal_orders_have_one_outcome_whatever_their_form_and_length(name: str) -> None:
    """Eight answers with one order, of eight lengths."""
    for order in (moved(SIDS[3], 2), SIDS):
        answers = [write(order, "so it is " * words) for words in range(8)]
        columns = {"candidates": [SIDS] * 8, "target": [SIDS[3]] * 8, "completion_ids": [[0] * 1000] * 4 + [[0]] * 4}
        assert len(set(OutcomeFunction(name)(answers, answers, **columns))) == 1
        assert len(set(RewardFunction("overlong")(answers, answers, **columns))) == 2


@pytest.mark.parametrize(
    ("name", "moved_up", "moved_down", "copied", "repeated"),
    [
        ("unconditional", 0.2, -0.3, 0.0, 0.2),
        ("conditional", 0.2, -0.3, 0.0, 0.2),
        ("format_gated", 0.2, -0.3, 0.0, INVALID),
        ("auc", 8 / 9, 3 / 9, 6 / 9, INVALID),
        ("ndcg", 1 / math.log2(3), 1 / math.log2(8), 1 / math.log2(5), INVALID),
    ],
)
def test_an_outcome_is_what_the_reward_is_built_on(
    name: str, moved_up: float, moved_down: float, copied: float, repeated: float
) -> None:
    answers = [write(moved(SIDS[3], 2)), write(moved(SIDS[3], 7)), write(SIDS), write([*moved(SIDS[3], 2), SIDS[0]])]
    outcomes = OutcomeFunction(name)(answers, [*answers, ""], candidates=[SIDS] * 5, target=[SIDS[3]] * 5)
    assert outcomes == pytest.approx([moved_up, moved_down, copied, repeated, INVALID])


def test_the_outcome_of_a_reward_of_ones_own_is_the_reward_without_format(
    write_module: Callable[[str, str], Path],
) -> None:
    write_module("own_outcome", "def earn(judged, settings):\n    return judged.rank_after + settings.format_weight\n")
    outcome = pickle.loads(pickle.dumps(OutcomeFunction("own_outcome:earn", RewardSettings(format_weight=0.5))))
    assert outcome([""], [write(SIDS)], candidates=[SIDS], target=[SIDS[3]]) == [4.0]
    assert outcome.__name__ == "outcome"


def test_settings_weigh_the_format() -> None:
    assert RewardFunction("unconditional", RewardSettings(format_weight=0.05))(
        [None], [write(SIDS)], candidates=[SIDS]
    ) == [0.05]


def test_mistakes_are_clear_errors() -> None:
    with pytest.raises(InputError, match="no reward is called 'nice'; there are: unconditional, conditional"):
        RewardFunction("nice")
    with pytest.raises(InputError, match="format_weight is -1"):
        RewardSettings(format_weight=-1)
    with pytest.raises(InputError, match="0 to max_tokens, 10"):
        RewardSettings(max_tokens=10, cache_tokens=11)
    with pytest.raises(InputError, match="given twice"):
        judge_completion("", [SIDS[0], SIDS[0]])
    with pytest.raises(ValueError, match="zip"):
        RewardFunction("unconditional")([None], ["", ""], candidates=[SIDS])


def test_rewards_need_neither_torch_nor_trl() -> None:
    heavy = "('torch', 'trl', 'transformers')"
    code = f"import sys, train.dapo.rewards; sys.exit(any(name in sys.modules for name in {heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_of_rewards_is_what_the_benchmark_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[3]
    monkeypatch.syspath_prepend(root / "bench")
    page = runpy.run_path(str(root / "bench" / "reward_table.py"))["render_page"]()
    assert (root / "docs" / "benchmarks" / "rewards.md").read_text(encoding="utf-8") == page
