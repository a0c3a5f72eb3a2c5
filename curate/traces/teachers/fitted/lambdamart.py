"""A teacher that ranks by LambdaMART and explains the ranking in words or in points.

In words, it names the evidence that its trees found in favour of the first candidate, the strongest first. Each
sentence states a fact of the evidence. In points, it rates every candidate, for students from scratch. Training lists
are rated by the model that has not seen their users, so that points mean the same on training lists and on new lists.

Source: contributions are SHAP values of the trees (Lundberg et al. 2018, "Consistent individualized feature attribution
for tree ensembles"). Sentences and points are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.datasets.sources import choose_sources
from curate.traces.teachers.evidence import describe_match, strongest_link
from curate.traces.teachers.fitted.boosting import LambdaMart, LambdaMartSettings, fit_lambdamart
from curate.traces.teachers.fitted.candidate_features import feature_names
from curate.traces.teachers.fitted.scorecard import PointScale, draw_scores, explain_points
from curate.traces.teachers.protocol import Completion, FailureKind, RequestFailedError, TeacherRequest
from prompts.completion import render_completion
from prompts.tasks import Candidate, RerankTask
from store import InputError, Store

WORDS = "words.v1"
POINTS = "points.v1"
# The scale is finer than a scorecard's, because 3 points per log-odd lose most of what the trees add to a scorecard.
POINT_SCALE = PointScale(per_unit=10, average=40, most=79)
MAX_SENTENCES = 3


@dataclass(frozen=True, slots=True)
class LambdaMartTeacher:
    """Answers offline, immediately and without cost. The same request always gets the same answer.

    folds: the fold of each training list, by list id. explains: WORDS or POINTS.
    """

    models: LambdaMart
    folds: Mapping[str, int]
    explains: str = WORDS
    name: str = "lambdamart"

    @property
    def model(self) -> str:
        """The model name with the digest of the trees, because other trees are another model."""
        return f"{self.explains}-{self.models.digest}"

    async def complete(self, request: TeacherRequest) -> Completion:
        """Rank the candidates and explain the ranking. The seed matters only at temperatures above 0.

        If the task names a target, it comes first. Raises RequestFailedError if the prompt shows no evidence.
        """
        task = request.task
        if not task.candidates or any(candidate.evidence is None for candidate in task.candidates):
            raise RequestFailedError("lambdamart rates evidence, and the prompt shows none", FailureKind.REJECTED)
        fold = self.folds.get(request.list_id)
        scores_K = self.models.scores([task], fold)
        draws_K = draw_scores(scores_K, request)
        if task.target is not None:
            is_target_K = [candidate.item.item_id == task.target.item_id for candidate in task.candidates]
            draws_K = np.where(is_target_K, np.inf, draws_K)
        order = np.argsort(-draws_K, kind="stable")
        if self.explains == POINTS:
            # The trees only compare the candidates of one list, so only differences within a list have a meaning.
            reasoning = explain_points(scores_K - scores_K.mean(), POINT_SCALE)
        else:
            (contributions_F,) = self.models.contributions(task, fold, places=order[:1])
            reasoning = explain_contributions(task, task.candidates[order[0]], contributions_F)
        text = render_completion(reasoning, [task.candidates[k].item.sid for k in order])
        return Completion(text, "stop", cost_usd=0.0)

    async def close(self) -> None:
        """Do nothing: this teacher holds no connections."""


def make_lambdamart_teacher(
    store: Store,
    dataset: str,
    sid_version: str | None = None,
    pre_ranker: str | None = None,
    *,
    model: str = WORDS,
    settings: LambdaMartSettings | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> LambdaMartTeacher:
    """Fit a teacher to the dataset. model: WORDS or POINTS, the form of its explanations.

    Raises InputError on another model, and the errors of `fit_lambdamart`.
    """
    if model not in (WORDS, POINTS):
        raise InputError(f"`model` is {model!r}; for teacher lambdamart it must be {WORDS} or {POINTS}")
    with store.reading() as session:
        sources = choose_sources(session, dataset, sid_version, pre_ranker)
        folds = dict(session.rows("folds_of_lists", dataset=dataset, pre_ranker=sources[1]))
    models = fit_lambdamart(store, dataset, *sources, settings, on_progress=on_progress)
    on_progress(f"lambdamart fitted on {models.lists:,} train lists")
    return LambdaMartTeacher(models, folds, model)


def explain_contributions(task: RerankTask, first: Candidate, contributions_F: NDArray[np.float64]) -> str:
    """Explain what speaks for a candidate, in up to MAX_SENTENCES sentences. Each states a fact of the evidence.

    contributions_F: what each feature adds to the candidate's log-odds. It decides which facts are stated, and in which
    order.
    """
    sentences = _facts(task, first)
    weights = {kind: float(contributions_F[columns].sum()) for kind, columns in _COLUMNS.items()}
    kinds = sorted((kind for kind in sentences if weights[kind] > 0), key=lambda kind: -weights[kind])
    if not kinds:
        return f"Little speaks for {first.item.sid} but less for the others. {sentences['first stage']}"
    openings = ("Most of all", "Besides", "Also")
    return " ".join(
        f"{opening}: {sentences[kind]}" for opening, kind in zip(openings[:MAX_SENTENCES], kinds, strict=False)
    )


def _facts(task: RerankTask, first: Candidate) -> dict[str, str]:
    """A sentence for each kind of evidence that links the candidate to the history."""
    sid, place = first.item.sid, task.candidates.index(first)
    facts = {"first stage": f"the given order has {sid} at place {place + 1} of {len(task.candidates)}."}
    if link := strongest_link(first, task.history):
        facts["purchases"] = f"{link}."
    category, brand = describe_match(first, task.history)
    if category:
        facts["category"] = f"{sid} {category}."
    if brand:
        facts["brand"] = f"{sid} {brand}."
    others = [other.evidence for other in task.candidates if other is not first and other.evidence]
    newest = task.history[-1].sid if task.history else None
    for kind, words in (("text", "has a description like that of"), ("copurchase", "is bought in the same company as")):
        mine = getattr(first.evidence, kind)
        theirs = [getattr(facts_of_other, kind) for facts_of_other in others]
        # Only the nearest of all candidates gets a sentence, which is then true for any cosine.
        if newest and mine and mine.last > 0 and all(other and mine.last >= other.last for other in theirs):
            facts[kind] = f"of all candidates, {sid} most {words} {newest}."
    return facts


def _kind(feature: str) -> str:
    if feature.startswith("text_"):
        return "text"
    if feature.startswith("copurchase_"):
        return "copurchase"
    if feature.startswith("shared_category"):
        return "category"
    if feature.startswith("same_brand"):
        return "brand"
    if feature.startswith(("after_", "before_", "links", "last_weight")):
        return "purchases"
    return "first stage"


def _columns() -> Mapping[str, Sequence[int]]:
    columns: dict[str, list[int]] = {}
    for column, feature in enumerate(feature_names()):
        columns.setdefault(_kind(feature), []).append(column)
    return columns


# The columns of the features of each kind of evidence.
_COLUMNS = _columns()
