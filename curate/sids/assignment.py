"""Assigns semantic IDs to a dataset's items: texts -> vectors -> codes -> unique IDs -> a version in the store."""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from curate.datasets.catalogue import find_dataset
from curate.sids.embedding.copurchases import Copurchases
from curate.sids.embedding.embeddings import embed_texts
from curate.sids.measures import Measure, measure_ids
from curate.sids.methods import OpenEmbedder, open_embedder
from curate.sids.quantizers import OnProgress, Quantizer, ResidualKMeans
from curate.sids.settings import EmbedderSettings, PurchaseSettings
from curate.sids.unique_codes import complete_codes
from curate.sids.versions import SidSummary, load_items, load_summary, name_version, put_version
from store import Session, Store
from store.records import Item

FROM_FILE = "file"
"""The kind of embedder of versions whose vectors were read from a file."""


def assign_semantic_ids(
    store: Store,
    dataset: str,
    quantizer: Quantizer | None = None,
    embedder: EmbedderSettings | None = None,
    *,
    purchases: PurchaseSettings | None = None,
    vectors: tuple[str, NDArray[np.float32]] | None = None,
    open_embedder: OpenEmbedder = open_embedder,
    accept_shared: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> SidSummary:
    """Assign an ID to each item of `dataset` and store them as a version.

    A second call with the same settings changes nothing.

    quantizer: None means residual k-means. embedder, purchases: None means the defaults of their classes. vectors: a
    name, and vectors (N, D) of the items in the order of their IDs. They replace the embedder's vectors and are scaled
    to length 1. accept_shared: mark the version as fit for training even if fewer than 99% of its IDs are distinct.

    Raises InputError on an unknown dataset, if its items cannot be embedded, or if there are more items than IDs.
    """
    quantizer, embedder = quantizer or ResidualKMeans(), embedder or EmbedderSettings()
    purchases = purchases or PurchaseSettings()
    started = time.perf_counter()
    with store.reading() as session:
        find_dataset(session, dataset)
        items = load_items(session, dataset)
    if vectors is None:
        opened = open_embedder(embedder, store.embeddings, [item.text for item in items], None)
        source = asdict(embedder) | {"name": opened.name}
    else:
        source = {"kind": FROM_FILE, "name": vectors[0]}
    settings = {
        "method": quantizer.method,
        **quantizer.settings(),
        **purchases.to_settings(),
        "embedder": source,
    }
    version = name_version(dataset, settings)
    with store.reading() as session:
        summary = load_summary(session, version, started)
        pairs_P_2 = load_pairs(session, dataset, items, purchases.held_out_folds)
    if summary is not None:
        return accept_version(store, summary) if accept_shared else summary
    if vectors is None:
        texts_N_T = embed_texts(store.embeddings, opened, [item.text for item in items], on_progress)
    else:
        lengths_N = np.linalg.norm(vectors[1], axis=1, keepdims=True)
        texts_N_T = np.divide(vectors[1], lengths_N, out=np.zeros_like(vectors[1]), where=lengths_N > 0)
    copurchases, vectors_N_D = Copurchases.fit(texts_N_T, pairs_P_2, purchases.copurchase_weight, seed=quantizer.seed)
    fitted, codes_N_F = quantizer.fit(vectors_N_D, pairs_P_2, on_progress)
    ids_N_L, moved = complete_codes(
        codes_N_F,
        fitted.encode(vectors_N_D),
        fitted.codebooks,
        codebook_size=quantizer.codebook_size,
        random_levels=quantizer.random_levels,
        seed=quantizer.seed,
    )
    measures = measure_ids(ids_N_L, quantizer.codebook_size, vectors_N_D, fitted, items, seed=quantizer.seed)
    measures.append(Measure("moved", None, moved))

    def save_model(folder: Path) -> None:
        fitted.save(folder)
        copurchases.save(folder)

    return put_version(
        store,
        version,
        settings,
        items,
        ids_N_L,
        measures=measures,
        save_model=save_model,
        accept_shared=accept_shared,
        started=started,
    )


def load_pairs(
    session: Session, dataset: str, items: Sequence[Item], held_out_folds: Sequence[int] = ()
) -> NDArray[np.int64]:
    """Return pairs (P, 2) of row numbers of items that a user interacted with consecutively.

    Only train interactions count. held_out_folds: folds whose users are left out.
    """
    rows = {item.item_id: row for row, item in enumerate(items)}
    item_pairs = session.rows("co_interacted_pairs", dataset=dataset, held_out_folds=list(held_out_folds))
    pairs = [(rows[left], rows[right]) for left, right in item_pairs]
    # Without pairs, the shape must still be (0, 2).
    return np.array(pairs, np.int64).reshape(-1, 2)


def accept_version(store: Store, summary: SidSummary) -> SidSummary:
    """Mark a stored version as fit for training, because its user accepts shared IDs."""
    with store.writing(patient=True) as session:
        session.execute("accept_sid_version", **summary.version._asdict())
    return replace(summary, fit_for_training=True)
