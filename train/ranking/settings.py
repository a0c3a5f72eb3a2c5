"""Settings of students that rank, apart from torch."""

from dataclasses import dataclass

from store.settings import check, option


@dataclass(frozen=True, slots=True)
class StudentSettings:
    """How a student answers. modes: each makes a ranker of its own. template: None means the one it was trained on."""

    modes: tuple[str, ...] = option(
        ("reasoning",),
        help="Modes in which students answer, comma-separated: reasoning, direct (an empty explanation), first-token "
        "(no text; candidates are ordered by the logits of their numbers). If their teacher gives points: points (the "
        "points alone, by their expected value), first-after-points, points-and-first (the mean of both).",
        choices=("reasoning", "direct", "first-token", "points", "first-after-points", "points-and-first"),
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

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True)
class FullRankingSettings:
    """sid_version: None means the newest that is fit for training. limit: of targets, a random sample; None for all.

    beams: more than are wanted, since items of the history are left out afterwards. batch_size: users at a time.
    """

    sid_version: str | None = None
    limit: int | None = option(None, low=1)
    beams: int = option(50, help="Number of items that the student proposes to each user.", low=1)
    batch_size: int = option(32, low=1)

    def __post_init__(self) -> None:
        check(self)
