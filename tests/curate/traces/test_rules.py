import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate.traces.rules import (
    RULE_NAMES,
    Answer,
    Claim,
    Reason,
    check_rule_names,
    count_pair,
    find_claims,
    find_leak,
    judge,
)
from prompts.completion import ParsedCompletion, ParseFailure, ParseReason
from prompts.semantic_ids import render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem
from store import InputError, Store
from store.records import Evidence, Link

HISTORY = [ShownItem(f"h{n}", render_sid((n, 0, 0))) for n in range(2)]
ITEMS = [ShownItem(f"c{n}", render_sid((n, 1, 1))) for n in range(3)]
LINKS = (Link("h1", 12, 3), Link("h0", 1, 0))
TASK = RerankTask(
    tuple(HISTORY), tuple(Candidate(item, Evidence(1.0, links=LINKS if n == 0 else ())) for n, item in enumerate(ITEMS))
)
C0, C1, C2 = (item.sid for item in ITEMS)
H0, H1 = (item.sid for item in HISTORY)
FOREIGN = render_sid((9, 9, 9))


def answer(
    reasoning: str = f"{C1} fits {H0}.",
    ranking: tuple[str, ...] = ("c1", "c0", "c2"),
    unknown: tuple[str, ...] = (),
    finish_reason: str = "stop",
) -> Answer:
    return Answer(TASK, "c1", finish_reason, ParsedCompletion(reasoning, ranking, unknown))


def failures(of: Answer) -> dict[str, str | None]:
    return {verdict.rule: verdict.reason for verdict in judge(of) if not verdict.passed}


def test_a_good_trace_passes_every_rule() -> None:
    verdicts = judge(answer())
    assert [verdict.rule for verdict in verdicts] == list(RULE_NAMES)
    assert all(verdict.passed and verdict.reason is None and verdict.detail is None for verdict in verdicts)


@pytest.mark.parametrize(
    ("bad", "rule", "reason"),
    [
        (answer(finish_reason="length"), "not_truncated", Reason.TRUNCATED),
        (answer(unknown=(FOREIGN,)), "known_sids", Reason.UNKNOWN_SID),
        (answer(ranking=("c1", "c0")), "permutation", Reason.NOT_A_PERMUTATION),
        (answer(ranking=("c1", "c0", "c0")), "permutation", Reason.NOT_A_PERMUTATION),
        (answer(ranking=("c1", "c0", "c2", "c2")), "permutation", Reason.NOT_A_PERMUTATION),
        (answer(ranking=("c0", "c2", "c1")), "target_first", Reason.TARGET_NOT_FIRST),
        (answer(ranking=()), "target_first", Reason.TARGET_NOT_FIRST),
        (answer("It fits."), "cites", Reason.NO_CITATION),
        (answer(f"{C1} fits, unlike {FOREIGN}."), "grounded", Reason.FOREIGN_CITATION),
        (answer(f"{C0} was bought after {H1} 13 times."), "grounded", Reason.UNGROUNDED_CLAIM),
        (answer(f"{C1} was bought after {H1} once."), "grounded", Reason.UNGROUNDED_CLAIM),
        (answer(f"{C1} is the correct answer."), "no_leak", Reason.LEAKS_TARGET),
        (answer(ranking=("c0", "c1", "c2")), "not_copied", Reason.ORDER_COPIED),
    ],
)
def test_each_rule_finds_its_fault(bad: Answer, rule: str, reason: Reason) -> None:
    assert failures(bad)[rule] == reason


def test_what_cannot_be_parsed_is_judged_by_that_alone() -> None:
    broken = Answer(TASK, "c1", "stop", ParseFailure(ParseReason.NO_JSON, "sorry"))
    assert judge(broken) == [("parsed", 2, False, "no_json", "sorry")]
    assert judge(broken, ["cites"]) == []


@pytest.mark.parametrize(
    "claim",
    [
        f"{C0} was bought after {H1} 12 times",
        f"{C0} was bought after {H1} exactly 12 times",
        f"{C0} bought before {H1} 3 times",
        f"{C0} was often bought after {H0} once",
        f"{C0} was bought after {H0} 1 time",
        # the same counts, told from the history's side
        f"{H1} was bought before {C0} 12 times",
        f"{H1} was bought after {C0} 3 times",
        # no claim in a form that is counted
        f"{C2} is often bought after {H1}",
        f"{C0} was bought 12 times",
    ],
)
def test_true_claims_and_uncounted_ones_are_grounded(claim: str) -> None:
    assert "grounded" not in failures(answer(f"Well, {claim}."))


def test_a_claim_is_found_with_its_parts() -> None:
    (claim,) = find_claims(f"See: {C0} was bought after {H1} 1,012 times!")
    assert (claim.left, claim.way, claim.right, claim.times) == (C0, "after", H1, 1012)
    assert [found.times for found in find_claims(f"{C0} bought after {H1} once. {C0} bought before {H1} twice")] == [
        1,
        2,
    ]


@pytest.mark.parametrize("digits", ["9" * 5000, "0" * 5000, "9," * 5000, "1" * 19, "٣" * 5000, "0" * 5000 + "12"])
def test_a_claim_of_any_number_of_digits_is_compared(digits: str) -> None:
    claim = f"{C0} was bought after {H1} {digits} times."
    (found,) = find_claims(claim)
    assert found.times >= 10**18 or found.times in (0, 12)
    verdicts = {verdict.rule: verdict for verdict in judge(answer(claim))}
    assert verdicts["grounded"].passed == (found.times == 12)
    assert len(verdicts["grounded"].detail or "") < 1000


@given(
    st.lists(
        st.sampled_from([C0, H1, " was bought after ", " bought before ", " 9", ",", "times", "\0", "<", "|", "²"])
    )
)
def test_no_reasoning_makes_a_rule_raise(parts: list[str]) -> None:
    assert len(judge(answer("".join(parts)))) == len(RULE_NAMES)


@pytest.mark.parametrize(
    "unit",
    ["<", "<|sid_begin|>", C0, f"{C0} was bought after ", " bought after", "we are told ", "the ", "9," * 10, "\0"],
)
def test_a_megabyte_of_hostile_reasoning_is_judged_in_bounded_work(unit: str) -> None:
    """Quadratic work on these would take minutes: the test would not end."""
    judge(answer(unit * (1_000_000 // len(unit))))


def test_pairs_that_the_store_never_saw_count_zero() -> None:
    assert count_pair(TASK, Claim(C0, "after", C1, 1, "")) == 0
    assert count_pair(TASK, Claim(FOREIGN, "after", H0, 1, "")) == 0
    assert count_pair(TASK, Claim(C0, "after", H1, 1, "")) == 12


@pytest.mark.parametrize(
    "text",
    [
        "The target item is a shampoo.",
        "Given the ground truth, it must lead.",
        "We are told the customer wants soap.",
        "This is the actual next purchase.",
        "The user in fact bought next a comb.",
        "I know that the user takes this.",
    ],
)
def test_words_of_one_who_was_told_are_leaks(text: str) -> None:
    assert find_leak(text)


@pytest.mark.parametrize(
    "text",
    [
        "It targets dry hair, and the target audience is young.",
        "The next purchase is likely a conditioner.",
        "The right choice of brand matters to this shopper.",
        "They bought it next to a comb.",
        "The truth is that shampoo comes first.",
    ],
)
def test_ordinary_words_are_no_leaks(text: str) -> None:
    assert find_leak(text) is None


def test_an_unknown_rule_is_a_clear_error() -> None:
    with pytest.raises(InputError, match="no rule is called 'nice'; there are: parsed"):
        check_rule_names(["parsed", "nice"])


def test_rulesets_of_the_store_name_rules_that_exist(store: Store) -> None:
    with store.reading() as session:
        rulesets = dict(session.connection.execute("select name, rules from rulesets_current").fetchall())
    assert set(rulesets) == {"answered", "paper", "strict"}
    assert rulesets["answered"] == []
    assert set(rulesets["strict"]) == set(RULE_NAMES)
    assert set(rulesets["paper"]) < set(RULE_NAMES)
