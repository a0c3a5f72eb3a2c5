"""Settings of students from scratch, apart from torch."""

from dataclasses import dataclass

from store.settings import check, option


@dataclass(frozen=True, slots=True)
class InitSettings:
    """size: one of train.students.student.SIZES. rope_theta: as in Qwen3Config. seed: of the first weights."""

    size: str = option("tiny", help="Size of the student.", choices=("tiny", "small", "base"))
    rope_theta: float = option(
        10_000.0,
        help="Base of the rotary position embedding. With a small one, such as 100, a student learns to look at nearby "
        "tokens sooner, which matters if it trains for a few hundred steps only.",
        low=1.0,
    )
    seed: int = option(0, help="Seed; the same seed gives the same student.", low=0)

    def __post_init__(self) -> None:
        check(self)
