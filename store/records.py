"""Records that travel between the store and the packages above it.

They mirror rows of the schema (docs/reference/data-model.md) and know nothing of prompts, models or screens.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Item:
    """One catalogue item. `title` is what people read; None where the source has none.

    `categories` is a path from general to specific, empty where unknown.
    """

    item_id: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None
    description: str | None = None

    @property
    def text(self) -> str:
        """Title, brand, category path and description in one line, the empty ones left out."""
        parts = (self.title, self.brand, " > ".join(self.categories), self.description)
        return " | ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Link:
    """Co-purchases, within the window, of a candidate and one item of the history.

    `after` counts how often the candidate came after the history's item, `before` how often it came before it.
    """

    item_id: str
    after: int
    before: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What links one candidate to one history, counted over training interactions, cross-fitted for training lists.

    score: the pre-ranker's score of the candidate.
    last_weight: normalised co-occurrence weight of the pair (last item of the history -> candidate), >= 0.
    links: one entry for each item of the history that was ever bought near the candidate.
    shared_category: the longest category path that the candidate shares with an item of the history.
    shared_category_items: how many items of the history lie under that path.
    same_brand_items: how many items of the history have the candidate's brand.
    popularity: 0 (never seen in training) to 5 (the fifth of the catalogue that sells most).
    """

    score: float
    last_weight: float = 0.0
    links: tuple[Link, ...] = ()
    shared_category: tuple[str, ...] = ()
    shared_category_items: int = 0
    same_brand_items: int = 0
    popularity: int = 0


@dataclass(frozen=True, slots=True)
class CandidateList:
    """Ten items that the pre-ranker proposes after a user's history, best first.

    history: item ids, oldest first. target_item_id: what the user took next.
    target_rank: 1 = best; None where the target is not among the candidates.
    evidence: parallel to `item_ids`; empty where it was not computed.
    """

    list_id: str
    dataset: str
    split: str
    user_id: str
    history: tuple[str, ...]
    target_item_id: str
    item_ids: tuple[str, ...]
    scores: tuple[float, ...]
    target_rank: int | None
    evidence: tuple[Evidence, ...] = field(default=())
