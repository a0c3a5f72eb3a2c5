"""Stores embeddings for reuse: Parquet files by embedder, keyed by the hash of the text.

A second run embeds only new texts. A killed run keeps the batches that it has embedded. This module knows no items.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.sids.embedding.embedders import TextEmbedder
from store.errors import InputError, StoreError
from store.progress import Counted
from store.temporary import temporary_folder

BATCH_TEXTS = 4096
# This text is embedded with the first texts and again by every later run, which reveals a name whose vectors have
# changed.
PROBE = "shampoo for dry hair, 500 ml"
# Half precision and other batch sizes change a vector by less than this share of its length.
PROBE_TOLERANCE = 0.02


def embed_texts(
    folder: Path, embedder: TextEmbedder, texts: Sequence[str], on_progress: Callable[[str], None]
) -> NDArray[np.float32]:
    """Return vectors (N, D) of the texts, and store new ones in `folder` under the embedder's name.

    Empty texts get the zero vector. Raises InputError on a vector that is not finite or of another length, and if the
    embedder no longer gives the vectors that are stored under its name.
    """
    place = folder / embedder.name
    keys = [_key(text) for text in texts]
    kept = _read(place, [*keys, _key(PROBE)])
    probe = kept.filter(sha256=_key(PROBE))
    if probe.height:
        _check_probe(place, probe["vector"].to_numpy()[0], embedder.embed([PROBE])[0])
        missing: dict[bytes, str] = {}
    else:
        missing = {_key(PROBE): PROBE}
    known = set(kept["sha256"])
    missing |= {key: text for key, text in zip(keys, texts, strict=True) if text.strip() and key not in known}
    width = probe["vector"].dtype.shape[0] if probe.height else None  # type: ignore[attr-defined]
    parts = [kept]
    rest = list(missing.items())
    for start in range(0, len(rest), BATCH_TEXTS):
        batch = rest[start : start + BATCH_TEXTS]
        vectors = _check(embedder, [text for _, text in batch], width)
        width = vectors.shape[1]
        part = pl.DataFrame({"sha256": [key for key, _ in batch], "vector": vectors})
        _write(place, part)
        parts.append(part)
        count = start + len(batch)
        on_progress(Counted(f"{count:,} of {len(rest):,} new texts embedded by {embedder.name}", count, len(rest)))
    table = pl.concat([part for part in parts if part.height])
    rows = {key: row for row, key in enumerate(table["sha256"])}
    matrix = table["vector"].to_numpy()
    row_N = np.array([rows.get(key, -1) for key in keys], np.int64)
    vectors_N_D: NDArray[np.float32] = matrix[row_N].astype(np.float32)
    vectors_N_D[row_N < 0] = 0
    return vectors_N_D


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _read(place: Path, keys: Sequence[bytes]) -> pl.DataFrame:
    """Read the rows of these keys, each once."""
    files = sorted(place.glob("part-*.parquet"))
    if not files:
        return pl.DataFrame(schema={"sha256": pl.Binary, "vector": pl.List(pl.Float32)})
    hashes = pl.LazyFrame({"sha256": list(set(keys))}, schema={"sha256": pl.Binary})
    try:
        return pl.scan_parquet(files).join(hashes, on="sha256", how="semi").unique("sha256", keep="first").collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise StoreError(
            f"the embeddings kept in {place} cannot be read: {error}; remove that folder to embed all texts again"
        ) from error


def _write(place: Path, part: pl.DataFrame) -> None:
    """Write one file, completely or not at all."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with temporary_folder(place) as temporary:
            part.write_parquet(temporary / "part.parquet", compression="zstd")
            (temporary / "part.parquet").replace(place / f"part-{secrets.token_hex(8)}.parquet")
    except OSError as error:
        raise StoreError(f"embeddings cannot be kept in {place}: {error.strerror or error}") from error


def _check(embedder: TextEmbedder, texts: Sequence[str], width: int | None) -> NDArray[np.float32]:
    vectors_N_D = np.asarray(embedder.embed(texts), np.float32)
    if (
        vectors_N_D.ndim != 2
        or len(vectors_N_D) != len(texts)
        or (width or vectors_N_D.shape[1]) != vectors_N_D.shape[1]
    ):
        raise InputError(
            f"{embedder.name} gave an array of shape {vectors_N_D.shape} for {len(texts)} texts"
            + (f"; vectors of {width} dimensions are kept under this name" if width else "")
        )
    finite_N = np.isfinite(vectors_N_D).all(axis=1)
    if not finite_N.all():
        raise InputError(
            f"{embedder.name} gave a vector that is not finite for the text {texts[int((~finite_N).argmax())][:80]!r}"
        )
    return vectors_N_D


def _check_probe(place: Path, kept_D: NDArray[np.float32], now_D: NDArray[np.float32]) -> None:
    if len(kept_D) != len(now_D) or np.linalg.norm(kept_D - now_D) > PROBE_TOLERANCE * np.linalg.norm(kept_D):
        raise InputError(
            f"the embedder {place.name} no longer gives the vectors that it gave before: its model has changed; "
            f"remove {place} to embed all texts again"
        )
