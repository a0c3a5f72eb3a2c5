"""Records that are passed between the store and the packages above it.

They mirror rows of the schema (docs/reference/data-model.md) and know nothing of prompts, models or screens.
"""

from dataclasses import dataclass, field

# The number of folds that users fall into, by the hash of their names (the macro `user_fold`).
FOLDS = 5


@dataclass(frozen=True, slots=True)
class Item:
    """One catalogue item.

    title, brand, description: None if the source has none. categories: a path from general to specific, empty if
    unknown.
    """

    item_id: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None
    description: str | None = None

    @property
    def text(self) -> str:
        """Title, brand, category path and description in one line, without the missing ones."""
        parts = (self.title, self.brand, " > ".join(self.categories), self.description)
        return " | ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class Link:
    """Co-purchases, within the window, of a candidate and one item of the history.

    after: how often the candidate came after the item of the history. before: how often it came before.
    """

    item_id: str
    after: int
    before: int


@dataclass(frozen=True, slots=True)
class Similarity:
    """Cosines of a candidate with the items of the history: with the newest, their mean and the highest of them."""

    last: float
    mean: float
    highest: float


@dataclass(frozen=True, slots=True)
class Evidence:
    """The facts that link one candidate to one history, counted over train interactions. Cross-fitted for train lists.

    score: the pre-ranker's score of the candidate.
    last_weight: normalised co-occurrence weight of the pair (last item of the history -> candidate), >= 0.
    links: one entry for each item of the history that was ever bought near the candidate.
    shared_category: the longest category path that the candidate shares with an item of the history.
    shared_category_items: the number of items of the history under that path.
    same_brand_items: the number of items of the history with the candidate's brand.
    popularity: from 0 (not in the train interactions) to 5 (the best-selling fifth of the catalogue).
    text: how similar the texts of the items are. None if it was not computed.
    copurchase: how similar the company is in which the items are bought. None if it was not computed.
    """

    score: float
    last_weight: float = 0.0
    links: tuple[Link, ...] = ()
    shared_category: tuple[str, ...] = ()
    shared_category_items: int = 0
    same_brand_items: int = 0
    popularity: int = 0
    text: Similarity | None = None
    copurchase: Similarity | None = None


@dataclass(frozen=True, slots=True)
class CandidateList:
    """Ten items that the pre-ranker proposes after a user's history, best first.

    history: item ids, oldest first. target_item_id: the item of the user's next interaction.
    target_rank: 1 is the best; None if the target is not among the candidates.
    evidence: parallel to `item_ids`; empty if it was not computed.
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
