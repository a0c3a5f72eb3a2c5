"""LambdaMART over the evidence: gradient-boosted trees on features that link each candidate to the history.

The models are cross-fitted. Each model learns from all folds of users except one, and rates the training lists of that
fold. Lists of other splits get the mean of all models, which is steadier than any single model. The trees stop early on
valid lists. LightGBM is imported only when it is used.

Source: Burges 2010, "From RankNet to LambdaRank to LambdaMART". The features are ours.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from curate.traces.target_lists import TargetLists, load_target_lists
from curate.traces.teachers.fitted.candidate_features import feature_names, features_of
from prompts.tasks import RerankTask
from store import InputError, Store
from store.installation import missing_package
from store.progress import Counted

# This many lists take 2 GB of memory. Beauty has 20,191 lists that contain their target.
MAX_LISTS = 100_000


@dataclass(frozen=True, slots=True)
class LambdaMartSettings:
    """Settings of the models. The defaults are chosen on the valid lists of Beauty.

    popularity: whether the candidate's popularity is a feature; on 5-core data item counts leak the held-out purchase.
    patience: training stops after this many rounds without a better NDCG@5 on valid lists. seeds: the number of models
    that learn from the same lists, each from other shares of features and lists.
    """

    leaves: int = 15
    learning_rate: float = 0.05
    least_candidates_per_leaf: int = 50
    bins: int = 63
    rounds: int = 400
    patience: int = 50
    share_of_features: float = 0.7
    share_of_candidates: float = 0.8
    popularity: bool = False
    seeds: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class LambdaMart:
    """Trained models.

    boosters: LightGBM's models, by the fold that they have not seen. scale: log-odds per unit of score.
    """

    boosters: Mapping[int, Sequence[Any]]
    scale: float
    settings: LambdaMartSettings
    lists: int

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify the models."""
        text = "".join(booster.model_to_string() for fold in sorted(self.boosters) for booster in self.boosters[fold])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def scores(self, tasks: Sequence[RerankTask], fold: int | None) -> NDArray[np.float64]:
        """Return the log-odds of the candidates of all tasks, one task after the other.

        fold: the fold of training lists, whose model has not seen them; None for lists of other splits.
        """
        features = features_of(tasks, popularity=self.settings.popularity)
        return self.scale * _predict(self._models(fold), features)

    def contributions(
        self, task: RerankTask, fold: int | None, *, places: NDArray[np.int64] | None = None
    ) -> NDArray[np.float64]:
        """Return what each feature adds to the log-odds of each candidate (K, F), by SHAP values of the trees.

        places: the candidates to compute, because each takes a while; None for all.
        """
        features = features_of([task], popularity=self.settings.popularity)
        if places is not None:
            features = features[places]
        # The last column is the expected value of all candidates.
        by_model = [model.predict(features, pred_contrib=True, num_threads=1)[:, :-1] for model in self._models(fold)]
        return np.asarray(self.scale * np.mean(by_model, axis=0))

    def _models(self, fold: int | None) -> Sequence[Any]:
        if fold is not None and fold in self.boosters:
            return self.boosters[fold]
        return [booster for boosters in self.boosters.values() for booster in boosters]


def fit_lambdamart(
    store: Store,
    dataset: str,
    sid_version: str,
    pre_ranker: str,
    settings: LambdaMartSettings | None = None,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> LambdaMart:
    """Train on the lists of a dataset that contain their target. The same lists and settings give the same models.

    Raises InputError if LightGBM cannot be used, or if the train or the valid split has no such list.
    """
    lightgbm = import_lightgbm()
    settings = settings or LambdaMartSettings()
    lists: dict[str, _Lists] = {}
    for split in ("train", "valid"):
        on_progress(f"lambdamart: reading {split} lists")
        target_lists = load_target_lists(store, dataset, sid_version, pre_ranker, split, limit=MAX_LISTS)
        if not target_lists.listed:
            raise InputError(
                f"lambdamart is trained on lists that contain their target, but no {split} list of {dataset!r} does; "
                "leave it out"
            )
        lists[split] = _Lists.of(target_lists, popularity=settings.popularity)
    train, valid = lists["train"], lists["valid"]
    folds = sorted(set(train.folds_N.tolist()))

    def fit(fold: int) -> list[Any]:
        held_out_N = train.folds_N == fold
        # With a single fold, no other list is left to learn from.
        seen = train.where(~held_out_N if len(folds) > 1 else held_out_N)
        data = lightgbm.Dataset(
            seen.features,
            seen.labels,
            group=seen.sizes_N,
            feature_name=feature_names(popularity=settings.popularity),
        )
        # The valid lists get the same bins as the training lists.
        judged = lightgbm.Dataset(valid.features, valid.labels, group=valid.sizes_N, reference=data)
        return [train_booster(lightgbm, data, judged, settings, seed) for seed in range(settings.seeds)]

    boosters: dict[int, list[Any]] = {}
    scores = np.zeros(len(train.labels))
    # LightGBM releases the interpreter's lock, so folds share the cores where threads within a tree would not.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, (fold, fitted) in enumerate(zip(folds, pool.map(fit, folds), strict=True), 1):
            boosters[fold] = fitted
            is_held_out = np.repeat(train.folds_N == fold, train.sizes_N)
            scores[is_held_out] = _predict(fitted, train.features[is_held_out])
            on_progress(Counted(f"lambdamart: {number} of {len(folds)} folds", number, len(folds)))
    return LambdaMart(boosters, _fit_scale(scores, train), settings, len(train.sizes_N))


class _Lists(NamedTuple):
    """Lists to learn from. features, labels: one row per candidate. sizes_N, folds_N: one value per list."""

    features: NDArray[np.float32]
    labels: NDArray[np.int8]
    sizes_N: NDArray[np.int64]
    folds_N: NDArray[np.int64]

    @classmethod
    def of(cls, lists: TargetLists, *, popularity: bool) -> "_Lists":
        """Take the lists of the store. A label is 1 for the target and 0 for the other candidates."""
        labels = [
            candidate.item.item_id == listed.target_item_id
            for listed in lists.listed
            for candidate in listed.task.candidates
        ]
        return cls(
            features_of([listed.task for listed in lists.listed], popularity=popularity),
            np.array(labels, np.int8),
            np.array([len(listed.task.candidates) for listed in lists.listed], np.int64),
            lists.facts["fold"].fill_null(-1).to_numpy(),
        )

    def where(self, keep_N: NDArray[np.bool_]) -> "_Lists":
        """The lists for which `keep_N` is true."""
        keep = np.repeat(keep_N, self.sizes_N)
        return _Lists(self.features[keep], self.labels[keep], self.sizes_N[keep_N], self.folds_N[keep_N])


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


def train_booster(lightgbm: Any, data: Any, judged: Any, settings: LambdaMartSettings, seed: int = 0) -> Any:
    """Train one LightGBM model.

    data: the lists to learn from. judged: the lists on which it stops early. seed: is added to the seed of the
    settings.
    """
    parameters = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [5],
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": settings.least_candidates_per_leaf,
        "feature_fraction": settings.share_of_features,
        "bagging_fraction": settings.share_of_candidates,
        "bagging_freq": 1,
        "max_bin": settings.bins,
        "seed": settings.seed + seed,
        "deterministic": True,
        "force_row_wise": True,
        # Threads wait for each other at every split of a tree. On busy cores two threads are four times as slow as one.
        "num_threads": 1,
        "verbosity": -1,
    }
    return lightgbm.train(
        parameters,
        data,
        settings.rounds,
        valid_sets=[judged],
        callbacks=[lightgbm.early_stopping(settings.patience, verbose=False)],
    )


def _predict(models: Sequence[Any], features: NDArray[np.float32]) -> NDArray[np.float64]:
    if len(features) == 0:
        return np.zeros(0)
    return np.asarray(np.mean([model.predict(features, num_threads=1) for model in models], axis=0))


def _fit_scale(scores: NDArray[np.float64], lists: _Lists) -> float:
    """The factor that turns scores into log-odds: it maximises the likelihood of the targets.

    LambdaRank only optimises the order, so its scores have no unit.
    """
    # _N: lists. The best score of each list is subtracted against overflow; it cancels out.
    list_of_row = np.repeat(np.arange(len(lists.sizes_N)), lists.sizes_N)
    best_N = np.full(len(lists.sizes_N), -np.inf)
    np.maximum.at(best_N, list_of_row, scores)
    below = scores - best_N[list_of_row]

    def loss(log_scale: float) -> float:
        scaled = np.exp(log_scale) * below
        sums_N = np.bincount(list_of_row, np.exp(scaled))
        return float(np.log(sums_N).sum() - scaled[lists.labels == 1].sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-4.0, 4.0), method="bounded").x))
