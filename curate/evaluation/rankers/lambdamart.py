"""LambdaMART over the evidence: gradient-boosted trees on features that link each candidate to the history.

This is the baseline for every re-ranker that reasons: it uses the same facts and trains in seconds. It is trained on
cross-fitted train lists, so that scores and counts mean the same on test lists, and stopped early on valid lists.
LightGBM is imported only when it is used.

Source: Burges 2010, "From RankNet to LambdaRank to LambdaMART". The features are ours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.evaluation.rankers.protocol import Ranked
from curate.traces.target_lists import load_target_lists
from curate.traces.tasks import ListedTask
from curate.traces.teachers.evidence import LEAST_SCORE
from prompts.tasks import RerankTask
from store import InputError, Store
from store.installation import missing_package
from store.records import Evidence, Link

RECENT = ("last", "second_last", "third_last")
# This many lists take 2 GB of memory. Beauty has 20,191 lists that contain their target.
MAX_LISTS = 100_000
NO_LINK = Link("", 0, 0)


@dataclass(frozen=True, slots=True)
class LambdaMartSettings:
    """Chosen on the valid lists of Beauty, where 7 to 31 leaves and 63 to 255 bins lie within .004 of NDCG@5.

    popularity: whether the candidate's popularity is a feature; on 5-core data item counts leak the held-out purchase.
    patience: rounds without a better NDCG@5 on valid lists until it stops.
    """

    leaves: int = 15
    learning_rate: float = 0.05
    least_candidates_per_leaf: int = 50
    bins: int = 63
    rounds: int = 400
    patience: int = 50
    popularity: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LambdaMartRanker:
    """A trained model. booster: LightGBM's Booster."""

    booster: Any
    settings: dict[str, Any]
    name: str = "lambdamart"

    def rank(self, tasks: Sequence[RerankTask]) -> Iterator[Ranked]:
        """The candidates of each task by descending prediction. Ties keep the input order."""
        if not tasks:
            return
        # One call for all tasks; the flat predictions are split by list below.
        scores = self.booster.predict(_features(tasks, popularity=self.settings["popularity"]), num_threads=1)
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
    on_progress: Callable[[str], None] = lambda _: None,
) -> LambdaMartRanker:
    """A ranker for lists of `split`. Raises InputError on lists that it has learned from, and as `train_lambdamart`."""
    if split != "test":
        raise InputError("lambdamart learns from train and valid lists, so only `split` test can judge it")
    return train_lambdamart(store, dataset, sid_version, pre_ranker, on_progress=on_progress)


def train_lambdamart(
    store: Store,
    dataset: str,
    sid_version: str,
    pre_ranker: str,
    settings: LambdaMartSettings | None = None,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> LambdaMartRanker:
    """Train on the lists of a dataset that contain their target. The same lists and settings give the same model.

    Raises InputError if LightGBM cannot be used, or if the train or the valid split has no such list.
    """
    lightgbm = import_lightgbm()
    settings = settings or LambdaMartSettings()
    data: dict[str, Any] = {}
    for split in ("train", "valid"):
        on_progress(f"lambdamart: reading {split} lists")
        lists = load_target_lists(store, dataset, sid_version, pre_ranker, split, limit=MAX_LISTS).listed
        if not lists:
            raise InputError(
                f"lambdamart is trained on lists that contain their target, but no {split} list of {dataset!r} does; "
                "leave it out"
            )
        data[split] = lightgbm.Dataset(
            _features([listed.task for listed in lists], popularity=settings.popularity),
            _labels(lists),
            group=[len(listed.task.candidates) for listed in lists],
            feature_name=feature_names(popularity=settings.popularity),
            # The valid split is binned like the train split.
            reference=data.get("train"),
        )
    on_progress("lambdamart: training")
    parameters = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [5],
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": settings.least_candidates_per_leaf,
        "max_bin": settings.bins,
        "seed": settings.seed,
        "deterministic": True,
        "force_row_wise": True,
        # Threads wait for each other at every split of a tree. On busy cores two threads are four times as slow as one.
        "num_threads": 1,
        "verbosity": -1,
    }
    booster = lightgbm.train(
        parameters,
        data["train"],
        settings.rounds,
        valid_sets=[data["valid"]],
        callbacks=[lightgbm.early_stopping(settings.patience, verbose=False)],
    )
    return LambdaMartRanker(booster, {**asdict(settings), "best_round": booster.best_iteration})


def import_lightgbm() -> Any:
    """Import LightGBM. Raises InputError, with the package to install, if it or one of its libraries is missing."""
    try:
        import lightgbm  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise missing_package("lambdamart", "lightgbm", "eval") from error
    except OSError as error:
        raise InputError(
            f"lightgbm cannot be loaded ({error}); it needs the OpenMP library: apt-get install libgomp1"
        ) from error
    return lightgbm


def feature_names(*, popularity: bool = False) -> list[str]:
    """The names of the columns of `candidate_features`. RECENT items have two columns each."""
    return [
        "position",
        "log_score",
        "log_score_to_best",
        "last_weight",
        "last_weight_to_best",
        *(f"{way}_{item}" for item in RECENT for way in ("after", "before")),
        "after_all",
        "before_all",
        "links",
        "shared_category_depth",
        "shared_category_items",
        "same_brand_items",
        "history_length",
        *(["popularity"] if popularity else []),
    ]


def candidate_features(task: RerankTask, *, popularity: bool = False) -> list[list[float]]:
    """One row of features per candidate, in the task's order and in the columns of `feature_names`.

    position: 0 is the first candidate of the input. log_score_to_best: the difference to the best of the list.
    last_weight_to_best: the share of the best of the list. Counts are those of Evidence. A candidate without evidence
    has counts of 0.
    """
    facts_K = [candidate.evidence or Evidence(0.0) for candidate in task.candidates]
    log_scores_K = [math.log(max(facts.score, 0.0) + LEAST_SCORE) for facts in facts_K]
    best_score = max(log_scores_K, default=0.0)
    best_weight = max((facts.last_weight for facts in facts_K), default=0.0) or 1.0
    # Newest first, padded with an id that no item has, so that every task has the same columns.
    newest = [item.item_id for item in task.history[: -len(RECENT) - 1 : -1]]
    newest += [""] * (len(RECENT) - len(newest))
    rows = []
    for position, (facts, log_score) in enumerate(zip(facts_K, log_scores_K, strict=True)):
        by_item = {link.item_id: link for link in facts.links}
        recent = [by_item.get(item_id, NO_LINK) for item_id in newest]
        rows.append(
            [
                position,
                log_score,
                log_score - best_score,
                facts.last_weight,
                facts.last_weight / best_weight,
                *(count for link in recent for count in (link.after, link.before)),
                sum(link.after for link in facts.links),
                sum(link.before for link in facts.links),
                len(facts.links),
                len(facts.shared_category),
                facts.shared_category_items,
                facts.same_brand_items,
                len(task.history),
                *([facts.popularity] if popularity else []),
            ]
        )
    return rows


def _features(tasks: Sequence[RerankTask], *, popularity: bool) -> NDArray[np.float32]:
    """The rows of all tasks, concatenated. Each task becomes an array first: lists take five times the memory."""
    return np.concatenate([np.array(candidate_features(task, popularity=popularity), np.float32) for task in tasks])


def _labels(lists: Sequence[ListedTask]) -> NDArray[np.int8]:
    """1 for the target and 0 for the other candidates, in the order of `_features`."""
    return np.array(
        [candidate.item.item_id == listed.target_item_id for listed in lists for candidate in listed.task.candidates],
        np.int8,
    )
