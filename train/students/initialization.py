"""Students from scratch for a snapshot: pieces of text from its own texts, tokens for its semantic IDs."""

from collections.abc import Iterator

import datasets

from store import Store
from train.runs import open_snapshot, sid_sizes, student_folder
from train.snapshots import load_snapshot
from train.students.student import StudentSummary, init_student

# More teach a tokenizer nothing new.
MOST_ROWS = 5_000


def init_from_snapshot(store: Store, reference: str, name: str, size: str, *, seed: int = 0) -> StudentSummary:
    """Make a student called `name` for a snapshot of any kind.

    Raises InputError on an unknown snapshot or size, and where there is a student of that name.
    """
    snapshot = open_snapshot(store, reference)
    rows = load_snapshot(snapshot.path, kind=snapshot.manifest["kind"])
    folder = student_folder(store, name)
    folder.parent.mkdir(exist_ok=True)
    texts = (text for split in rows.values() for text in _texts(split))
    return init_student(texts, *sid_sizes(snapshot), size, folder, seed=seed)


def _texts(rows: datasets.Dataset) -> Iterator[str]:
    for row in rows.select(range(min(MOST_ROWS, len(rows)))):
        if "text" in row:
            yield row["text"]
        else:
            for message in (*row["prompt"], *row.get("completion", ())):
                yield message["content"]
