"""A teacher without a model: ranks by the evidence that the prompt shows and says why, with citations.

It is a statistical teacher, for work offline, for tests and as a baseline, and claims to be no more: it knows nothing
but the task, and says nothing that the task does not bear out. Where the template shows no evidence it sees none
either, and keeps to the pre-ranker's order and the categories and brands on show.

Source: ours. The weights are rounded from a softmax fit on the valid lists of Beauty; Gumbel noise draws rankings from
the Plackett-Luce model of the scores, so at temperature 1 the teacher samples in proportion to exp(score).
"""

import math
import random
from collections import Counter
from collections.abc import Sequence

from curate.traces.teachers.protocol import Completion, RequestFailedError, TeacherRequest
from prompts.completion import render_completion
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.errors import InputError
from store.records import Evidence

# Where no evidence is shown, one place in the pre-ranker's order is worth as much as this difference in score.
PLACE = 0.3
# Keeps the logarithm of a score of zero finite, below that of any candidate with a co-purchase.
LEAST_SCORE = 1e-9


FULL = "evidence.v1"
# One sentence: what a small student has to write costs it most of its time.
BRIEF = "evidence_brief.v1"


class EvidenceTeacher:
    """Answers offline, at once and free of charge; the same request always gets the same answer.

    model: FULL or BRIEF, how much is said; the order is the same. Raises InputError on any other.
    """

    name = "evidence"

    def __init__(self, model: str = FULL) -> None:
        if model not in (FULL, BRIEF):
            raise InputError(f"`model` is {model!r}; of teacher evidence it must be {FULL} or {BRIEF}")
        self.model = model

    async def complete(self, request: TeacherRequest) -> Completion:
        """Rank and explain. At temperature 0 the seed plays no part. Raises RequestFailedError without candidates."""
        task = request.task
        if not task.candidates:
            raise RequestFailedError("the prompt shows no candidates")
        ranked = rank_candidates(task, request.temperature, request.seed)
        if self.model == BRIEF:
            reasoning = explain_briefly(task, ranked[0])
        else:
            reasoning = explain_ranking(task, ranked, wording=request.seed if request.temperature > 0 else 0)
        text = render_completion(reasoning, [candidate.item.sid for candidate in ranked])
        return Completion(text, "stop", cost_usd=0.0)

    async def close(self) -> None:
        """Nothing is held."""


def evidence_score(evidence: Evidence, last_item_id: str | None) -> float:
    """How well a candidate fits: log of the pre-ranker's score, its purchases after the last item, brand and category.

    A logarithm, so the scale of the pre-ranker's scores does not matter.
    """
    after_last = next((link.after for link in evidence.links if link.item_id == last_item_id), 0)
    return (
        1.5 * math.log(max(evidence.score, 0.0) + LEAST_SCORE)
        + 0.9 * math.log1p(after_last)
        + 0.75 * (evidence.same_brand_items > 0)
        + 0.22 * len(evidence.shared_category)
    )


def rank_candidates(task: RerankTask, temperature: float, seed: int) -> list[Candidate]:
    """The candidates, best first, the target before all others where the task names one.

    temperature 0 is deterministic, and ties stay in the pre-ranker's order; above it, Gumbel noise is added.
    """
    scores_K = _scores(task)
    if temperature > 0:
        rng = random.Random(seed)
        # The logarithm of an exponential variable is Gumbel noise, negated; the variable is 0 once in 2**53 draws.
        scores_K = [score - temperature * math.log(rng.expovariate(1.0) or 1e-16) for score in scores_K]
    target_id = task.target.item_id if task.target is not None else None
    order = sorted(range(len(scores_K)), key=lambda k: (task.candidates[k].item.item_id != target_id, -scores_K[k]))
    return [task.candidates[k] for k in order]


def explain_ranking(task: RerankTask, ranked: Sequence[Candidate], wording: int) -> str:
    """Two to four sentences: pattern of the history, counted claim, match of the first candidate, maybe the second.

    `wording` chooses among equivalent words; any number will do.
    """
    first = ranked[0]
    style, tells_second = wording % 3, wording // 3 % 2
    claim = _claim(first, task.history)
    match = _match(first, task.history)
    sentences = [_pattern(task.history, style)]
    if claim:
        sentences.append(f"{('', 'In past purchases, ', 'Complement: ')[style]}{claim}.")
    if match:
        sentences.append(f"{('', '', 'Match: ')[style]}{first.item.sid} {match}.")
    elif not claim:
        sentences.append(_without_link(task, first))
    if tells_second and len(ranked) > 1 and (second := _claim(ranked[1], task.history)):
        sentences.append(f"Second, {second}.")
    return " ".join(sentences)


def explain_briefly(task: RerankTask, first: Candidate) -> str:
    """What says most for the candidate that is ranked first, in one sentence."""
    if claim := _claim(first, task.history):
        return f"{claim}."
    if match := _match(first, task.history):
        return f"{first.item.sid} {match}."
    return _without_link(task, first)


def _without_link(task: RerankTask, candidate: Candidate) -> str:
    return (
        f"No count, category or brand shown links {candidate.item.sid} to the history; the given order has it at "
        f"place {task.candidates.index(candidate) + 1} of {len(task.candidates)}."
    )


def _scores(task: RerankTask) -> list[float]:
    shown = [candidate.evidence for candidate in task.candidates if candidate.evidence is not None]
    if len(shown) < len(task.candidates):
        return [-PLACE * place for place in range(len(task.candidates))]
    last_item_id = task.history[-1].item_id if task.history else None
    return [evidence_score(evidence, last_item_id) for evidence in shown]


def _pattern(history: Sequence[ShownItem], style: int) -> str:
    """What most of the history has in common: the most frequent category, two levels deep where there are two."""
    if not history:
        return "The history is empty."
    for depth in (2, 1):
        # Newest first: of equally frequent categories the counter gives the one it met first.
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


def _claim(candidate: Candidate, history: Sequence[ShownItem]) -> str | None:
    """The candidate's strongest counted link, in the words that the rule `grounded` reads; None where it has none."""
    if candidate.evidence is None:
        return None
    sids = {item.item_id: item.sid for item in history}
    links = [link for link in candidate.evidence.links if link.item_id in sids]
    after = max(links, key=lambda link: link.after, default=None)
    if after is not None and after.after:
        return f"{candidate.item.sid} was bought after {sids[after.item_id]} {_times(after.after)}"
    before = max(links, key=lambda link: link.before, default=None)
    if before is not None and before.before:
        return f"{candidate.item.sid} was bought before {sids[before.item_id]} {_times(before.before)}"
    return None


def _match(candidate: Candidate, history: Sequence[ShownItem]) -> str | None:
    """Which category and brand the candidate shares with the history, as a predicate; None where it shares neither."""
    item, evidence = candidate.item, candidate.evidence
    if evidence is not None and evidence.shared_category:
        path, in_path = evidence.shared_category, evidence.shared_category_items
    else:
        path, in_path = _shared_category(item, history)
    of_brand = sum(other.brand == item.brand for other in history) if item.brand else 0
    parts = []
    if in_path:
        parts.append(f"is in {' > '.join(path)}, like {_items(in_path)} of the history")
    if of_brand:
        parts.append(f"is by {item.brand}, the brand of {_items(of_brand)} there")
    return ", and ".join(parts) or None


def _shared_category(item: ShownItem, history: Sequence[ShownItem]) -> tuple[tuple[str, ...], int]:
    """The longest category path that the item shares with any of the history, and how many of the history are in it."""
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
