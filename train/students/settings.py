"""Settings of students from scratch, apart from torch."""

from dataclasses import dataclass

from store.settings import check, option


@dataclass(frozen=True, slots=True)
class InitSettings:
    """size: one of train.students.student.SIZES. seed: of the first weights."""

    size: str = option("tiny", help="Size of the student.", choices=("tiny", "small", "base"))
    seed: int = option(0, help="Seed; the same seed gives the same student.", low=0)

    def __post_init__(self) -> None:
        check(self)
