"""Settings of an evaluation."""

from dataclasses import dataclass

from store import InputError
from store.settings import check, option


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """The lists on which rankers are evaluated.

    split: the split whose lists are used. pre_ranker: None means the only one. sid_version: None means the newest.
    limit: the number of lists that contain their target, None for all. shuffles: how often each list is shown with its
    candidates shuffled; 0 skips this. seed: the seed of shuffles and resamples.
    """

    split: str = option("test", help="Split whose lists are ranked.", choices=("train", "valid", "test"), group="Lists")
    pre_ranker: str | None = option(
        None, help="Pre-ranker whose candidate lists are ranked, if there are several.", group="Lists"
    )
    sid_version: str | None = option(
        None,
        help="Version of the semantic IDs. Default: the one that the students learned, or the newest.",
        group="Lists",
    )
    limit: int | None = option(
        None, help="Maximum number of candidate lists, drawn at random. Default: all.", low=1, group="Lists"
    )
    shuffles: int = option(
        5,
        help="Number of times that each list is shown with its candidates shuffled, to measure position bias; 0 to "
        "skip this.",
        low=0,
        group="Lists",
    )
    seed: int = option(0, help="Seed of the sample, the shuffles and the intervals.", low=0, group="Lists")

    def __post_init__(self) -> None:
        check(self)
        if self.shuffles == 1:
            raise InputError("`shuffles` is 1; it must be 0, or 2 or more to compare")
