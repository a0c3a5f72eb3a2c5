"""Makes a version of semantic IDs from a user's own file: its IDs as they are, or IDs quantized from its vectors.

Imported IDs have no codebooks. They get the codebooks that explain them best: the mean residual of the items that have
a code, in the space of their texts and co-purchases. Measures, extension and the start of mid-training therefore work
as for other versions.
"""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.datasets.catalogue import find_dataset
from curate.sids.assignment import accept_version, assign_semantic_ids, load_pairs
from curate.sids.embedding.copurchases import Copurchases
from curate.sids.embedding.embeddings import embed_texts
from curate.sids.imported.files import OwnRows, read_own_rows
from curate.sids.measures import measure_ids
from curate.sids.methods import IMPORTED, OpenEmbedder, open_embedder
from curate.sids.quantizers import OnProgress, Quantizer, ResidualCodebooks
from curate.sids.settings import EmbedderSettings, PurchaseSettings
from curate.sids.versions import SidSummary, load_items, load_summary, name_version, put_version
from store import InputError, Store


def import_semantic_ids(
    store: Store,
    dataset: str,
    path: Path,
    quantizer: Quantizer | None = None,
    embedder: EmbedderSettings | None = None,
    *,
    purchases: PurchaseSettings | None = None,
    item_ids: Path | None = None,
    codebook_size: int | None = None,
    open_embedder: OpenEmbedder = open_embedder,
    accept_shared: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> SidSummary:
    """Store a version with the IDs of a file, or with IDs that a quantizer makes from its vectors.

    path, item_ids: as `read_own_rows` takes them. quantizer: used for vectors; None means residual k-means. embedder:
    used for IDs, whose measures need vectors. codebook_size: used for IDs; None means the largest code plus 1. The
    other arguments are those of `assign_semantic_ids`.

    Raises InputError on an unknown dataset and on a file that does not fit.
    """
    started = time.perf_counter()
    with store.reading() as session:
        find_dataset(session, dataset)
        names = [item.item_id for item in load_items(session, dataset)]
    own = read_own_rows(path, names, item_ids)
    if own.left_out:
        on_progress(f"{own.left_out:,} rows left out, because {dataset!r} does not have their items")
    if own.vectors_N_D is not None:
        return assign_semantic_ids(
            store,
            dataset,
            quantizer,
            purchases=purchases,
            vectors=(f"file-{own.digest}", own.vectors_N_D),
            accept_shared=accept_shared,
            on_progress=on_progress,
        )
    return _put_codes(
        store,
        dataset,
        own,
        embedder or EmbedderSettings(),
        purchases or PurchaseSettings(),
        codebook_size=codebook_size,
        open_embedder=open_embedder,
        accept_shared=accept_shared,
        on_progress=on_progress,
        started=started,
    )


def _put_codes(
    store: Store,
    dataset: str,
    own: OwnRows,
    embedder: EmbedderSettings,
    purchases: PurchaseSettings,
    *,
    codebook_size: int | None,
    open_embedder: OpenEmbedder,
    accept_shared: bool,
    on_progress: OnProgress,
    started: float,
) -> SidSummary:
    assert own.codes_N_L is not None
    largest = int(own.codes_N_L.max())
    size = codebook_size or max(2, largest + 1)
    if largest >= size:
        raise InputError(f"`codebook_size` is {size}, but the file has code {largest}; use {largest + 1} or more")
    with store.reading() as session:
        items = load_items(session, dataset)
        pairs_P_2 = load_pairs(session, dataset, items, purchases.held_out_folds)
    texts = [item.text for item in items]
    opened = open_embedder(embedder, store.embeddings, texts, None)
    settings: dict[str, Any] = {
        "method": IMPORTED,
        "levels": own.codes_N_L.shape[1],
        "codebook_size": size,
        "random_levels": 0,
        "seed": 0,
        "file": own.digest,
        **purchases.to_settings(),
        "embedder": asdict(embedder) | {"name": opened.name},
    }
    version = name_version(dataset, settings)
    with store.reading() as session:
        summary = load_summary(session, version, started)
    if summary is not None:
        return accept_version(store, summary) if accept_shared else summary
    texts_N_T = embed_texts(store.embeddings, opened, texts, on_progress)
    copurchases, vectors_N_D = Copurchases.fit(texts_N_T, pairs_P_2, purchases.copurchase_weight, seed=0)
    fitted = fit_codebooks(own.codes_N_L, vectors_N_D)
    ids_N_L = own.codes_N_L.astype(np.uint16)

    def save_model(folder: Path) -> None:
        fitted.save(folder)
        copurchases.save(folder)

    return put_version(
        store,
        version,
        settings,
        items,
        ids_N_L,
        measures=measure_ids(ids_N_L, size, vectors_N_D, fitted, items),
        save_model=save_model,
        accept_shared=accept_shared,
        started=started,
    )


def fit_codebooks(codes_N_L: NDArray[np.int64], vectors_N_D: NDArray[np.float32]) -> ResidualCodebooks:
    """Return, for each level, the mean residual of the items that have a code. A code without items gets zero."""
    residuals_N_D = vectors_N_D.astype(np.float32, copy=True)
    codebooks: list[NDArray[np.float32]] = []
    for codes_N in codes_N_L.T:
        sums_C_D = np.zeros((int(codes_N.max()) + 1, residuals_N_D.shape[1]), np.float32)
        np.add.at(sums_C_D, codes_N, residuals_N_D)
        counts_C = np.maximum(np.bincount(codes_N), 1).astype(np.float32)
        codebook_C_D: NDArray[np.float32] = sums_C_D / counts_C[:, None]
        residuals_N_D -= codebook_C_D[codes_N]
        codebooks.append(codebook_C_D)
    return ResidualCodebooks(tuple(codebooks))
