"""What rankers are evaluated on."""

from dataclasses import dataclass

from store import InputError


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """What rankers are evaluated on.

    split: whose lists. pre_ranker and sid_version: None means the only one, and the newest. limit: how many lists that
    hold their target, None for all. shuffles: how often each list is shown with its candidates shuffled, 0 for not at
    all. seed: of shuffles and resamples.
    """

    split: str = "test"
    pre_ranker: str | None = None
    sid_version: str | None = None
    limit: int | None = None
    shuffles: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in ("train", "valid", "test"):
            raise InputError(f"--split is {self.split!r}; it must be train, valid or test")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}; it must be 1 or more")
        if self.shuffles < 0 or self.shuffles == 1:
            raise InputError(f"--shuffles is {self.shuffles}; it must be 0, or 2 or more to compare")
