"""Real catalogues in the form that quantizers and next-item models read: vectors, pairs, and sequences of item rows."""

import sys
from pathlib import Path

import numpy as np
from measure import DATA

from curate.datasets.ingest import ingest
from curate.sids.assignment import load_pairs
from curate.sids.embedding.embedders import TfidfSvdEmbedder
from curate.sids.versions import load_items
from store import Store


def prepare(name: str, folder: Path) -> Path:
    """Write the items' text vectors, the pairs and the users' sequences of item rows into one file."""
    if not (DATA / name).is_dir():
        sys.exit(f"no real data in {DATA / name}; set GR2_DATA to the folder that holds it")
    store = Store.open(folder / "store", create=True)
    ingest(store, name, DATA / name / "items.jsonl", DATA / name / "interactions.csv.gz")
    with store.reading() as session:
        items = load_items(session, name)
        pairs_P_2 = load_pairs(session, name, items)
        rows = session.connection.execute(
            "select list(item_id order by position) from interactions where dataset = $1 group by user_id "
            "order by user_id",
            [name],
        ).fetchall()
    row_of = {item.item_id: row for row, item in enumerate(items)}
    texts = [item.text for item in items]
    embedder = TfidfSvdEmbedder.fit(store.embeddings, texts)
    sequences = [[row_of[item] for item in sequence] for (sequence,) in rows]
    file = folder / f"{name}.npz"
    np.savez(
        file,
        texts=embedder.embed(texts),
        pairs=pairs_P_2,
        items=np.concatenate(sequences),
        ends=np.cumsum([len(sequence) for sequence in sequences]),
    )
    return file


def load_sequences(data: np.lib.npyio.NpzFile) -> list[np.ndarray]:
    """Load the item rows of each user, oldest first."""
    return np.split(data["items"], data["ends"][:-1])
