"""The modes in which students answer. Each mode is a ranker over the same loaded student."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from curate.evaluation.rankers.protocol import Ranker
from store import Store
from train.ranking.points import PointsRanker
from train.ranking.rerankers import DEFAULTS, FirstTokenRanker, GeneratingRanker, Student, open_student
from train.ranking.settings import StudentSettings

# What a ranker of points reads, by mode.
READS = {"points": "points", "first-after-points": "first", "points-and-first": "both"}


def student_rankers(
    store: Store,
    reference: str,
    modes: Sequence[str],
    *,
    template: str | None = DEFAULTS.template,
    max_tokens: int = DEFAULTS.max_tokens,
    decode: str = DEFAULTS.decode,
    batch_size: int = DEFAULTS.batch_size,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> list[Ranker]:
    """Make one ranker per mode, all over the same loaded student.

    modes, decode: as in `train.ranking.settings.StudentSettings`. Raises InputError on an unknown mode, and under the
    same conditions as `open_student`.
    """
    StudentSettings(tuple(modes), max_tokens, decode, template, batch_size)
    student = open_student(store, reference, template, batch_size=batch_size, chat_template_kwargs=chat_template_kwargs)
    return [make_ranker(student, mode, max_tokens=max_tokens, decode=decode, on_progress=on_progress) for mode in modes]


def make_ranker(
    student: Student,
    mode: str,
    *,
    max_tokens: int = DEFAULTS.max_tokens,
    decode: str = DEFAULTS.decode,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Ranker:
    """Wrap a student as a ranker. mode: one of `train.ranking.settings.MODES`.

    Raises InputError if the student cannot answer in this mode.
    """
    if mode == "first-token":
        return FirstTokenRanker(student)
    if mode in READS:
        return PointsRanker(student, READS[mode], on_progress)
    return GeneratingRanker(student, mode == "reasoning", max_tokens, on_progress, decode == "permutation")
