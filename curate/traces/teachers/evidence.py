"""A teacher without a language model: it ranks by the evidence in the prompt and explains the ranking with citations.

It is a statistical teacher for offline work, for tests and as a baseline. It knows nothing but the task, and every
statement that it makes is supported by the task. If the template shows no evidence, it keeps the pre-ranker's order and
refers to the categories and brands that are shown.

Source: ours. The weights are rounded from a softmax fit on the valid lists of Beauty. Gumbel noise draws rankings from
the Plackett-Luce model of the scores, so at temperature 1 the first place is drawn in proportion to exp(score).
"""

import math
import random
from collections import Counter
from collections.abc import Sequence

from curate.traces.teachers.protocol import Completion, FailureKind, RequestFailedError, TeacherRequest
from prompts.completion import render_completion
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.errors import InputError
from store.records import Evidence

# Without evidence, the score falls by this much per place in the pre-ranker's order.
PLACE = 0.3
# This keeps the logarithm of a zero score finite, and below that of any candidate with a co-purchase.
LEAST_SCORE = 1e-9


FULL = "evidence.v1"
# The explanation is one sentence, because a small student spends most of its time on generating the reasoning.
BRIEF = "evidence_brief.v1"


class EvidenceTeacher:
    """Answers offline, immediately and without cost. The same request always gets the same answer.

    model: FULL or BRIEF, the length of the explanation. The ranking is the same. Raises InputError on other models.
    """

    name = "evidence"

    def __init__(self, model: str = FULL) -> None:
        if model not in (FULL, BRIEF):
            raise InputError(f"`model` is {model!r}; for teacher evidence it must be {FULL} or {BRIEF}")
        self.model = model

    async def complete(self, request: TeacherRequest) -> Completion:
        """Rank the candidates and explain the ranking. The seed matters only at temperatures above 0.

        Raises RequestFailedError if the task has no candidates.
        """
        task = request.task
        if not task.candidates:
            raise RequestFailedError("the prompt shows no candidates", FailureKind.REJECTED)
        ranked = rank_candidates(task, request.temperature, request.seed)
        if self.model == BRIEF:
            reasoning = explain_briefly(task, ranked[0])
        else:
            # The seed also varies the wording, so that repeated samples of a prompt are not identical.
            reasoning = explain_ranking(task, ranked, wording=request.seed if request.temperature > 0 else 0)
        text = render_completion(reasoning, [candidate.item.sid for candidate in ranked])
        return Completion(text, "stop", cost_usd=0.0)

    async def close(self) -> None:
        """Do nothing: this teacher holds no connections."""


def evidence_score(evidence: Evidence, last_item_id: str | None) -> float:
    """How well a candidate fits: the log of its pre-ranker score, purchases after the last item, brand and category.

    The scale of the pre-ranker's scores does not matter, because in a logarithm it only adds a constant.
    last_item_id: None if the history is empty.
    """
    after_last = next((link.after for link in evidence.links if link.item_id == last_item_id), 0)
    return (
        1.5 * math.log(max(evidence.score, 0.0) + LEAST_SCORE)
        + 0.9 * math.log1p(after_last)
        + 0.75 * (evidence.same_brand_items > 0)
        + 0.22 * len(evidence.shared_category)
    )


def rank_candidates(task: RerankTask, temperature: float, seed: int) -> list[Candidate]:
    """Return the candidates, best first. If the task names a target, it comes before all others.

    At temperature 0 the ranking is deterministic, and ties keep the pre-ranker's order. Above 0, Gumbel noise is added.
    """
    # _K: one entry per candidate.
    scores_K = _scores(task)
    if temperature > 0:
        rng = random.Random(seed)
        # The negative log of an exponential variable is Gumbel noise. The variable itself is 0 once in 2**53 draws.
        scores_K = [score - temperature * math.log(rng.expovariate(1.0) or 1e-16) for score in scores_K]
    target_id = task.target.item_id if task.target is not None else None
    # False sorts before True, so the target comes first. sorted() is stable, so ties keep their order.
    order = sorted(range(len(scores_K)), key=lambda k: (task.candidates[k].item.item_id != target_id, -scores_K[k]))
    return [task.candidates[k] for k in order]


def explain_ranking(task: RerankTask, ranked: Sequence[Candidate], wording: int) -> str:
    """An explanation in two to four sentences.

    It names a pattern of the history, a counted claim about the first candidate, a match in category or brand, and
    sometimes a claim about the second candidate. wording: any integer; it selects one of several equivalent wordings.
    """
    first = ranked[0]
    # This makes two independent choices from one number.
    style, tells_second = wording % 3, wording // 3 % 2
    claim = strongest_link(first, task.history)
    match = match_history(first, task.history)
    sentences = [_pattern(task.history, style)]
    if claim:
        sentences.append(f"{('', 'In past purchases, ', 'Complement: ')[style]}{claim}.")
    if match:
        sentences.append(f"{('', '', 'Match: ')[style]}{first.item.sid} {match}.")
    elif not claim:
        sentences.append(_without_link(task, first))
    if tells_second and len(ranked) > 1 and (second := strongest_link(ranked[1], task.history)):
        sentences.append(f"Second, {second}.")
    return " ".join(sentences)


def explain_briefly(task: RerankTask, first: Candidate) -> str:
    """The strongest argument for the first candidate, in one sentence."""
    if claim := strongest_link(first, task.history):
        return f"{claim}."
    if match := match_history(first, task.history):
        return f"{first.item.sid} {match}."
    return _without_link(task, first)


def _without_link(task: RerankTask, candidate: Candidate) -> str:
    return (
        f"No count, category or brand shown links {candidate.item.sid} to the history; the given order has it at "
        f"place {task.candidates.index(candidate) + 1} of {len(task.candidates)}."
    )


def _scores(task: RerankTask) -> list[float]:
    evidence_K = [candidate.evidence for candidate in task.candidates if candidate.evidence is not None]
    # Scores with and without evidence are not comparable, so all candidates must have it.
    if len(evidence_K) < len(task.candidates):
        return [-PLACE * place for place in range(len(task.candidates))]
    last_item_id = task.history[-1].item_id if task.history else None
    return [evidence_score(evidence, last_item_id) for evidence in evidence_K]


def _pattern(history: Sequence[ShownItem], style: int) -> str:
    """One sentence about the most frequent category of the history, two levels deep if possible."""
    if not history:
        return "The history is empty."
    for depth in (2, 1):
        # Newest first, because the counter returns the first one seen among equally frequent categories.
        paths = [item.categories[:depth] for item in reversed(history) if len(item.categories) >= depth]
        if not paths:
            continue
        path, count = Counter(paths).most_common(1)[0]
        member = next(item.sid for item in reversed(history) if item.categories[:depth] == path)
        name = " > ".join(path)
        if len(history) == 1:
            return f"The only item of the history, {member}, is in {name}."
        if style == 2:
            return f"Pattern: {name} holds {count} of the {len(history)} items in the history, the newest {member}."
        verb = "is" if count == 1 else "are"
        return f"{count} of the {len(history)} items in the history {verb} in {name}, most recently {member}."
    return f"The history ends with {history[-1].sid}."


def strongest_link(candidate: Candidate, history: Sequence[ShownItem]) -> str | None:
    """The candidate's strongest co-purchase in the words that the rule `grounded` parses, or None if there is none."""
    if candidate.evidence is None:
        return None
    # A citation must name an item that the prompt shows.
    sids = {item.item_id: item.sid for item in history}
    links = [link for link in candidate.evidence.links if link.item_id in sids]
    after = max(links, key=lambda link: link.after, default=None)
    if after is not None and after.after:
        return f"{candidate.item.sid} was bought after {sids[after.item_id]} {_times(after.after)}"
    before = max(links, key=lambda link: link.before, default=None)
    if before is not None and before.before:
        return f"{candidate.item.sid} was bought before {sids[before.item_id]} {_times(before.before)}"
    return None


def match_history(candidate: Candidate, history: Sequence[ShownItem]) -> str | None:
    """The category and brand that the candidate shares with the history, as a predicate, or None for neither."""
    return ", and ".join(filter(None, describe_match(candidate, history))) or None


def describe_match(candidate: Candidate, history: Sequence[ShownItem]) -> tuple[str, str]:
    """The shared category and the shared brand of the candidate and the history, each as a predicate or empty."""
    item, evidence = candidate.item, candidate.evidence
    if evidence is not None and evidence.shared_category:
        path, in_path = evidence.shared_category, evidence.shared_category_items
    else:
        path, in_path = _shared_category(item, history)
    of_brand = sum(other.brand == item.brand for other in history) if item.brand else 0
    return (
        f"is in {' > '.join(path)}, like {_items(in_path)} of the history" if in_path else "",
        f"is by {item.brand}, the brand of {_items(of_brand)} there" if of_brand else "",
    )


def _shared_category(item: ShownItem, history: Sequence[ShownItem]) -> tuple[tuple[str, ...], int]:
    """The longest category path that the item shares with the history, and the number of history items in it."""
    for depth in range(len(item.categories), 0, -1):
        path = item.categories[:depth]
        count = sum(other.categories[:depth] == path for other in history)
        if count:
            return path, count
    return (), 0


def _times(count: int) -> str:
    return f"{count} times" if count > 1 else "once"


def _items(count: int) -> str:
    return f"{count} items" if count > 1 else "1 item"
