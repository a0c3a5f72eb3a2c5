"""The modes in which students answer, each a ranker over the same loaded student."""

from collections.abc import Callable, Sequence

from curate.evaluation.rankers.protocol import Ranker
from store import Store
from train.ranking.points import PointsRanker
from train.ranking.rerankers import DEFAULTS, FirstTokenRanker, GeneratingRanker, open_student
from train.ranking.settings import StudentSettings


def student_rankers(
    store: Store,
    reference: str,
    modes: Sequence[str],
    *,
    template: str | None = DEFAULTS.template,
    max_tokens: int = DEFAULTS.max_tokens,
    decode: str = DEFAULTS.decode,
    batch_size: int = DEFAULTS.batch_size,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Ranker]:
    """One ranker per mode, all over the same loaded student.

    modes, decode: as in `train.ranking.settings.StudentSettings`. Raises InputError on an unknown one, and under the
    same conditions as `open_student`.
    """
    StudentSettings(tuple(modes), max_tokens, decode, template, batch_size)
    permutation = decode == "permutation"
    student = open_student(store, reference, template, batch_size=batch_size)
    rankers: dict[str, Callable[[], Ranker]] = {
        "reasoning": lambda: GeneratingRanker(student, True, max_tokens, on_progress, permutation),
        "direct": lambda: GeneratingRanker(student, False, max_tokens, on_progress, permutation),
        "first-token": lambda: FirstTokenRanker(student),
        "points": lambda: PointsRanker(student, "points", on_progress),
        "first-after-points": lambda: PointsRanker(student, "first", on_progress),
        "points-and-first": lambda: PointsRanker(student, "both", on_progress),
    }
    return [rankers[mode]() for mode in modes]
