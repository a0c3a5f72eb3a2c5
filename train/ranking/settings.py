"""Settings of students that rank, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from store import InputError
from store.settings import check, option
from train.students.settings import CHAT_TEMPLATE_KWARGS

MODES = ("reasoning", "direct", "first-token", "points", "first-after-points", "points-and-first")


@dataclass(frozen=True, slots=True)
class StudentSettings:
    """How a student answers.

    modes: each mode makes a separate ranker. template: None means the one that the student was trained on.
    """

    modes: tuple[str, ...] = option(
        ("reasoning",),
        help="Modes in which students answer, comma-separated: reasoning, direct (an empty explanation), first-token "
        "(no text; candidates are ordered by the logits of their numbers). If their teacher gives points: points (the "
        "points alone, by their expected value), first-after-points, points-and-first (the mean of both).",
        choices=MODES,
        group="Students",
    )
    max_tokens: int = option(256, help="Maximum length of a student's completion, in tokens.", low=1, group="Students")
    decode: str = option(
        "free",
        help="Decoding of students' completions: free, or permutation (after the explanation, only candidates that are "
        "not yet named may follow, so that every completion is valid).",
        choices=("free", "permutation"),
        group="Students",
    )
    template: str | None = option(
        None,
        help="Prompt template for students. Default: the one that a student was trained on.",
        group="Students",
        flag="student_template",
    )
    batch_size: int = option(64, help="Number of lists that a student reads at a time.", low=1, group="Students")
    chat_template_kwargs: Mapping[str, Any] | None = option(None, help=CHAT_TEMPLATE_KWARGS, group="Students")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class SelectionSettings:
    """How a training selects its best student.

    eval_steps: None trains to the end and keeps the last student. eval_mode: None means the cheapest mode that the
    template allows. pre_ranker: None means the one of the snapshot, or the only one.
    """

    eval_steps: int | None = option(
        None,
        help="Number of steps between evaluations on valid lists. The best student by NDCG@5 is kept, and a checkpoint "
        "follows each evaluation. Default: no evaluation, and the last student is kept.",
        low=1,
        group="Selection",
    )
    eval_lists: int = option(
        500,
        help="Number of valid lists to evaluate on, a fixed sample of those that contain their target.",
        low=1,
        group="Selection",
    )
    eval_mode: str | None = option(
        None,
        help="How the student answers valid lists. Default: the cheapest that the template allows, first-token for "
        "numbers and direct for semantic IDs.",
        choices=MODES,
        group="Selection",
    )
    eval_max_tokens: int = option(
        256, help="Maximum length of an answer to a valid list, in tokens.", low=1, group="Selection"
    )
    patience: int | None = option(
        None,
        help="Number of evaluations without a better one after which the training ends. Default: no limit.",
        low=1,
        group="Selection",
    )
    pre_ranker: str | None = option(
        None,
        help="Pre-ranker whose valid lists are ranked, if there are several.",
        group="Selection",
        flag="eval_pre_ranker",
    )

    def __post_init__(self) -> None:
        check(self)
        if self.patience is not None and self.eval_steps is None:
            raise InputError(f"`patience` is {self.patience}, but nothing is evaluated; set `eval_steps` too")


NO_SELECTION = SelectionSettings()


@dataclass(frozen=True, slots=True)
class FullRankingSettings:
    """How a student ranks all items.

    sid_version: None means the newest that is fit for training. limit: the number of targets, a random sample; None for
    all. beams: should exceed the number of items needed, because items of the history are left out afterwards.
    batch_size: the number of users at a time.
    """

    sid_version: str | None = None
    limit: int | None = option(None, low=1)
    beams: int = option(50, help="Number of items that the student proposes to each user.", low=1)
    batch_size: int = option(32, low=1)

    def __post_init__(self) -> None:
        check(self)
