"""A teacher that gives each candidate points for its evidence and ranks by the points, like a credit scorecard.

The points are fitted. Each level of each kind of evidence (`prompts.evidence_levels`) has a weight, and the weights of
a candidate add up to its log-odds of being the next interaction. This is a statistical teacher that has seen the
targets of the train lists. Its answers are short enough for a student from scratch to learn in minutes.

The stated points always follow from the evidence. Only the ranking is sampled, from the Plackett-Luce model of the
log-odds, so that candidates with similar points change places, and rejection keeps the rankings that users confirmed.

Source: McFadden 1974, "Conditional logit analysis of qualitative choice behavior". Features and use are ours.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.datasets.sources import choose_sources
from curate.traces.target_lists import load_target_lists
from curate.traces.teachers.protocol import Completion, FailureKind, RequestFailedError, TeacherRequest
from prompts.completion import render_completion
from prompts.evidence_levels import LEVELS, EvidenceLevels, evidence_levels
from prompts.tasks import RerankTask
from store import InputError, Store

KINDS = EvidenceLevels._fields


@dataclass(frozen=True, slots=True)
class PointScale:
    """How log-odds become points: `per_unit` points per log-odd, plus `average`, clipped to 0 and `most`."""

    per_unit: int
    average: int
    most: int


# These values are chosen so that points are rarely clipped.
SCORECARD_POINTS = PointScale(per_unit=3, average=15, most=39)
# Weight decay of the fit. On the valid lists of Beauty and of the simulated shop, 3 and 10 differ by less than 0.003
# NDCG@5.
RIDGE = 3.0
MAX_LISTS = 50_000
_MOST_STEPS = 50


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Fitted weights.

    weights_E_V: log-odds of each level (V) of each kind of evidence (E). lists: the number of lists in the fit.
    """

    weights_E_V: NDArray[np.float64]
    lists: int

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify the weights."""
        # The weights are rounded, because the last bits of a fit differ between machines.
        return hashlib.sha256(np.round(self.weights_E_V, 6).tobytes()).hexdigest()[:8]

    def scores(self, task: RerankTask) -> NDArray[np.float64]:
        """Return the log-odds (K,) of the candidates, in the task's order. Raises ValueError if one has no evidence."""
        return _add_up(self.weights_E_V, np.array(evidence_levels(task)))


@dataclass(frozen=True, slots=True)
class ScorecardTeacher:
    """Answers offline, immediately and without cost. The same request always gets the same answer."""

    card: Scorecard
    name: str = "scorecard"

    @property
    def model(self) -> str:
        """The model name with the digest of the weights, because other weights are another model."""
        return f"scorecard.v1-{self.card.digest}"

    async def complete(self, request: TeacherRequest) -> Completion:
        """Rate and rank the candidates. The seed matters only at temperatures above 0.

        Raises RequestFailedError if the prompt shows no evidence.
        """
        task = request.task
        try:
            scores_K = self.card.scores(task)
        except ValueError as error:
            raise RequestFailedError(
                f"the scorecard rates evidence, and the prompt shows none: {error}", FailureKind.REJECTED
            ) from error
        order = np.argsort(-draw_scores(scores_K, request), kind="stable")
        text = render_completion(explain_points(scores_K), [task.candidates[k].item.sid for k in order])
        return Completion(text, "stop", cost_usd=0.0)

    async def close(self) -> None:
        """Do nothing: this teacher holds no connections."""


def make_scorecard_teacher(
    store: Store,
    dataset: str,
    sid_version: str | None = None,
    pre_ranker: str | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> ScorecardTeacher:
    """Fit a teacher's scorecard to the dataset. Raises the errors of `fit_scorecard`."""
    card = fit_scorecard(store, dataset, sid_version, pre_ranker)
    on_progress(f"scorecard fitted on {card.lists:,} train lists")
    return ScorecardTeacher(card)


def fit_scorecard(
    store: Store, dataset: str, sid_version: str | None = None, pre_ranker: str | None = None
) -> Scorecard:
    """Fit the weights to the targets of the train lists, by maximum likelihood with weight decay.

    The same lists give the same weights. The evidence of train lists is cross-fitted, so its levels mean the same on
    unseen lists. A random sample is used if there are more than 50,000 lists. sid_version: None means the newest.
    pre_ranker: None means the only one.

    Raises InputError if no train list contains its target.
    """
    with store.reading() as session:
        sources = choose_sources(session, dataset, sid_version, pre_ranker)
    lists = load_target_lists(store, dataset, *sources, "train", limit=MAX_LISTS).listed
    if not lists:
        raise InputError(f"a scorecard is fitted to lists that contain their target; no train list of {dataset!r} does")
    targets = [
        [candidate.item.item_id for candidate in listed.task.candidates].index(listed.target_item_id)
        for listed in lists
    ]
    return Scorecard(fit_weights([evidence_levels(listed.task) for listed in lists], targets), len(lists))


def fit_weights(levels_by_list: Sequence[Sequence[EvidenceLevels]], targets: Sequence[int]) -> NDArray[np.float64]:
    """Weights (E, V) of a conditional logit with weight decay, by Newton's method. The problem is convex.

    levels_by_list: the evidence levels of each list's candidates. targets: the index of the target in each list.
    """
    # _N: lists, _K: candidates, _E: kinds of evidence, _V: levels of a kind, _EV: both in one axis.
    sizes_N = np.array([len(levels_K) for levels_K in levels_by_list])
    lists, candidates, kinds = len(sizes_N), int(sizes_N.max()), len(KINDS)
    # Short lists are padded. Padding gets a score of minus infinity below, and so a probability of 0.
    missing_N_K = np.arange(candidates) >= sizes_N[:, None]
    levels_N_K_E = np.zeros((lists, candidates, kinds), np.int64)
    levels_N_K_E[~missing_N_K] = [levels for levels_K in levels_by_list for levels in levels_K]
    # One row per candidate with a 1 in the column of each of its levels, so that its score is the row times weights.
    one_hot = np.zeros((lists * candidates, kinds * LEVELS), np.float32)
    columns = levels_N_K_E.reshape(-1, kinds) + LEVELS * np.arange(kinds)
    np.put_along_axis(one_hot, columns, 1.0, axis=1)
    is_target_N_K = np.zeros((lists, candidates))
    is_target_N_K[np.arange(lists), targets] = 1.0
    weights_E_V = np.zeros((kinds, LEVELS))
    for _ in range(_MOST_STEPS):
        scores_N_K = np.where(missing_N_K, -np.inf, _add_up(weights_E_V, levels_N_K_E))
        # The maximum is subtracted against overflow; it cancels out in the softmax.
        odds_N_K = np.exp(scores_N_K - scores_N_K.max(axis=1, keepdims=True))
        chances_N_K = odds_N_K / odds_N_K.sum(axis=1, keepdims=True)
        # This is the gradient of the log-likelihood, which is maximised, so the step below has a plus sign.
        gradient = one_hot.T @ (is_target_N_K - chances_N_K).ravel() - RIDGE * weights_E_V.ravel()
        chances = chances_N_K.ravel()[:, None].astype(np.float32)
        expected_N_EV = (one_hot * chances).reshape(lists, candidates, -1).sum(axis=1)
        weighted = one_hot * np.sqrt(chances)
        # The negative Hessian: the covariance of the levels within lists, E[xx'] - E[x]E[x]', plus the decay. The decay
        # also makes it invertible, since a constant added to all levels of a kind changes no probability.
        hessian = weighted.T @ weighted - expected_N_EV.T @ expected_N_EV + RIDGE * np.eye(len(gradient))
        step = np.linalg.solve(hessian.astype(np.float64), gradient)
        weights_E_V += step.reshape(kinds, LEVELS)
        if np.abs(step).max() < 1e-4:
            break
    return weights_E_V


def draw_scores(scores_K: NDArray[np.float64], request: TeacherRequest) -> NDArray[np.float64]:
    """Return scores whose order is a sample of the Plackett-Luce model of the log-odds.

    At temperature 0 they are the log-odds themselves.
    """
    if request.temperature == 0:
        return scores_K
    # Sorting by score plus Gumbel noise samples a ranking from the model.
    return scores_K + request.temperature * np.random.default_rng(request.seed).gumbel(size=len(scores_K))


def explain_points(scores_K: NDArray[np.float64], scale: PointScale = SCORECARD_POINTS) -> str:
    """Return the points of each candidate after its number in the prompt, such as `1 p14 2 p9`.

    >>> explain_points(np.array([1.0, -0.4, 90.0]))
    '1 p18 2 p14 3 p39'
    """
    points_K = np.clip(np.round(scale.average + scale.per_unit * scores_K), 0, scale.most).astype(int)
    return " ".join(f"{number} p{points}" for number, points in enumerate(points_K, 1))


def _add_up(weights_E_V: NDArray[np.float64], levels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Add up the weights of all kinds. levels: shape (..., E). Returns shape (...)."""
    # Pairs kind e with its level levels[..., e], by broadcasting.
    scores: NDArray[np.float64] = weights_E_V[np.arange(len(weights_E_V)), levels].sum(axis=-1)
    return scores
