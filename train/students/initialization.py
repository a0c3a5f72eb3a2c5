"""Makes new students for a snapshot. The vocabulary is learned from its texts, plus tokens for its semantic IDs."""

from collections.abc import Iterator

import datasets

from store import Store
from train.runs import open_snapshot, sid_sizes, student_folder
from train.snapshots import load_snapshot
from train.students.student import DEFAULTS, StudentSummary, init_student

# The number of rows per split. More rows do not change the learned vocabulary.
MOST_ROWS = 5_000


def init_from_snapshot(
    store: Store, reference: str, name: str, size: str, *, rope_theta: float = DEFAULTS.rope_theta, seed: int = 0
) -> StudentSummary:
    """Create an untrained student called `name` for a snapshot of any kind.

    Raises InputError on an unknown snapshot or size, or if a student of that name exists.
    """
    snapshot = open_snapshot(store, reference)
    rows = load_snapshot(snapshot.path, kind=snapshot.manifest["kind"])
    folder = student_folder(store, name)
    folder.parent.mkdir(exist_ok=True)
    texts = (text for split in rows.values() for text in _texts(split))
    return init_student(texts, *sid_sizes(snapshot), size, folder, rope_theta=rope_theta, seed=seed)


def _texts(rows: datasets.Dataset) -> Iterator[str]:
    for row in rows.select(range(min(MOST_ROWS, len(rows)))):
        if "text" in row:
            yield row["text"]
        else:
            # Rows for sft have prompt and completion, while rows for dapo have only a prompt.
            for message in (*row["prompt"], *row.get("completion", ())):
                yield message["content"]
