"""Rankers by name, each made ready for an evaluation."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from curate.datasets.catalogue import find_dataset
from curate.datasets.simulation import SOURCE as SIMULATED
from curate.datasets.sources import choose_sources
from curate.evaluation.rankers.lambdamart import train_lambdamart
from curate.evaluation.rankers.offline import EvidenceRanker, ScorecardRanker
from curate.evaluation.rankers.oracle import load_oracle
from curate.evaluation.rankers.protocol import Ranker
from curate.evaluation.settings import EvalSettings
from curate.traces.teachers.scorecard import fit_scorecard
from store import InputError, Store

NAMES = ("pre-ranker", "evidence", "scorecard", "lambdamart", "endpoint", "oracle")


class Selection(NamedTuple):
    """Rankers beside the pre-ranker, which every evaluation has anyway, and why default ones are missing."""

    rankers: list[Ranker]
    left_out: list[str]


def select_rankers(
    store: Store,
    dataset: str,
    names: Sequence[str] | None,
    settings: EvalSettings,
    endpoint: Ranker | None = None,
    *,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Selection:
    """The rankers of these names for an evaluation with these settings; LambdaMART is trained first.

    None means the endpoint, where there is one, and what can be had of evidence, scorecard, lambdamart and, on
    simulated data, the oracle.

    Raises InputError on a name that is not in NAMES, and where what is named cannot be had.
    """
    for name in names or ():
        if name not in NAMES:
            raise InputError(f"no ranker is called {name!r}; there are: {', '.join(NAMES)}")
    if endpoint is not None and names is not None and "endpoint" not in names:
        raise InputError("a model is given, but endpoint is not among the rankers; add it to `rankers`")
    with store.reading() as session:
        simulated = find_dataset(session, dataset)["source"] == SIMULATED
        sid_version, pre_ranker = choose_sources(session, dataset, settings.sid_version, settings.pre_ranker)

    def make(name: str) -> Ranker:
        if name == "evidence":
            return EvidenceRanker()
        if name == "scorecard":
            if settings.split == "train":
                raise InputError("a scorecard is fitted to train lists, so only `split` valid or test can judge it")
            return ScorecardRanker(fit_scorecard(store, dataset, sid_version, pre_ranker))
        if name == "lambdamart":
            if settings.split != "test":
                raise InputError("lambdamart learns from train and valid lists, so only `split` test can judge it")
            return train_lambdamart(store, dataset, sid_version, pre_ranker, on_progress=on_progress)
        if name == "oracle":
            return load_oracle(store, dataset, pre_ranker, settings.split)
        if endpoint is None:
            raise InputError("the ranker endpoint needs `model`, the name under which the endpoint serves it")
        return endpoint

    if names is not None:
        return Selection([make(name) for name in names if name != "pre-ranker"], [])
    selection = Selection([], [])
    for name in ("evidence", "scorecard", "lambdamart", *(["oracle"] if simulated else [])):
        try:
            selection.rankers.append(make(name))
        except InputError as error:
            selection.left_out.append(f"{name} is left out: {error}")
    if endpoint is not None:
        selection.rankers.append(endpoint)
    return selection
