"""LambdaMART as a ranker: the baseline for every re-ranker that reasons, since it learns from the same evidence."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from curate.evaluation.rankers.protocol import Ranked
from curate.traces.teachers.fitted.boosting import LambdaMart, LambdaMartSettings, fit_lambdamart
from prompts.tasks import RerankTask
from store import InputError, Store


@dataclass(frozen=True, slots=True)
class LambdaMartRanker:
    """A ranker that averages the predictions of trained models."""

    models: LambdaMart
    name: str = "lambdamart"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings and facts that determine its rankings."""
        return {**asdict(self.models.settings), "digest": self.models.digest, "lists": self.models.lists}

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """Rank the candidates of each task by descending prediction. Ties keep the input order."""
        if not tasks:
            return
        # One call for all tasks; the flat predictions are split by list below.
        scores = self.models.scores(tasks, fold=None)
        end = 0
        for task in tasks:
            begin, end = end, end + len(task.candidates)
            order = np.argsort(-scores[begin:end], kind="stable")
            yield Ranked([task.candidates[k].item.item_id for k in order])


def train_lambdamart_ranker(
    store: Store,
    dataset: str,
    sid_version: str,
    pre_ranker: str,
    split: str,
    *,
    settings: LambdaMartSettings | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> LambdaMartRanker:
    """Train a ranker that can be evaluated on the lists of `split`.

    Raises InputError if it learns from these lists, and the errors of `fit_lambdamart`.
    """
    if split != "test":
        raise InputError("lambdamart learns from train and valid lists, so only `split` test can judge it")
    return LambdaMartRanker(fit_lambdamart(store, dataset, sid_version, pre_ranker, settings, on_progress=on_progress))
