"""Snapshots for mid-training: texts that combine semantic IDs and words.

The tasks are those of OneRec-Think, which the GR2 paper uses: a user's purchases in order, as IDs (next_item); the kind
of shopper who buys these items (persona); the properties of an item (caption); and general text. A row contains one
text and its task. The trainer decides in which shares tasks are drawn.

The texts use train interactions only. For the split valid, they use each user's sequence up to the valid interaction.
Users in held-out folds are left out. Personas are counts of the categories and brands of a history; no model writes
them.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import polars as pl

from curate.datasets.sources import choose_sids
from curate.snapshots.kind import Contents, Counts, Kind, Schema, Selection, SnapshotSettings, SplitRow
from prompts.tasks import ShownItem
from prompts.templates import clean_text
from store import InputError, Session

SCHEMA: Schema = {"row_id": pl.String, "task": pl.String, "text": pl.String}
TASKS = ("next_item", "persona", "caption", "general")
HISTORY = 20
MOST_CHARACTERS = 4_000


def select(session: Session, settings: SnapshotSettings) -> Selection:
    """Sequences, personas and captions of a dataset, and the text files of a folder."""
    sid_version = choose_sids(session, settings.dataset, settings.sid_version)
    items = {
        item_id: ShownItem(item_id, sid, title, tuple(categories), brand)
        for item_id, sid, title, categories, brand in session.rows(
            "catalogue_with_sids", dataset=settings.dataset, sid_version=sid_version
        )
    }
    sequences = session.frame(
        "snapshot_sequences",
        dataset=settings.dataset,
        splits=settings.splits,
        held_out_folds=list(settings.held_out_folds),
    )
    texts = _read_folder(Path(settings.text_dir)) if settings.text_dir else []
    nothing = InputError(f"{settings.dataset!r} has no interactions in splits {', '.join(settings.splits)}")

    def load(limit: int | None) -> Contents:
        return Contents(
            render=lambda: islice(_rows(sequences, items, texts, settings.splits), limit),
            sid_versions=(sid_version,),
            lineage={"general_texts": len(texts)},
        )

    return Selection(
        Counts(
            groups=_count(sequences, len(items), len(texts), settings.splits), users=sequences["user_id"].n_unique()
        ),
        targets=sequences.select("user_id", position="last_position").drop_nulls(),
        refusal=None if sequences.height else nothing,
        load=load,
    )


def _count(sequences: pl.DataFrame, items: int, texts: int, splits: Collection[str]) -> pl.DataFrame:
    """The number of rows by split and task, without making them. items, texts: the numbers of captions and texts."""
    users = dict(sequences.group_by("split").len().rows())
    numbers = {(split, "next_item"): count for split, count in users.items()}
    if "train" in splits:
        numbers |= {
            ("train", "persona"): users.get("train", 0),
            ("train", "caption"): items,
            ("train", "general"): texts,
        }
    rows = sorted((*names, number) for names, number in numbers.items() if number)
    return pl.DataFrame(rows, schema={"split": pl.String, "task": pl.String, "rows": pl.Int64}, orient="row")


def _rows(
    sequences: pl.DataFrame,
    items: Mapping[str, ShownItem],
    texts: Iterable[tuple[str, str]],
    splits: Collection[str],
) -> Iterator[SplitRow]:
    """The rows, rendered one at a time."""

    def row(split: str, task: str, name: str, text: str) -> SplitRow:
        return split, {"row_id": f"{task}/{name}", "task": task, "text": text}

    for user_id, split, item_ids in sequences.select("user_id", "split", "item_ids").iter_rows():
        shown = [items[item] for item in item_ids]
        yield row(split, "next_item", user_id, sequence_text(shown))
        if split == "train":
            yield row(split, "persona", user_id, persona_text(shown))
    if "train" in splits:
        for item in items.values():
            yield row("train", "caption", item.item_id, caption_text(item))
        for name, text in texts:
            yield row("train", "general", name, text)


def sequence_text(items: Sequence[ShownItem]) -> str:
    """A text of the last HISTORY purchases, oldest first."""
    return "A shopper bought, one after the other: " + "".join(item.sid for item in items[-HISTORY:])


def persona_text(items: Sequence[ShownItem]) -> str:
    """A text of the last HISTORY purchases and of the most frequent categories and brands of all purchases."""
    kinds = Counter(" > ".join(item.categories[1:3] or item.categories) for item in items if item.categories)
    brands = Counter(item.brand for item in items if item.brand)
    likes = ", ".join(f"{clean_text(kind)} ({count})" for kind, count in kinds.most_common(3))
    loyal = ", ".join(clean_text(brand) for brand, count in brands.most_common(3) if count > 1)
    bought = "".join(item.sid for item in items[-HISTORY:])
    return f"A shopper of {bought} likes {likes or 'many things'}" + (f" and comes back to {loyal}." if loyal else ".")


def caption_text(item: ShownItem) -> str:
    """A text that describes an item."""
    parts = [clean_text(item.title), clean_text(item.brand), clean_text(" > ".join(item.categories))]
    return f"{item.sid} is {' | '.join(part for part in parts if part) or 'an item of which nothing is known'}."


def _read_folder(folder: Path) -> list[tuple[str, str]]:
    """Paragraphs of the .txt and .md files of a folder, each with a name.

    Raises InputError if there are none, or if a file cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"`text_dir` is {folder}, which is not a folder")
    texts = []
    for file in sorted([*folder.rglob("*.txt"), *folder.rglob("*.md")]):
        try:
            paragraphs = file.read_text("utf-8").split("\n\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
        for number, paragraph in enumerate(paragraphs):
            if text := clean_text(paragraph, MOST_CHARACTERS):
                texts.append((f"{file.relative_to(folder)}/{number}", text))
    if not texts:
        raise InputError(f"`text_dir` is {folder}, which contains no text in .txt or .md files")
    return texts


MIDTRAIN = Kind(
    "row_id",
    SCHEMA,
    "Texts for mid-training: purchases in sequence, personas, captions, general text.",
    select,
    filters=("dataset", "split"),
    rulesets=False,
)
