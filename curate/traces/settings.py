"""Settings of sampling runs, without the libraries that a run needs."""

from dataclasses import dataclass

from store.errors import InputError
from store.settings import check, option


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """What one run samples.

    split: the split whose lists are used. template, strategy: None means the default that belongs to the other one.
    max_attempts samples are drawn for each prompt until `num_accepted` of them pass `ruleset`. limit: the maximum
    number of lists, None for all. retry_refused: whether prompts that were refused for good are sent again.
    sid_version: None means the newest. pre_ranker: None means the only one.
    """

    dataset: str
    split: str = option("train", help="Split whose lists are used.", choices=("train", "valid", "test"), group="Lists")
    lists: str = option(
        "with-target",
        help="Lists to sample traces of: those that contain their target, those that do not, or all. Without its "
        "target no answer can be checked, but a teacher's points are worth learning.",
        choices=("with-target", "without-target", "all"),
        group="Lists",
    )
    strategy: str | None = option(
        None,
        help="rejection: the teacher does not see the target, and answers that miss it are rejected. targeted: the "
        "teacher sees the target. Default: that of the template.",
        choices=("rejection", "targeted"),
        group="Prompt",
    )
    template: str | None = option(
        None,
        help="Prompt template, or a file NAME.vN.jinja. Default: rerank_evidence.v1, or rerank_targeted.v1 for "
        "strategy targeted.",
        group="Prompt",
    )
    knowledge_priming: bool = option(
        True, help="Tell the teacher which kinds of items people buy one after the other.", group="Prompt"
    )
    ruleset: str = option(
        "paper", help="Ruleset that decides which traces are accepted: paper, strict, answered.", group="Sampling"
    )
    max_attempts: int = option(4, help="Maximum number of samples per prompt.", low=1, group="Sampling")
    num_accepted: int = option(
        1, help="Number of accepted samples after which a prompt is not sampled again.", low=1, group="Sampling"
    )
    temperature: float = option(
        1.0, help="Sampling temperature; 0 is deterministic.", low=0.0, high=2.0, group="Sampling"
    )
    max_tokens: int = option(1024, help="Maximum length of a completion, in tokens.", low=1, group="Sampling")
    limit: int | None = option(None, help="Maximum number of candidate lists.", low=1, group="Lists")
    retry_refused: bool = option(
        False,
        help="Ask again for prompts that were refused for good, by a moderation filter or as too long.",
        group="Sampling",
    )
    sid_version: str | None = option(
        None, help="Version of the semantic IDs. Default: the newest that is fit for training.", group="Lists"
    )
    pre_ranker: str | None = option(
        None, help="Pre-ranker whose candidate lists are used, if there are several.", group="Lists"
    )

    def __post_init__(self) -> None:
        check(self)
        if self.num_accepted > self.max_attempts:
            raise InputError(
                f"`num_accepted` is {self.num_accepted}; it must not be more than `max_attempts`, {self.max_attempts}"
            )


@dataclass(frozen=True, slots=True)
class RequestSettings:
    """How requests are sent. These settings do not change what is asked."""

    concurrency: int = option(64, help="Maximum number of concurrent requests.", low=1, group="Endpoint")

    def __post_init__(self) -> None:
        check(self)


REQUESTS = RequestSettings()
