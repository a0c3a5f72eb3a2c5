"""Assigns IDs to items that are added after training, without a new fit and without changing or reusing an ID."""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.datasets.catalogue import find_dataset
from curate.sids.assignment import FROM_FILE
from curate.sids.embedding.copurchases import Copurchases
from curate.sids.embedding.embeddings import embed_texts
from curate.sids.measures import Measure, measure_ids, perplexity, reconstruction_errors
from curate.sids.methods import LoadQuantizer, OpenEmbedder, load_quantizer, open_embedder
from curate.sids.quantizers import FittedQuantizer, OnProgress, nearest_codes, sum_codes
from curate.sids.settings import EmbedderSettings
from curate.sids.unique_codes import Placement
from curate.sids.versions import (
    SidSummary,
    find_version,
    load_codes,
    load_items,
    load_settings,
    load_summary,
    model_folder,
    name_version,
    put_version,
)
from store import InputError, Session, Store


def extend_semantic_ids(
    store: Store,
    dataset: str,
    base: str,
    *,
    open_embedder: OpenEmbedder = open_embedder,
    load_quantizer: LoadQuantizer = load_quantizer,
    accept_shared: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> SidSummary:
    """Copy the IDs of another version's items, and assign IDs to the items that are new in `dataset`.

    Nothing is trained, and no ID is reused, not even that of an item that no longer exists. base: a version of another
    dataset, as `find_version` takes it. accept_shared: mark the version as fit for training even if fewer than 99% of
    its IDs are distinct.

    The measures include drift: new_items, gone_items and changed_texts; base_error and new_error, the mean
    reconstruction error of old and of new items; new_share_unknown, the share of new items whose text the embedder
    cannot represent; new_perplexity, the perplexity of their first codes.

    Raises InputError on an unknown dataset or version, or if all IDs are taken.
    """
    started = time.perf_counter()
    with store.reading() as session:
        find_dataset(session, dataset)
        source = find_version(session, base)
        if source.dataset == dataset:
            raise InputError(
                f"{base!r} is a version of {dataset!r} itself, in which every item has an ID; choose a version of "
                "another dataset"
            )
        items = load_items(session, dataset)
        before = {item.item_id: item.text for item in load_items(session, source.dataset)}
        # A model or a trace may know the ID of an item that is gone, so such IDs stay taken for ever.
        stored, codes_by_item = load_settings(session, source), load_codes(session, source)
        taken = set(codes_by_item.values()) | _codes_of_ancestors(session, stored)
    settings = {**stored, "extends": str(source)}
    version = name_version(dataset, settings)
    with store.reading() as session:
        summary = load_summary(session, version, started)
    if summary is not None:
        return summary
    if stored["embedder"]["kind"] == FROM_FILE:
        raise InputError(
            f"{source} was made from vectors in a file, which has none for new items; run gr2 sids {dataset} --from "
            "with a file that has the vectors of all items"
        )
    folder = model_folder(store, source)
    if not folder.is_dir():
        raise InputError(
            f"the quantizer of {source} is missing from {folder}; make new IDs with gr2 sids {dataset} instead"
        )
    quantizer = load_quantizer(stored["method"], folder)
    spec = {name: stored["embedder"][name] for name in ("kind", "model", "dimensions", "pooling")}
    opened = open_embedder(EmbedderSettings(**spec), store.embeddings, [], stored["embedder"]["name"])
    texts_N_T = embed_texts(store.embeddings, opened, [item.text for item in items], on_progress)
    # New items have no co-purchases yet. The vectors of old items are also made from their texts, so that drift
    # compares like with like.
    vectors_N_D = Copurchases.load(folder).join(texts_N_T)
    latents_N_d = quantizer.encode(vectors_N_D)
    is_new_N = np.array([item.item_id not in codes_by_item for item in items])
    sizes = {name: stored[name] for name in ("codebook_size", "random_levels", "seed")}
    book = Placement(taken, quantizer.codebooks, **sizes)
    ids_N_L = np.array(
        [
            book.place(latent_d) if is_new else codes_by_item[item.item_id]
            for item, latent_d, is_new in zip(items, latents_N_d, is_new_N, strict=True)
        ],
        np.uint16,
    )
    nearest_N_F = nearest_codes(latents_N_d, quantizer.codebooks)
    moved = int((nearest_N_F != ids_N_L[:, : nearest_N_F.shape[1]]).any(axis=1)[is_new_N].sum())
    measures = measure_ids(ids_N_L, stored["codebook_size"], vectors_N_D, quantizer, items, seed=stored["seed"])
    measures += [
        Measure("moved", None, moved),
        Measure("gone_items", None, len(before.keys() - {item.item_id for item in items})),
        Measure("changed_texts", None, sum(before.get(item.item_id, item.text) != item.text for item in items)),
        *_drift(is_new_N, nearest_N_F, vectors_N_D, quantizer, stored["codebook_size"]),
    ]
    on_progress(f"{int(is_new_N.sum()):,} new items have IDs")

    def copy_model(target: Path) -> None:
        shutil.copytree(folder, target, dirs_exist_ok=True)

    return put_version(
        store,
        version,
        settings,
        items,
        ids_N_L,
        measures=measures,
        save_model=copy_model,
        accept_shared=accept_shared,
        started=started,
    )


def _drift(
    is_new_N: NDArray[np.bool_],
    codes_N_F: NDArray[np.int64],
    vectors_N_D: NDArray[np.float32],
    quantizer: FittedQuantizer,
    codebook_size: int,
) -> list[Measure]:
    """Measures of how well the quantizer fits the new items, which it was not fitted on."""
    errors_N = reconstruction_errors(vectors_N_D, quantizer.decode(sum_codes(codes_N_F, quantizer.codebooks)))
    drift = [Measure("new_items", None, int(is_new_N.sum()))]
    if not is_new_N.all():
        drift.append(Measure("base_error", None, float(errors_N[~is_new_N].mean())))
    if is_new_N.any():
        drift += [
            Measure("new_error", None, float(errors_N[is_new_N].mean())),
            Measure("new_share_unknown", None, float((~vectors_N_D[is_new_N].any(axis=1)).mean())),
            Measure("new_perplexity", None, perplexity(codes_N_F[is_new_N, 0], codebook_size)),
        ]
    return drift


def _codes_of_ancestors(session: Session, settings: dict[str, Any]) -> set[tuple[int, ...]]:
    """The IDs of all versions that this one extends, directly or indirectly, including those of deleted items."""
    codes: set[tuple[int, ...]] = set()
    while "extends" in settings:
        ancestor = find_version(session, settings["extends"])
        settings = load_settings(session, ancestor)
        codes |= set(load_codes(session, ancestor).values())
    return codes
