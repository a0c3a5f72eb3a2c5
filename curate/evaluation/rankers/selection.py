"""Makes rankers by name, ready for an evaluation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from curate.datasets.catalogue import find_dataset
from curate.datasets.simulation import SOURCE as SIMULATED
from curate.datasets.sources import choose_sources
from curate.evaluation.rankers.protocol import Ranker
from curate.evaluation.settings import EvalSettings
from curate.traces.settings import REQUESTS
from store import InputError, Store
from store.registry import Factories

RANKERS: Factories[Ranker] = Factories(
    "ranker",
    "gr2.rankers",
    {
        "evidence": "curate.evaluation.rankers.offline:EvidenceRanker",
        "scorecard": "curate.evaluation.rankers.offline:fit_scorecard_ranker",
        "lambdamart": "curate.evaluation.rankers.lambdamart:train_lambdamart_ranker",
        "endpoint": "curate.evaluation.rankers.teacher_ranker:make_endpoint_ranker",
        "oracle": "curate.evaluation.rankers.oracle:load_oracle",
    },
    Ranker,
)
# The pre-ranker takes part in every evaluation, whether it is named or not.
PRE_RANKER = "pre-ranker"


class Selection(NamedTuple):
    """Rankers beside the pre-ranker, which takes part in every evaluation.

    left_out: the reasons why default rankers are missing.
    """

    rankers: list[Ranker]
    left_out: list[str]


def select_rankers(
    store: Store,
    dataset: str,
    names: Sequence[str] | None,
    settings: EvalSettings,
    options: Mapping[str, Any] | None = None,
    *,
    template: str = "rerank_evidence.v1",
    concurrency: int = REQUESTS.concurrency,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Selection:
    """Make the rankers of these names, or at `module:object`, for an evaluation with these settings.

    Some are trained first.

    names: None means evidence, scorecard, lambdamart and, on simulated data, the oracle, as far as they are available,
    and the endpoint if options are set. options: model and base_url, for the rankers that take them; None means not
    set. template and concurrency: for rankers that call a model. A factory may ask for any of these arguments by name,
    and for sid_version, pre_ranker, split and seed.

    Raises InputError on a name without a ranker, if a named ranker is not available, and if no ranker takes an option
    that is set.
    """
    with store.reading() as session:
        simulated = find_dataset(session, dataset)["source"] == SIMULATED
        sid_version, pre_ranker = choose_sources(session, dataset, settings.sid_version, settings.pre_ranker)
    given = {option: value for option, value in (options or {}).items() if value is not None}
    context = {
        "store": store,
        "dataset": dataset,
        "sid_version": sid_version,
        "pre_ranker": pre_ranker,
        "split": settings.split,
        "seed": settings.seed,
        "template": template,
        "concurrency": concurrency,
        "on_progress": on_progress,
    }

    def make(name: str) -> Ranker:
        arguments = RANKERS.arguments(name)
        return RANKERS.make(name, context, {option: given[option] for option in given.keys() & arguments})

    if names is not None:
        names = [name for name in names if name != PRE_RANKER]
        _check_taken(names, given)
        return Selection([make(name) for name in names], [])
    # The endpoint comes first, so that an error in its options is reported before minutes of training the others.
    endpoint_rankers = [make("endpoint")] if given else []
    selection = Selection([], [])
    for name in ("evidence", "scorecard", "lambdamart", *(["oracle"] if simulated else [])):
        try:
            selection.rankers.append(make(name))
        except InputError as error:
            selection.left_out.append(f"{name} is left out: {error}")
    selection.rankers.extend(endpoint_rankers)
    return selection


def _check_taken(names: Sequence[str], given: Mapping[str, Any]) -> None:
    arguments = {argument for name in names for argument in RANKERS.arguments(name)}
    if unused := sorted(given.keys() - arguments):
        raise InputError(
            f"`{unused[0]}` is given, but none of the rankers {', '.join(names)} takes it; add endpoint to `rankers`"
        )
