"""Makes teachers by name, ready for a run."""

from collections.abc import Callable, Mapping
from typing import Any

from curate.traces.teachers.protocol import Teacher
from store import Store
from store.registry import Factories

TEACHERS: Factories[Teacher] = Factories(
    "teacher",
    "gr2.teachers",
    {
        "evidence": "curate.traces.teachers.evidence:EvidenceTeacher",
        "scorecard": "curate.traces.teachers.fitted.scorecard:make_scorecard_teacher",
        "lambdamart": "curate.traces.teachers.fitted.lambdamart:make_lambdamart_teacher",
        "openai": "curate.traces.teachers.openai_compatible:make_openai_teacher",
    },
    Teacher,
)


def make_teacher(
    name: str,
    options: Mapping[str, Any],
    *,
    store: Store,
    dataset: str,
    sid_version: str | None = None,
    pre_ranker: str | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Teacher:
    """Make the teacher of a name, or at `module:object`. Its factory may ask for any of these arguments by name.

    options: arguments that only some teachers take, such as `model`; None means not set. Raises InputError if there is
    no such teacher, if it does not take an option that is set, or if it needs an option that is not set.
    """
    context = {
        "store": store,
        "dataset": dataset,
        "sid_version": sid_version,
        "pre_ranker": pre_ranker,
        "on_progress": on_progress,
    }
    return TEACHERS.make(name, context, options)
