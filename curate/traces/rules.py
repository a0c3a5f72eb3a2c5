"""Rules that a trace passes or fails: pure functions of a completion and of the task that it answers.

`RULES` finds each by its name. A rule has a version, and every verdict names both, so that rules can change and be run
again over stored completions. Rulesets (`curate.traces.rulesets`) are named lists of rules. If a completion cannot be
parsed, only the rule `parsed` judges it. A trace without a verdict of a rule does not pass it.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from prompts.completion import ParsedCompletion, ParseFailure
from prompts.semantic_ids import find_sids
from prompts.tasks import RerankTask
from store.registry import Registry


class Reason(StrEnum):
    """Why a trace fails a rule. The parser has further reasons (`prompts.completion.ParseReason`)."""

    TRUNCATED = "truncated"
    UNKNOWN_SID = "unknown_sid"
    NOT_A_PERMUTATION = "not_a_permutation"
    TARGET_NOT_FIRST = "target_not_first"
    NO_CITATION = "no_citation"
    FOREIGN_CITATION = "foreign_citation"
    UNGROUNDED_CLAIM = "ungrounded_claim"
    LEAKS_TARGET = "leaks_target"
    ORDER_COPIED = "order_copied"


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion and the task that it answers. `task` has evidence even if the prompt did not show it."""

    task: RerankTask
    target_item_id: str
    finish_reason: str
    parsed: ParsedCompletion | ParseFailure


class Verdict(NamedTuple):
    """The verdict of one rule on one trace. `reason` and `detail` are None if the trace passed."""

    rule: str
    rule_version: int
    passed: bool
    reason: str | None
    detail: str | None


class Failure(NamedTuple):
    """Why a trace fails a rule.

    reason: the reason by which failures are counted. detail: the values seen, or None.
    """

    reason: str
    detail: str | None = None


class Rule(NamedTuple):
    """A check of a parsed completion. It returns None if the trace passes.

    version: it must change whenever the check or the parser changes, so that old and new verdicts are told apart.
    """

    version: int
    check: Callable[[Answer, ParsedCompletion], Failure | None]


_CLAIM = re.compile(
    r"(?P<left><\|sid_begin\|>[^|]*<\|sid_end\|>)[^<.;]{0,40}?\bbought (?P<way>after|before) "
    r"(?P<right><\|sid_begin\|>[^|]*<\|sid_end\|>)[^<.;]{0,20}?(?P<times>once|twice|\d[\d,]*(?= times?\b))"
)
_COUNTS = {"once": 1, "twice": 2}
_UNCOUNTABLE = 10**18
# The longest excerpt of a claim in a verdict, in characters.
_SHOWN_CHARACTERS = 500
_LEAK = re.compile(
    r"\bground[- ]truth\b"
    r"|\b(?:the|a) (?:correct|true|expected) (?:answer|target|item|choice|label)\b"
    r"|\b(?:the|a) (?:right|given) (?:answer|target|label)\b"
    r"|\bthe target(?: item| product)?\b(?! (?:audience|group|market|customer|consumer|demographic|area|zone))"
    r"|\b(?:actual|true|real|known) next (?:item|purchase|product)\b"
    r"|\b(?:actually|in fact|indeed) (?:bought|purchased|chose|picked) (?:it )?next\b"
    r"|\b(?:we|I) (?:already )?(?:know|are told|were told|was told|am told) (?:that )?the (?:user|customer|shopper)\b"
    r"|\b(?:we|I) (?:are|am|was|were) (?:told|given)\b",
    re.IGNORECASE,
)


# Every match of _LEAK has one of these words. Most reasonings have none, and this search is ten times as fast.
_LEAK_WORDS = ("ground", "correct", "true", "expected", "answer", "target", "label", "next", " know", "told", "given")


def _parsed(_: Answer, __: ParsedCompletion) -> Failure | None:
    """Always passes, because `judge` calls no rule on a completion that cannot be parsed."""
    return None


def _not_truncated(answer: Answer, _: ParsedCompletion) -> Failure | None:
    return Failure(Reason.TRUNCATED) if answer.finish_reason == "length" else None


def _known_sids(_: Answer, parsed: ParsedCompletion) -> Failure | None:
    return Failure(Reason.UNKNOWN_SID, ", ".join(parsed.unknown)[:_SHOWN_CHARACTERS]) if parsed.unknown else None


def _permutation(answer: Answer, parsed: ParsedCompletion) -> Failure | None:
    candidates = {candidate.item.item_id for candidate in answer.task.candidates}
    if not parsed.unknown and len(parsed.ranking) == len(candidates) and set(parsed.ranking) == candidates:
        return None
    distinct = len(set(parsed.ranking))
    return Failure(
        Reason.NOT_A_PERMUTATION,
        f"{distinct} of {len(candidates)} candidates, {len(parsed.ranking) - distinct} twice, "
        f"{len(parsed.unknown)} foreign",
    )


def _target_first(answer: Answer, parsed: ParsedCompletion) -> Failure | None:
    if parsed.ranking and parsed.ranking[0] == answer.target_item_id:
        return None
    rank = parsed.ranking.index(answer.target_item_id) + 1 if answer.target_item_id in parsed.ranking else None
    return Failure(Reason.TARGET_NOT_FIRST, f"rank {rank}" if rank else "left out")


def _shown_sids(task: RerankTask) -> set[str]:
    return {item.sid for item in task.history} | {candidate.item.sid for candidate in task.candidates}


def _cites(answer: Answer, parsed: ParsedCompletion) -> Failure | None:
    cited = not _shown_sids(answer.task).isdisjoint(find_sids(parsed.reasoning))
    return None if cited else Failure(Reason.NO_CITATION)


def _grounded(answer: Answer, parsed: ParsedCompletion) -> Failure | None:
    """Fail if a cited semantic ID is not in the prompt, or if a claimed count is not the one in the store."""
    shown = _shown_sids(answer.task)
    for sid in find_sids(parsed.reasoning):
        if sid not in shown:
            return Failure(Reason.FOREIGN_CITATION, sid)
    for claim in find_claims(parsed.reasoning):
        counted = count_pair(answer.task, claim)
        if counted != claim.times:
            return Failure(
                Reason.UNGROUNDED_CLAIM, f"says {claim.text[:_SHOWN_CHARACTERS]!r}, the store counts {counted}"
            )
    return None


def _no_leak(_: Answer, parsed: ParsedCompletion) -> Failure | None:
    leak = find_leak(parsed.reasoning)
    return Failure(Reason.LEAKS_TARGET, leak) if leak else None


def _not_copied(answer: Answer, parsed: ParsedCompletion) -> Failure | None:
    """Fail an unchanged order even if its first item is the target, because a student would learn to copy."""
    order = tuple(candidate.item.item_id for candidate in answer.task.candidates)
    return Failure(Reason.ORDER_COPIED) if len(order) > 1 and parsed.ranking == order else None


def find_leak(text: str) -> str | None:
    """Return the first words of a text which show that its writer knew the answer, or None."""
    lowered = text.lower()
    if not any(word in lowered for word in _LEAK_WORDS):
        return None
    match = _LEAK.search(text)
    return match[0] if match else None


class Claim(NamedTuple):
    """A claim in a reasoning: `left` was bought after (or before, by `way`) `right` this many times.

    text: the words of the claim, which begin at character `start` of the reasoning.
    """

    left: str
    way: str
    right: str
    times: int
    text: str
    start: int = 0


def find_claims(reasoning: str) -> list[Claim]:
    """All claims of the form `<sid> was bought after <sid> 12 times` (or before; once, twice, 1 time).

    Semantic IDs are returned in canonical form. Claims in other words are not found. A number of more than 18 digits
    counts as 10**18, which is no count of any store.
    """
    claims = []
    for match in _CLAIM.finditer(reasoning):
        left, right = find_sids(match["left"]), find_sids(match["right"])
        if left and right:
            digits = match["times"].replace(",", "").lstrip("0")
            # Python refuses to convert thousands of digits, and no store counts to a number of more than 18 digits.
            times = _COUNTS.get(digits) or (int(digits or 0) if len(digits) <= 18 else _UNCOUNTABLE)
            claims.append(Claim(left[0], match["way"], right[0], times, match[0], match.start()))
    return claims


def count_pair(task: RerankTask, claim: Claim) -> int:
    """The store's count for a claim; 0 unless the claim is about a candidate and a linked item of the history."""
    history = {item.sid: item.item_id for item in task.history}
    # Links are stored from the candidate's side only: "left after right" is "right before left" seen from the other.
    for candidate_sid, history_sid, forwards in (
        (claim.left, claim.right, claim.way == "after"),
        (claim.right, claim.left, claim.way == "before"),
    ):
        for candidate in task.candidates:
            if candidate.item.sid != candidate_sid or history_sid not in history or candidate.evidence is None:
                continue
            for link in candidate.evidence.links:
                if link.item_id == history[history_sid]:
                    return link.after if forwards else link.before
    return 0


PARSED = "parsed"

RULES: Registry[Rule] = Registry(
    "rule",
    "gr2.rules",
    {
        PARSED: Rule(2, _parsed),
        "not_truncated": Rule(1, _not_truncated),
        "known_sids": Rule(3, _known_sids),
        "permutation": Rule(3, _permutation),
        "target_first": Rule(3, _target_first),
        "cites": Rule(1, _cites),
        "grounded": Rule(1, _grounded),
        "no_leak": Rule(1, _no_leak),
        "not_copied": Rule(3, _not_copied),
    },
    Rule,
)
# These judge every trace. Users' own rules judge it if its ruleset or `gr2 verify --rules` names them.
RULE_NAMES = tuple(RULES.builtin)


def check_rule_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names as given. Raises InputError on a name without a rule."""
    names = tuple(names)
    for name in names:
        RULES.find(name)
    return names


def judge(answer: Answer, rules: Iterable[str] = RULE_NAMES) -> list[Verdict]:
    """Judge an answer by the named rules, in their order.

    A completion that cannot be parsed gets only the verdict of `parsed`.
    """
    parsed = answer.parsed
    if isinstance(parsed, ParseFailure):
        version = RULES.find(PARSED).version
        return [Verdict(PARSED, version, False, parsed.reason, parsed.detail)] if PARSED in rules else []
    verdicts = []
    for name in rules:
        rule = RULES.find(name)
        failure = rule.check(answer, parsed)
        verdicts.append(Verdict(name, rule.version, failure is None, *(failure or (None, None))))
    return verdicts
