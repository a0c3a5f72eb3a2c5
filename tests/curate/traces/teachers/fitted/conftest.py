"""Trees that are fitted once."""

import pytest

from curate.candidates.making import PRE_RANKER
from curate.datasets.sources import choose_sources
from curate.traces.teachers.fitted.boosting import LambdaMart, LambdaMartSettings, fit_lambdamart, import_lightgbm
from store import InputError, Store

FEW = LambdaMartSettings(rounds=30)


def fit(store: Store, dataset: str = "shop", settings: LambdaMartSettings = FEW) -> LambdaMart:
    """LambdaMART of few trees, on a store's dataset."""
    try:
        import_lightgbm()
    except InputError as error:
        pytest.skip(str(error))
    with store.reading() as session:
        sid_version, _ = choose_sources(session, "shop", None, None)
    return fit_lambdamart(store, dataset, sid_version, PRE_RANKER, settings)
